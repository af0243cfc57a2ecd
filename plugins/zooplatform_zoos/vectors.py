"""Source `vector-zoo:`: files `{data set: (padded weight vectors, ...)}` with the layout given beside them.

`layout.json` (or `<stem>.layout.json`) names the tensors: `{"tensors": [{"name", "shape"}, ...], "family", "config"}`,
or one such object per data set under `"layouts"`. `"columns"` names what follows the vectors in each tuple:
`["vectors", "test_accuracy"]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
from zooplatform_zoos.layouts import GivenLayout, find_layout, layout_from_json, parse_layout
from zooplatform_zoos.names import file_digest, metric_name
from zooplatform_zoos.torchfile import check_tensor, read_torch

__all__ = ["VectorZoo"]

_COLUMNS = 'Write "columns": ["vectors", ...]: what each entry of a tuple is, in order, the vectors among them.'


class VectorZoo:
    """Every vector of a file; padding behind the layout is removed."""

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
        """Batches of one layout each; every vector is a model of its own.

        Raises:
            SourceError: the layout is missing or the file holds no vectors.
        """
        path = _file(ref)
        beside = find_layout(path)
        if beside is None:
            raise SourceError(
                path,
                "vectors carry no layout and none is beside them.",
                f"Write {path.stem}.layout.json: names and shapes of the tensors in order.",
            )
        layouts, columns = _layouts(beside)
        content = read_torch(path)
        if not isinstance(content, Mapping) or not content:
            raise SourceError(
                path,
                "it is no dict of data sets with weight vectors.",
                "Name another kind of zoo (`zoo plugins` lists them), or ingest it as a checkpoint: local:FILE.",
            )
        reports = Reports()
        revision = file_digest(path)
        items = _items(content, path, ref, layouts, columns, revision, reports)
        yield from stream(items, reports, what=path.name, total=None, done=done, progress=progress)


def _file(ref: str) -> Path:
    path = Path(ref).expanduser()
    if not ref or not path.is_file():
        raise SourceError(
            f"vector-zoo:{ref}", "there is no such file.", "Give the file: vector-zoo:FILE.pt."
        )
    return path.resolve()


def _layouts(path: Path) -> tuple[dict[str, GivenLayout], tuple[str, ...]]:
    """The layout of each data set (of every other under the empty name), and the names of the columns."""
    columns: tuple[str, ...] = ("vectors",)
    parsed = parse_layout(path)
    if path.suffix == ".json":
        raw = json.loads(path.read_bytes()).get("columns", ["vectors"])
        if not isinstance(raw, list) or not all(isinstance(name, str) for name in raw):
            raise SourceError(path, '"columns" is no list of names.', _COLUMNS)
        columns = tuple(raw)
        if "vectors" not in columns:
            raise SourceError(path, '"columns" does not say where the vectors are.', _COLUMNS)
    if isinstance(parsed, GivenLayout):
        return {"": parsed}, columns
    listed = parsed["layouts"]
    if not isinstance(listed, Mapping):
        raise SourceError(
            path,
            '"layouts" is no object with one layout per data set.',
            'Write {"layouts": {"mnist": {"tensors": [...]}, ...}}.',
        )
    return {
        str(n): layout_from_json(v, f"{path}, {n}")
        for n, v in listed.items()
        if isinstance(v, Mapping)
    }, columns


def _items(
    content: Mapping[Any, Any],
    path: Path,
    ref: str,
    layouts: Mapping[str, GivenLayout],
    columns: Sequence[str],
    revision: str,
    reports: Reports,
) -> Iterator[Item]:
    for key, value in content.items():
        dataset = str(key)
        shown = f"vector-zoo:{ref} ({dataset})"
        layout = layouts.get(dataset, layouts.get(""))
        if layout is None:
            reports.fail(shown, "the layout file does not know this data set")
            continue
        parts = value if isinstance(value, list | tuple) and not _is_vectors(value) else (value,)
        named = dict(zip(columns, parts, strict=False))
        if len(parts) > len(columns):
            reports.note(
                f"{dataset}: {len(parts) - len(columns)} parts that "
                '"columns" does not name were left out'
            )
        vectors = named.pop("vectors", None)
        if isinstance(vectors, torch.Tensor) and vectors.dim() == 1:
            vectors = vectors[None]
        if not _is_vectors(vectors) and not (
            isinstance(vectors, torch.Tensor) and vectors.dim() == 2
        ):
            reports.fail(shown, "no matrix or list of weight vectors is where they should be")
            continue
        assert vectors is not None
        for row in range(len(vectors)):
            model = f"{dataset}/{row}"
            info = ModelInfo(
                key=f"vector-zoo:{path.stem}@{revision[:12]}/{model}",
                name=model,
                source=f"vector-zoo:{ref}",
                revision=revision,
                config={"dataset": dataset},
            )
            metrics = tuple(
                MetricRecord(
                    name=metric_name(n)[0], value=v, dataset=dataset, split=metric_name(n)[1]
                )
                for n, values in named.items()
                if (v := _number(values, row)) is not None
            )
            record = CheckpointRecord(model=info, metrics=metrics)
            load = partial(_load, vectors[row], layout, record, f"{shown} row {row}")
            yield Item(info.key, None, f"{shown} row {row}", load)


def _is_vectors(value: object) -> bool:
    """A list of 1-D tensors, each a network."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, torch.Tensor) and item.dim() == 1 for item in value)
    )


def _number(values: Any, row: int) -> float | None:
    """Entry `row` of a column, where it is a number."""
    if isinstance(values, torch.Tensor | list | tuple) and row < len(values):
        value = values[row]
        if isinstance(value, torch.Tensor):
            return float(value) if value.numel() == 1 else None
        return float(value) if isinstance(value, int | float) else None
    return None


def _load(vector: torch.Tensor, layout: GivenLayout, record: CheckpointRecord, ref: str) -> Network:
    state = layout.split(check_tensor(vector, ref), ref)
    return Network(state=state, record=record, family=layout.family, config=layout.config)
