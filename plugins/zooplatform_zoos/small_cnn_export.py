"""A zoo of a catalog as a Small CNN Zoo folder: the reverse of `small-cnn-zoo:`.

Legend: N checkpoints, P parameters.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import SourceError, UnknownIdError
from zooplatform_zoos.small_cnn import SOURCE_ROW
from zooplatform_zoos.small_cnn_layout import FileColumns, Variable

if TYPE_CHECKING:
    from os import PathLike

    import pyarrow as pa

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import Layout

__all__ = ["export_small_cnn_zoo"]

_WRITE_BYTES = 32 << 20
_OTHERWISE = "Write it out otherwise: `zoo export`, or `zoo split export` with its split."
# Of these names the first is ours for finding the row again, the others are counted at import.
_OURS = (SOURCE_ROW, "has_nan", "has_inf")


def export_small_cnn_zoo(catalog: Catalog, zoo: str, folder: str | PathLike[str]) -> Path:
    """Write every checkpoint of `zoo` as `weights.npy`, `metrics.csv.gz` and `layout.csv` into `folder`.

    Rows are in the order of the file that they were imported from, so that an imported zoo gives back its `weights.npy`
    bit for bit; checkpoints from elsewhere follow by model and step.

    Returns:
        The folder.

    Raises:
        UnknownIdError: the catalog has no such zoo, or nothing stored in it.
        SourceError: the networks have several layouts or other layers than convolutions and dense ones, or the folder
            holds a zoo already.
    """
    target = Path(folder)
    if (target / "weights.npy").exists():
        raise SourceError(target, "it holds a weights.npy already.", "Choose another folder.")
    rows = catalog.sql(
        "select c.checkpoint_id, c.architecture_id, c.step, m.name, m.config,"
        " (select max(value) from metrics r where r.checkpoint_id = c.checkpoint_id and r.name = ?)"
        " as source_row from checkpoints c join models m on m.model_id = c.model_id"
        " where m.zoo_id = ? and c.state = 'stored'"
        " order by source_row nulls last, m.name, c.step, c.checkpoint_id",
        [SOURCE_ROW, zoo],
    )
    if not rows.num_rows:
        raise UnknownIdError("zoo with stored checkpoints", zoo)
    architectures = set(rows.column("architecture_id").to_pylist())
    if len(architectures) != 1:
        raise SourceError(
            zoo,
            f"its networks have {len(architectures)} layouts, the format has one.",
            "Ingest each architecture as a zoo of its own.",
        )
    population = catalog.population(
        "select c.checkpoint_id from checkpoints c join models m on m.model_id = c.model_id"
        f" where m.zoo_id = {_quoted(zoo)} and c.state = 'stored'"
    )
    columns, order = _file_columns(population.layout, zoo)
    target.mkdir(parents=True, exist_ok=True)

    ids = rows.column("checkpoint_id").to_pylist()
    place = {checkpoint: at for at, checkpoint in enumerate(ids)}
    where = np.array([place[checkpoint] for checkpoint in population.ids], np.int64)
    # Written in the order of the file, so that the rows stream to disk; renamed when complete.
    reading = np.argsort(where)
    shape = (len(ids), columns.num_parameters)
    partial = target / ".weights.npy.partial"
    dtype = np.dtype(population.layout[0].dtype)
    with partial.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape},
        )
        step = max(1, _WRITE_BYTES // (dtype.itemsize * shape[1]))
        for start in range(0, len(ids), step):
            block = population.read(reading[start : start + step])
            out = np.empty_like(block)
            out[:, order] = block
            out.tofile(file)
    _write_layout(target / "layout.csv", columns)
    _write_metrics(target / "metrics.csv.gz", catalog, zoo, rows)
    return partial.rename(target / "weights.npy").parent


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _file_columns(layout: Layout, zoo: str) -> tuple[FileColumns, np.ndarray[Any, Any]]:
    """The file's variables, bias first and in TensorFlow's shapes, and the order of its columns."""
    variables: list[Variable] = []
    counts = {"conv2d": 0, "dense": 0}
    at = 0
    for layer, specs in groupby(layout, key=lambda spec: spec.name.rpartition(".")[0]):
        kinds = {spec.name.rpartition(".")[2]: spec for spec in specs}
        weight = kinds.get("weight")
        if (
            weight is None
            or not set(kinds) <= {"weight", "bias"}
            or len(weight.shape) not in (2, 4)
        ):
            raise SourceError(
                zoo,
                f"layer {layer!r} has {', '.join(kinds)}; the format has convolutions and dense layers.",
                _OTHERWISE,
            )
        kind = "dense" if len(weight.shape) == 2 else "conv2d"
        name = f"sequential/{kind}" + (f"_{counts[kind]}" if counts[kind] else "")
        counts[kind] += 1
        shape = weight.shape[::-1]
        if kind == "conv2d":
            outputs, inputs, height, width = weight.shape
            shape = (height, width, inputs, outputs)
        if "bias" in kinds:
            variables.append(
                Variable(f"{name}/bias:0", at, at + weight.shape[0], kinds["bias"].shape)
            )
            at += weight.shape[0]
        variables.append(Variable(f"{name}/kernel:0", at, at + prod(shape), shape))
        at += prod(shape)
    columns = FileColumns(tuple(variables))
    if [spec.shape for spec in columns.layout(np.dtype(np.float32))] != [s.shape for s in layout]:
        raise SourceError(zoo, "its layers do not list the weight before the bias.", _OTHERWISE)
    return columns, columns.order()


def _write_layout(path: Path, columns: FileColumns) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["varname", "start_idx", "end_idx", "shape"])
        for variable in columns.variables:
            writer.writerow([variable.name, variable.start, variable.end, str(variable.shape)])


def _write_metrics(path: Path, catalog: Catalog, zoo: str, rows: pa.Table) -> None:
    """One line per checkpoint: the index, config.*, modeldir, step and the reported metrics."""
    configs = [json.loads(text) if text else {} for text in rows.column("config").to_pylist()]
    names = sorted({name for config in configs for name in config})
    measured = catalog.sql(
        "select r.checkpoint_id, r.name, r.value from metrics r"
        " join checkpoints c on c.checkpoint_id = r.checkpoint_id"
        " join models m on m.model_id = c.model_id"
        " where m.zoo_id = ? and r.origin = 'reported'",
        [zoo],
    )
    values: dict[str, dict[str, float]] = {
        name: {} for name in ("test_accuracy", "test_loss", "train_accuracy", "train_loss")
    }
    for checkpoint, name, value in zip(
        *(measured.column(c).to_pylist() for c in ("checkpoint_id", "name", "value")), strict=True
    ):
        if name not in _OURS:
            values.setdefault(name, {})[checkpoint] = value
    with (
        gzip.GzipFile(path, "wb", mtime=0) as zipped,
        io.TextIOWrapper(zipped, "utf-8", newline="") as file,
    ):
        # Python's shortest form of a float is what the published files hold.
        writer = csv.writer(file)
        writer.writerow(["", *(f"config.{name}" for name in names), "modeldir", "step", *values])
        ids, models, steps = (
            rows.column(name).to_pylist() for name in ("checkpoint_id", "name", "step")
        )
        for at, checkpoint in enumerate(ids):
            config = [_cell(configs[at].get(name)) for name in names]
            found = [values[name].get(checkpoint, "") for name in values]
            writer.writerow([at, *config, models[at], steps[at], *found])


def _cell(value: Any) -> Any:
    """Plain values as they are, nothing for None; whatever the format has no cell for as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str | int | float) else json.dumps(value)
