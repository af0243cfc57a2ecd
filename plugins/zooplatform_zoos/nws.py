"""Source `nws-zoo:`: the NWS data set (Eilertsen et al.): CSV files and raw float64 vectors.

Each line of `nws_*.csv` is one network with the folder of its files: `weights/%03d.bin` (little-endian float64, all
weights of one checkpoint) and `error.bin` (float64, five values per checkpoint). The vectors carry no layout; the
columns `weightn_conv` and `weightn_fc` say how many values belong to convolutions and to dense layers.
"""

from __future__ import annotations

import csv
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.errors import SourceError
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    Progress,
)
from zooplatform_zoos.batching import Item, Network, Reports, stream
from zooplatform_zoos.layouts import GivenLayout, parse_layout
from zooplatform_zoos.names import cell, folder_of, inside, seed_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["NwsZoo"]

_BIN = re.compile(r"^(\d+)\.bin$")
_ERRORS = 5
_ROLES = {"nws_main": "main", "nws_fixed_train": "fixed_train", "nws_test": "test"}


class NwsZoo:
    """Every `.bin` of every network; float64 is kept."""

    def describe(self, ref: str) -> Mapping[str, str]:
        """The name of the zoo: its folder's."""
        return {"name": folder_of(ref, "nws-zoo").name}

    def batches(
        self,
        ref: str,
        *,
        done: frozenset[tuple[str, int | None]] = frozenset(),
        progress: Progress | None = None,
    ) -> Iterator[PopulationBatch]:
        """Batches of one layout each; the number of the file is the step.

        Raises:
            SourceError: there is no CSV file with a column `path`.
        """
        folder = folder_of(ref, "nws-zoo")
        reports = Reports()
        networks = list(_networks(folder, ref, reports))
        if not networks and not reports.failed:
            raise SourceError(
                folder,
                "no CSV file with a column 'path' is in it.",
                "Give the folder that holds nws_main.csv and its relatives.",
            )
        items = (item for network in networks for item in _items(*network, folder, ref, reports))
        yield from stream(
            items, reports, what=folder.name, total=None, done=done, progress=progress
        )


def _networks(
    folder: Path, ref: str, reports: Reports
) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """(folder, hyper-parameters, path as given) of every line."""
    for table in sorted(folder.glob("*.csv")):
        with table.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if "path" not in (reader.fieldnames or ()):
                reports.note(f"{table.name}: no column 'path', left out")
                continue
            for number, line in enumerate(reader, start=2):
                given = (line.pop("path") or "").strip()
                found = inside(folder, given) if given else None
                if found is None or not found.is_dir():
                    reason = "leads out of the zoo" if given and found is None else "is not there"
                    reports.fail(
                        f"nws-zoo:{ref}/{table.name} line {number}",
                        f"its folder {given!r} {reason}",
                    )
                    continue
                config = {
                    name: cell(value)
                    for name, value in line.items()
                    if name and isinstance(value, str)
                }
                config["split"] = _ROLES.get(table.stem, table.stem)
                yield found, config, given


def _items(
    network: Path, config: dict[str, Any], given: str, folder: Path, ref: str, reports: Reports
) -> Iterator[Item]:
    weights = network / "weights"
    numbered = sorted(
        (int(match[1]), path)
        for path in (weights.iterdir() if weights.is_dir() else ())
        if (match := _BIN.match(path.name)) and path.is_file()
    )
    if not numbered:
        reports.fail(f"nws-zoo:{ref}/{given}", "it has no weights/*.bin")
        return
    info = ModelInfo(
        key=f"nws-zoo:{folder.name}/{given.strip('/')}",
        name=given.strip("/"),
        source=f"nws-zoo:{ref}",
        seed=seed_of(config),
        config=config,
    )
    errors = _errors(network, len(numbered), reports, given)
    for place, (number, path) in enumerate(numbered):
        metrics = () if errors is None else tuple(_metrics(errors[place], config))
        record = CheckpointRecord(model=info, step=number, metrics=metrics)
        shown = f"nws-zoo:{ref}/{given}/weights/{path.name}"
        yield Item(info.key, number, shown, partial(_load, path, network, folder, record))


def _errors(network: Path, count: int, reports: Reports, given: str) -> Any:
    """`error.bin` as (count, 5), or None with a note."""
    path = network / "error.bin"
    if not path.is_file():
        reports.note(f"{given}: no error.bin, so no metrics")
        return None
    if path.stat().st_size != count * _ERRORS * 8:
        reports.note(
            f"{given}: error.bin has not {_ERRORS} values for each of {count} files; left out"
        )
        return None
    return np.fromfile(path, "<f8").reshape(count, _ERRORS)


def _metrics(values: Any, config: Mapping[str, Any]) -> Iterator[MetricRecord]:
    """The five columns by number: the files do not name them."""
    for number, value in enumerate(values):
        yield MetricRecord(
            name=f"error_{number}", value=float(value), dataset=str(config.get("dataset") or "")
        )


def _load(path: Path, network: Path, folder: Path, record: CheckpointRecord) -> Network:
    size = path.stat().st_size
    if not size or size % 8:
        raise SourceError(path, f"{size} bytes are no float64 vector.", "Fetch the file again.")
    vector = torch.from_numpy(np.fromfile(path, "<f8").astype(np.float64, copy=False))
    layout = _layout(vector.numel(), network, folder, record.model.config, path)
    if layout.num_parameters != vector.numel():
        raise SourceError(
            path,
            f"it has {vector.numel()} values, the table or layout says {layout.num_parameters}.",
            "Fetch the file again.",
        )
    return Network(
        state=layout.split(vector, path),
        record=record,
        family=layout.family,
        name="nws",
        config=layout.config,
    )


def _layout(
    count: int, network: Path, folder: Path, config: Mapping[str, Any], path: Path
) -> GivenLayout:
    """The layout beside the network or the zoo, else two tensors: convolutions and dense layers."""
    for where in (network, folder):
        for name in ("layout.json", "layout.csv"):
            if (where / name).is_file():
                found = parse_layout(where / name)
                if not isinstance(found, GivenLayout):
                    raise SourceError(where / name, "it holds several layouts, a network has one.")
                return found
    convolutions, dense = config.get("weightn_conv"), config.get("weightn_fc")
    if isinstance(convolutions, int) and isinstance(dense, int) and min(convolutions, dense) >= 0:
        return GivenLayout((("conv.weights", (convolutions,)), ("fc.weights", (dense,))))
    return GivenLayout((("weights", (count,)),))
