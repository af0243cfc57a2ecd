"""Source `model-dataset:`: pickled data sets of networks (`dataset_*.pt`), whose classes nobody needs to have.

The files hold `{trainset, valset, testset}` of objects with `data_in` (or `data`), `labels`, `paths`, `epochs` and
`properties`; each is a flat list with one entry per checkpoint, or a list of lists, one per network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    Progress,
    StateDict,
)
from zooplatform_zoos.batching import Item, Network, Reports, stream
from zooplatform_zoos.layouts import GivenLayout, find_layout, known_layout, parse_layout
from zooplatform_zoos.names import file_digest, is_accuracy, metric_name, seed_of
from zooplatform_zoos.published import published_config
from zooplatform_zoos.stubs import LazyTensor, Stub, read_with_stubs

if TYPE_CHECKING:
    import torch

__all__ = ["ModelDataset"]

_ROLES = {"trainset": "train", "valset": "val", "testset": "test"}
_DATA = ("data_in", "data", "weights")
_COUNTS = ("training_iteration", "epoch", "epochs")
_EPOCH = re.compile(r"(?:epoch|ep|checkpoint)[_=: ]*0*(\d+)")
_PERCENT = 1.5


@dataclass(frozen=True, slots=True)
class _Row:
    """One checkpoint of a file: where it stands in its part, and what is said of it."""

    role: str
    at: int
    data: Any
    path: str
    epoch: int | None
    properties: Mapping[str, Any]


class ModelDataset:
    """Every checkpoint of a pickled data set; which part it was in becomes the hyper-parameter `split`."""

    def describe(self, ref: str) -> Mapping[str, str]:
        """Name (the file's) and revision (SHA-256 of the file)."""
        path = _file(ref)
        return {"name": path.stem, "revision": file_digest(path)}

    def batches(
        self,
        ref: str,
        *,
        done: frozenset[tuple[str, int | None]] = frozenset(),
        progress: Progress | None = None,
    ) -> Iterator[PopulationBatch]:
        """Batches of one layout each.

        Raises:
            SourceError: the file is damaged or holds no data set of networks.
        """
        path = _file(ref)
        reports = Reports()
        rows = list(_rows(read_with_stubs(path), path, reports))
        if not rows:
            raise SourceError(
                path,
                "no data set of networks: no object with data_in or data is in it.",
                "Files of images (dataset.pt of a zoo) hold no weights; give dataset_*.pt.",
            )
        revision = file_digest(path)
        percent = any(
            is_accuracy(name) and isinstance(value, int | float) and _PERCENT < value < 1e6
            for row in rows
            for name, value in row.properties.items()
        )
        if percent:
            reports.note("accuracies are given in percent; stored as fractions")
        roles: dict[str, str] = {}
        for row in rows:
            if roles.setdefault(row.path, row.role) != row.role:
                reports.note(
                    f"{row.path} is in {roles[row.path]} and in {row.role}: the split leaks"
                )
        given = find_layout(path)
        layout = parse_layout(given) if given is not None else None
        if given is not None and not isinstance(layout, GivenLayout):
            raise SourceError(given, "it holds several layouts, a data set file has one.")
        prefix = f"model-dataset:{path.stem}@{revision[:12]}/"
        items = (
            Item(
                prefix + row.path,
                row.epoch,
                f"model-dataset:{ref} ({row.role} {row.at})",
                partial(_load, row, layout, ref, prefix, revision, percent),
            )
            for row in rows
        )
        yield from stream(
            items, reports, what=path.name, total=len(rows), done=done, progress=progress
        )


def _file(ref: str) -> Path:
    path = Path(ref).expanduser()
    if not ref or not path.is_file():
        raise SourceError(
            f"model-dataset:{ref}",
            "there is no such file.",
            "Give the dataset_*.pt: model-dataset:FILE.",
        )
    return path.resolve()


def _rows(content: object, path: Path, reports: Reports) -> Iterator[_Row]:
    parts: Mapping[Any, Any] = content if isinstance(content, Mapping) else {"": content}
    for name, part in parts.items():
        attributes = part.attributes if isinstance(part, Stub) else part
        if not isinstance(attributes, Mapping):
            reports.note(f"{name}: not a data set, left out")
            continue
        data = next((attributes[key] for key in _DATA if _filled(attributes.get(key))), None)
        if data is None:
            reports.note(f"{name}: no {' or '.join(_DATA)}, left out")
            continue
        yield from _part(_ROLES.get(str(name), str(name)), data, attributes, path)


def _filled(value: object) -> bool:
    return isinstance(value, list | tuple | LazyTensor) and len(value) > 0


def _part(role: str, data: Any, attributes: Mapping[str, Any], path: Path) -> Iterator[_Row]:
    """The checkpoints of one part, flat lists and lists of lists alike."""
    places = list(_places(data))
    properties = attributes.get("properties")
    named = properties if isinstance(properties, Mapping) else {}
    for at, place in enumerate(places):
        value = {
            key: _at(attributes.get(key), place, at, len(places))
            for key in ("paths", "labels", "epochs")
        }
        own = {
            str(key): _plain(found)
            for key, values in named.items()
            if (found := _at(values, place, at, len(places))) is not None
        }
        run = _text(value["paths"])
        label = _text(value["labels"])
        counts = [_plain(value["epochs"]), *(own.get(key) for key in _COUNTS)]
        match = _EPOCH.search(label) or _EPOCH.search(run)
        epoch = next((int(c) for c in counts if isinstance(c, int | float) and isfinite(c)), None)
        if epoch is None and match:
            epoch = int(match[1])
        yield _Row(role, at, _take(data, place), run or label or f"{role} {at}", epoch, own)


def _places(data: Any) -> Iterator[tuple[int, ...]]:
    """Index paths of the checkpoints: (i,) in flat data, (network, i) in nested data."""
    for i in range(len(data)):
        inner = data[i]
        nested = isinstance(inner, list | tuple) or (
            isinstance(inner, LazyTensor) and len(inner.shape) == 2
        )
        if nested:
            yield from ((i, j) for j in range(len(inner)))
        else:
            yield (i,)


def _take(data: Any, place: tuple[int, ...]) -> Any:
    for index in place:
        data = data[index]
    return data


def _at(values: Any, place: tuple[int, ...], at: int, total: int) -> Any:
    """The entry of `values` that belongs to a checkpoint: nested like the data, flat, or one per network."""
    if not _filled(values):
        return None
    if len(place) == 2 and place[0] < len(values):
        inner = values[place[0]]
        if _filled(inner):
            return inner[place[1]] if place[1] < len(inner) else None
        return values[at] if len(values) == total else inner
    if len(values) == total:
        return values[at]
    flat = [item for inner in values for item in (inner if _filled(inner) else (inner,))]
    return flat[at] if len(flat) == total else None


def _plain(value: Any) -> Any:
    """A number, text or None; located numbers are read."""
    if isinstance(value, LazyTensor):
        return value.read().item() if not value.shape else None
    return value if isinstance(value, int | float | str | bool) else _text(value) or None


def _text(value: Any) -> str:
    """A path or label; pickled paths are stubs with their pieces as arguments."""
    if isinstance(value, str):
        return value
    if isinstance(value, Stub) and value.name.startswith("pathlib"):
        pieces = [piece for piece in value.given if isinstance(piece, str)]
        return str(PurePosixPath(*pieces)) if pieces else ""
    return ""


def _load(
    row: _Row,
    layout: GivenLayout | Mapping[str, Any] | None,
    ref: str,
    prefix: str,
    revision: str,
    percent: bool,
) -> Network:
    config: dict[str, Any] = {"split": row.role} if row.role else {}
    metrics = []
    for name, value in row.properties.items():
        if name in _COUNTS:
            continue
        if "::" in name or isinstance(value, str | bool) or value is None:
            config[name] = value
            continue
        ours, split = metric_name(name)
        scaled = float(value) / 100 if percent and is_accuracy(name) else float(value)
        metrics.append(MetricRecord(name=ours, value=scaled, split=split))
    if percent:
        config["source::accuracy_unit"] = "percent"
    state = _state(row, layout, config, f"model-dataset:{ref} ({row.role} {row.at})")
    record = CheckpointRecord(
        model=ModelInfo(
            key=prefix + row.path,
            name=row.path,
            source=f"model-dataset:{ref}",
            revision=revision,
            seed=seed_of(config),
            config=config,
        ),
        step=row.epoch,
        epoch=None if row.epoch is None else float(row.epoch),
        metrics=tuple(metrics),
    )
    given = layout if isinstance(layout, GivenLayout) else GivenLayout(())
    network = published_config(state, config)
    if given.family or network is None:
        return Network(state=state, record=record, family=given.family, config=given.config)
    return Network(state=state, record=record, family="cnn", name=network["preset"], config=network)


def _state(
    row: _Row, layout: GivenLayout | Mapping[str, Any] | None, config: Mapping[str, Any], ref: str
) -> StateDict:
    if isinstance(row.data, Mapping):
        state = {
            str(name): value.read()
            for name, value in row.data.items()
            if isinstance(value, LazyTensor)
        }
        if len(state) != len(row.data) or not state:
            raise SourceError(ref, "its state dict holds other things than tensors.")
        return state
    if not isinstance(row.data, LazyTensor) or len(row.data.shape) != 1:
        raise SourceError(ref, "it is neither a state dict nor a vector.")
    vector: torch.Tensor = row.data.read()
    if not isinstance(layout, GivenLayout):
        dropout = config.get("model::dropout")
        known = known_layout(
            vector.numel(), dropout=isinstance(dropout, int | float) and dropout > 0
        )
        if known is None:
            raise SourceError(
                ref,
                f"no network of {vector.numel()} parameters is known.",
                "Put layout.json, layout.csv or index_dict.json beside the file.",
            )
        layout = known
    return layout.split(vector, ref)
