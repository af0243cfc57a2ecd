"""Source `transformer-zoo:`: the Small Transformer Zoo, one CSV per data set and one file per checkpoint.

Files are `<run>_<epoch|best>_<accuracy x 10000>.pt`; `metadata/*.csv` holds the run's configuration, `ckpt_epoch`
(text), `ckpt_file` and `test_accuracy` or `test_top1_accuracy`.
"""

from __future__ import annotations

import csv
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    Progress,
)
from zooplatform_zoos.batching import Item, Network, Reports, stream
from zooplatform_zoos.names import cell, folder_of, metric_name, seed_of, walk
from zooplatform_zoos.torchfile import read_torch, state_dict_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["TransformerZoo"]

_FILE = re.compile(r"^(?P<run>.+)_(?P<epoch>\d+|best)_(?P<accuracy>\d+)$")
_METRIC = re.compile(r"(^|_)(accuracy|loss|acc)$")


class TransformerZoo:
    """Every checkpoint file below a folder, described by the CSV files of its `metadata` folder."""

    def describe(self, ref: str) -> Mapping[str, str]:
        """The name of the zoo: its folder's."""
        return {"name": folder_of(ref, "transformer-zoo").name}

    def batches(
        self,
        ref: str,
        *,
        done: frozenset[tuple[str, int | None]] = frozenset(),
        progress: Progress | None = None,
    ) -> Iterator[PopulationBatch]:
        """Batches of one layout each; the checkpoint `best` of a run has no step.

        Raises:
            SourceError: there is no checkpoint file or no metadata.
        """
        folder = folder_of(ref, "transformer-zoo")
        reports = Reports()
        files: dict[str, Path] = {}
        tables: list[Path] = []
        total = 0
        for path in walk(folder):
            if path.suffix == ".csv":
                tables.append(path)
            elif path.suffix == ".pt":
                total += 1
                if files.setdefault(path.name, path) != path:
                    reports.fail(
                        f"transformer-zoo:{ref}/{path.relative_to(folder)}",
                        f"{files[path.name].relative_to(folder)} has the same name",
                    )
        if not files or not tables:
            raise SourceError(
                folder,
                f"it has {total} .pt files and {len(tables)} CSV files; both are needed.",
                "Give the folder that holds metadata/*.csv and the checkpoints.",
            )
        rows = _read_tables(tables, folder, ref, files, reports)
        items = (
            item
            for name, path in files.items()
            if (item := _item(path, rows.get(name), folder, ref, reports)) is not None
        )
        yield from stream(
            items, reports, what=folder.name, total=total, done=done, progress=progress
        )


def _read_tables(
    tables: list[Path], folder: Path, ref: str, files: Mapping[str, Path], reports: Reports
) -> dict[str, dict[str, str]]:
    """The line of each file by the file's name; lines without a file are reported."""
    rows: dict[str, dict[str, str]] = {}
    for path in tables:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(csv.DictReader(file), start=2):
                # Only the last part: the folders are those of another machine.
                name = PurePosixPath((line.get("ckpt_file") or "").replace("\\", "/")).name
                if name in files:
                    rows[name] = {k: v for k, v in line.items() if k and isinstance(v, str)}
                    rows[name]["metadata"] = path.stem
                else:
                    reports.fail(
                        f"transformer-zoo:{ref}/{path.relative_to(folder)} line {number}",
                        f"its file {name or '(none)'} is not there",
                    )
    return rows


def _item(
    path: Path, row: Mapping[str, str] | None, folder: Path, ref: str, reports: Reports
) -> Item | None:
    shown = f"transformer-zoo:{ref}/{path.relative_to(folder)}"
    match = _FILE.match(path.stem)
    if match is None and row is None:
        reports.fail(shown, "no CSV line names it and its name is not <run>_<epoch>_<accuracy>.pt")
        return None
    if row is None:
        reports.note(f"{path.name}: no CSV line names it, so no hyper-parameters")
    values = row or {}
    epoch = (values.get("ckpt_epoch") or (match["epoch"] if match else "")).strip()
    step: int | None = None
    if epoch != "best":
        try:
            step = int(float(epoch))
        except (ValueError, OverflowError):
            reports.fail(shown, f"ckpt_epoch {epoch!r} is neither a number nor 'best'")
            return None
    dataset = values.get("dataset", "")
    metrics, config = [], {}
    for name, text in values.items():
        value = cell(text)
        if name in ("", "ckpt_epoch", "ckpt_file", "Unnamed: 0"):
            continue
        if _METRIC.search(name) and isinstance(value, int | float):
            ours, split = metric_name(name)
            metrics.append(
                MetricRecord(name=ours, value=float(value), dataset=dataset, split=split)
            )
        else:
            config[name] = value
    if match is not None:
        stated = int(match["accuracy"]) / 10000
        known = next((m.value for m in metrics if m.name == "test_accuracy"), None)
        if known is None:
            metrics.append(MetricRecord(name="test_accuracy", value=stated, split="test"))
        elif abs(known - stated) > 1e-4:
            reports.note(f"{path.name}: the name says accuracy {stated}, the CSV {known}")
    run = match["run"] if match else path.stem
    where = path.parent.relative_to(folder)
    info = ModelInfo(
        key=f"transformer-zoo:{folder.name}/{(where / run).as_posix()}",
        name=run,
        source=f"transformer-zoo:{ref}",
        seed=seed_of(config),
        config=config,
    )
    record = CheckpointRecord(
        model=info,
        step=step,
        epoch=None if step is None else float(step),
        metrics=tuple(metrics),
    )
    return Item(info.key, step, shown, partial(_load, path, record, reports))


def _load(path: Path, record: CheckpointRecord, reports: Reports) -> Network:
    state, notes = state_dict_of(read_torch(path), path)
    for note in notes:
        reports.note(note)
    return Network(state=state, record=record)
