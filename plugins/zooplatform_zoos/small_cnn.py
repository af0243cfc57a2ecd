"""Source `small-cnn-zoo:`: weights.npy, metrics.csv[.gz], layout.csv (Unterthiner et al., 2020).

Legend: N rows (checkpoints), P parameters.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from zooplatform.errors import SourceError
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    Progress,
)
from zooplatform_zoos.batching import BATCH_BYTES, Reports
from zooplatform_zoos.names import file_digest, folder_of, metric_name, seed_of
from zooplatform_zoos.small_cnn_layout import (
    FileColumns,
    network_config,
    read_layout,
    standard_variables,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["SOURCE_ROW", "SmallCnnZoo"]

# The metric that keeps a checkpoint's row of the file, so that the export gives the same file back.
SOURCE_ROW = "source_row"

_FAMILY, _NAME = "cnn", "small-cnn"
_SAVE = "Save it by np.save as a matrix of float32, one row for each network."
_ACTIVATIONS = {"leaky": "leaky_relu(0.1)"}
_INDEX_COLUMNS = ("", "Unnamed: 0")
# Rows are gathered and reordered in pieces of this size; the pages of the map are given back after each.
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class _Weights:
    """`weights.npy` as a map: `rows` gives some of them in our column order without holding the file."""

    path: Path
    map: mmap.mmap
    array: npt.NDArray[Any]  # (N, P), columns as in the file

    def rows(
        self, indices: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """(len(indices), P) in native byte order."""
        out = np.empty((len(indices), len(order)), self.array.dtype.newbyteorder("="))
        piece = max(1, _PIECE_BYTES // max(1, out.itemsize * len(order)))
        for start in range(0, len(indices), piece):
            block = self.array[indices[start : start + piece]]
            out[start : start + piece] = block[:, order]
            # Touched pages of a file map count as resident; a file larger than the memory would fill it.
            self.map.madvise(mmap.MADV_DONTNEED)
        return out


class SmallCnnZoo:
    """Every row of a Small CNN Zoo folder as a checkpoint; `modeldir` is the model, `step` the checkpoint."""

    def describe(self, ref: str) -> Mapping[str, str]:
        """Name and revision (SHA-256 over the three files) of the zoo."""
        folder = folder_of(ref, "small-cnn-zoo")
        return {"name": folder.name, "revision": _revision(folder)}

    def batches(
        self,
        ref: str,
        *,
        done: frozenset[tuple[str, int | None]] = frozenset(),
        progress: Progress | None = None,
    ) -> Iterator[PopulationBatch]:
        """Batches of one activation each, rows in the order of the file.

        Raises:
            SourceError: the files do not fit one another.
        """
        folder = folder_of(ref, "small-cnn-zoo")
        weights = _open_weights(_find(folder, "weights.npy"))
        table = _read_metrics(_find(folder, "metrics.csv.gz", "metrics.csv"))
        if table.num_rows != len(weights.array):
            raise SourceError(
                folder,
                f"weights.npy has {len(weights.array)} rows, the metrics have {table.num_rows}.",
                "Fetch both files of the same zoo again.",
            )
        columns = _columns_of(folder, table, weights.array.shape[1])
        revision = _revision(folder)
        prefix = f"small-cnn-zoo:{folder.name}@{revision[:12]}/"
        reports = Reports()
        groups = _groups(table, prefix, done, reports)
        layout, order = columns.layout(weights.array.dtype), columns.order()
        per_batch = max(1, BATCH_BYTES // (weights.array.dtype.itemsize * len(order)))
        total = sum(len(rows) for rows in groups.values())
        finished = 0
        for (activation, dataset), rows in groups.items():
            config = network_config(
                columns, _ACTIVATIONS.get(activation, activation) or None, dataset
            )
            for start in range(0, len(rows), per_batch):
                indices = np.asarray(rows[start : start + per_batch], np.int64)
                values = weights.rows(indices, order)
                records = _records(table, indices, values, prefix, revision, ref)
                failed, notes = reports.take()
                finished += len(indices)
                if progress is not None:
                    progress(folder.name, finished, total)
                yield PopulationBatch(
                    layout=layout,
                    weights=values,
                    rows=records,
                    family=_FAMILY,
                    name=_NAME,
                    config=config,
                    failed=failed,
                    notes=notes,
                )
        if reports.failed:
            failed, notes = reports.take()
            nothing = np.empty((0, 0), np.float32)
            yield PopulationBatch(layout=(), weights=nothing, rows=(), failed=failed, notes=notes)


def _find(folder: Path, *names: str) -> Path:
    candidates = [folder / f"{prefix}{name}" for name in names for prefix in ("", "all_")]
    for path in candidates:
        if path.is_file():
            return path
    raise SourceError(
        folder,
        f"no Small CNN Zoo: {' or '.join(path.name for path in candidates)} is missing.",
        "Give the folder that holds weights.npy, metrics.csv.gz and layout.csv.",
    )


def _layout_file(folder: Path) -> Path | None:
    return next((p for n in ("layout.csv", "all_layout.csv") if (p := folder / n).is_file()), None)


def _revision(folder: Path) -> str:
    layout = _layout_file(folder)
    return file_digest(
        _find(folder, "weights.npy"),
        _find(folder, "metrics.csv.gz", "metrics.csv"),
        *([layout] if layout else []),
    )


def _open_weights(path: Path) -> _Weights:
    """Map `path` and check that it is a plain (N, P) array of floats of exactly the claimed size."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise SourceError(path, f"npy format {version} is not used by these zoos.", _SAVE)
            shape, fortran, dtype = read(file)
            start = file.tell()
            size = file.seek(0, 2)
            if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8) or len(shape) != 2:
                raise SourceError(
                    path, f"expected a matrix of floats, found {dtype} {shape}.", _SAVE
                )
            if start + shape[0] * shape[1] * dtype.itemsize != size or not shape[0] * shape[1]:
                raise SourceError(
                    path,
                    f"{size} bytes do not hold {shape[0]} x {shape[1]} values of {dtype}.",
                    "Fetch the file again.",
                )
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(path, f"not a readable .npy file: {error}", "Fetch it again.") from error
    array = np.frombuffer(mapped, dtype, shape[0] * shape[1], start)
    return _Weights(path, mapped, array.reshape(shape, order="F" if fortran else "C"))


def _read_metrics(path: Path) -> pa.Table:
    """The metrics, typed by column; empty is not the same as NaN (not measured, diverged)."""
    options = pyarrow.csv.ConvertOptions(
        null_values=[""],
        strings_can_be_null=True,
        column_types={"modeldir": pa.string(), "step": pa.int64()},
    )
    try:
        table = pyarrow.csv.read_csv(str(path), convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise SourceError(path, f"not a readable CSV file: {error}", "Fetch it again.") from error
    missing = {"modeldir", "step"} - set(table.column_names)
    if missing:
        raise SourceError(
            path,
            f"the columns {sorted(missing)} are missing.",
            "A row of it is a row of weights.npy: modeldir names the run, step the checkpoint.",
        )
    if len(set(table.column_names)) != len(table.column_names):
        raise SourceError(path, "two columns have one name.", "Rename one of them.")
    return table


def _columns_of(folder: Path, table: pa.Table, num_parameters: int) -> FileColumns:
    path = _layout_file(folder)
    if path is not None:
        columns = read_layout(path)
        if columns.num_parameters != num_parameters:
            raise SourceError(
                path,
                f"it describes {columns.num_parameters} columns, the weights have {num_parameters}.",
                "Fetch the layout of these weights, or remove it for the published networks.",
            )
        return columns
    # The published zoos are one family: depth and width are hyper-parameters, images have 1 or 3 channels.
    names = ("config.num_layers", "config.num_units")
    if all(name in table.column_names for name in names):
        depths, widths = (set(table.column(name).to_pylist()) for name in names)
        if len(depths) == len(widths) == 1:
            depth, width = depths.pop(), widths.pop()
            if isinstance(depth, int) and isinstance(width, int) and 0 < depth < 20:
                for channels in (1, 3):
                    columns = standard_variables([channels, *[width] * depth, 10])
                    if columns.num_parameters == num_parameters:
                        return columns
    raise SourceError(
        folder,
        "layout.csv is missing and the network is none of the published ones.",
        "Write it: varname,start_idx,end_idx,shape, one line for each kernel and bias.",
    )


def _groups(
    table: pa.Table,
    prefix: str,
    done: frozenset[tuple[str, int | None]],
    reports: Reports,
) -> dict[tuple[str, str], list[int]]:
    """(activation, data set) -> the rows that have it and are not stored yet."""
    nothing = [None] * table.num_rows
    columns = set(table.column_names)
    activations, datasets = (
        table.column(name).to_pylist() if name in columns else nothing
        for name in ("config.activation", "config.dataset")
    )
    models, steps = table.column("modeldir").to_pylist(), table.column("step").to_pylist()
    first: dict[tuple[str, int], int] = {}
    groups: dict[tuple[str, str], list[int]] = {}
    for row, (model, step) in enumerate(zip(models, steps, strict=True)):
        if model is None or step is None:
            reports.fail(f"{prefix}row {row}", "modeldir or step is empty")
        elif first.setdefault((model, step), row) != row:
            reports.fail(
                f"{prefix}row {row}", f"{model} step {step} is in row {first[model, step]} already"
            )
        elif (prefix + model, step) not in done:
            group = (str(activations[row] or ""), str(datasets[row] or ""))
            groups.setdefault(group, []).append(row)
    return groups


def _records(
    table: pa.Table,
    indices: npt.NDArray[np.int64],
    values: npt.NDArray[Any],
    prefix: str,
    revision: str,
    ref: str,
) -> list[CheckpointRecord]:
    """One record per row of `values` (len(indices), P)."""
    # A plain sum is NaN or infinite for every row that holds such a value, and costs one pass; overflow only
    # sends a row to the exact count.
    with np.errstate(invalid="ignore", over="ignore"):
        suspicious = ~np.isfinite(values.sum(axis=1, dtype=np.float64))
    models: dict[str, ModelInfo] = {}
    records = []
    for at, row in enumerate(table.take(pa.array(indices)).to_pylist()):
        model, dataset = row["modeldir"], str(row.get("config.dataset") or "")
        if model not in models:
            config = {
                key.removeprefix("config."): value
                for key, value in row.items()
                if key.startswith("config.")
            }
            models[model] = ModelInfo(
                key=prefix + model,
                name=model,
                source=f"small-cnn-zoo:{ref}",
                revision=revision,
                seed=seed_of({"seed": config.get("random_seed")}),
                config=config,
            )
        metrics = [
            MetricRecord(
                name=metric_name(name)[0],
                value=float(value),
                dataset=dataset,
                split=metric_name(name)[1],
            )
            for name, value in row.items()
            if isinstance(value, int | float)
            and name not in ("step", "modeldir", *_INDEX_COLUMNS)
            and not name.startswith("config.")
        ]
        metrics.append(MetricRecord(name=SOURCE_ROW, value=float(indices[at])))
        if suspicious[at]:
            for name, count in (
                ("has_nan", np.isnan(values[at]).any()),
                ("has_inf", np.isinf(values[at]).any()),
            ):
                if count:
                    metrics.append(MetricRecord(name=name, value=1.0, origin="measured"))
        step = row["step"]
        records.append(
            CheckpointRecord(
                model=models[model], step=step, epoch=float(step), metrics=tuple(metrics)
            )
        )
    return records
