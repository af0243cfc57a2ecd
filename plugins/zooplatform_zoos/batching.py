"""From single networks to population batches of bounded size.

Legend: N networks of one layout, P elements of the main dtype of one network, E bytes of its other tensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.errors import SourceError
from zooplatform.interfaces import (
    CheckpointRecord,
    Layout,
    PopulationBatch,
    Progress,
    StateDict,
)
from zooplatform.layout import VectorLayout, layout_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy.typing as npt

__all__ = ["BATCH_BYTES", "Item", "Network", "Reports", "stream"]

# One batch, and all batches that are being filled. Heterogeneous zoos have thousands of layouts, so the second bounds
# the memory, not the first.
BATCH_BYTES = 64 << 20
_OPEN_BYTES = 192 << 20

_MAIN_DTYPES = ("float16", "float32", "float64")
_MAX_REPORTS = 1000


@dataclass
class Reports:
    """What goes wrong or is left out on the way; handed over with the next batch."""

    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)

    def fail(self, ref: str, reason: object) -> None:
        """A checkpoint that cannot be read; every one is reported."""
        self.failed.append((ref, str(reason)))

    def note(self, text: str) -> None:
        """Something worth knowing; said once, and only the first thousand different ones."""
        if text in self._said or len(self._said) > _MAX_REPORTS:
            return
        self._said.add(text)
        if len(self._said) > _MAX_REPORTS:
            text = f"more than {_MAX_REPORTS} notes; the rest are left out"
        self.notes.append(text)

    def take(self) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
        """What was reported since the last call."""
        failed, notes = tuple(self.failed), tuple(self.notes)
        self.failed.clear()
        self.notes.clear()
        return failed, notes


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One checkpoint in memory with its record and how to build it."""

    state: StateDict
    record: CheckpointRecord
    family: str = ""
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One checkpoint that can be read: its identity, what to call it in reports, and how."""

    key: str
    step: int | None
    ref: str
    load: Callable[[], Network]


@dataclass
class _Group:
    layout: Layout
    family: str
    name: str
    config: Mapping[str, Any]
    rows: list[CheckpointRecord] = field(default_factory=list)
    weights: list[npt.NDArray[Any]] = field(default_factory=list)
    aside: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    num_bytes: int = 0

    def batch(self, reports: Reports) -> PopulationBatch:
        failed, notes = reports.take()
        return PopulationBatch(
            layout=self.layout,
            weights=np.stack(self.weights),
            rows=self.rows,
            aside=np.stack(self.aside) if self.aside[0].size else None,
            family=self.family,
            name=self.name,
            config=self.config,
            failed=failed,
            notes=notes,
        )


def stream(
    items: Iterable[Item],
    reports: Reports,
    *,
    what: str,
    total: int | None,
    done: frozenset[tuple[str, int | None]],
    progress: Progress | None,
    batch_bytes: int = BATCH_BYTES,
    open_bytes: int = _OPEN_BYTES,
) -> Iterator[PopulationBatch]:
    """Read `items` one by one and yield them grouped by layout and configuration.

    A checkpoint that cannot be read is reported and the others go on; one that is in `done` is not read. At most
    `open_bytes` of weights are held before the largest group is yielded. The order depends only on the items.
    """
    groups: dict[tuple[Layout, str, str, str], _Group] = {}
    seen: set[tuple[str, int | None]] = set()
    held = 0
    for number, item in enumerate(items, start=1):
        identity = (item.key, item.step)
        if identity in seen:
            reports.fail(
                item.ref, f"the same run and step ({item.key}, {item.step}) occurred before"
            )
        elif identity not in done:
            seen.add(identity)
            try:
                network = item.load()
                layout, weights, aside = _pack(network.state, item.ref)
            except SourceError as error:
                reports.fail(item.ref, error)
            else:
                config = json.dumps(network.config, sort_keys=True, default=str)
                group_key = (layout, network.family, network.name, config)
                group = groups.get(group_key)
                if group is None:
                    group = groups[group_key] = _Group(
                        layout, network.family, network.name, network.config
                    )
                group.rows.append(network.record)
                group.weights.append(weights)
                group.aside.append(aside)
                size = weights.nbytes + aside.nbytes
                group.num_bytes += size
                held += size
                if group.num_bytes >= batch_bytes or held >= open_bytes:
                    largest = max(groups, key=lambda key: groups[key].num_bytes)
                    group = groups.pop(largest)
                    held -= group.num_bytes
                    yield group.batch(reports)
        if progress is not None:
            progress(what, number, total)
    for group in groups.values():
        yield group.batch(reports)
    if reports.failed or reports.notes:
        failed, notes = reports.take()
        yield PopulationBatch(
            layout=(), weights=np.empty((0, 0), np.float32), rows=(), failed=failed, notes=notes
        )


def _pack(state: StateDict, ref: str) -> tuple[Layout, npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """The layout, the (P,) elements of the main dtype and the (E,) bytes of everything else."""
    vector = VectorLayout(layout_of(state))
    if vector.dtype not in _MAIN_DTYPES or not vector.width:
        raise SourceError(
            ref,
            f"its weights are {vector.dtype}; populations are float16, float32 or float64.",
            "Use `local:` for other dtypes.",
        )
    main = [state[f.spec.name].reshape(-1) for f in vector.fields if not f.aside]
    others = [
        state[f.spec.name].contiguous().reshape(-1).view(torch.uint8)
        for f in vector.fields
        if f.aside
    ]
    aside = torch.cat(others) if others else torch.empty(0, dtype=torch.uint8)
    return vector.layout, torch.cat(main).numpy(), aside.numpy()
