"""Networks to fit on: as vectors of values, in batches of one layout, from a catalog or from state dicts.

Legend for shapes: B networks of a batch, V values of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform.datasets import WeightDataset
from zooplatform.errors import ConfigError
from zooplatform.layout import layout_of
from zooplatform_chunk.columns import columns_of_state
from zooplatform_igpg.normalise import Normaliser, Sums
from zooplatform_igpg.vectors import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zooplatform.interfaces import Layout, StateDict
    from zooplatform_igpg.vectors import VectorPlan
    from zooplatform_igpg.vq_config import VqConfig

__all__ = ["Corpus", "Group", "chunk_sample", "measure"]

_AT_ONCE = 1 << 22  # values that are read at once


class Group(NamedTuple):
    """B networks of one layout: `values` (B, V) float32 as `VectorPlan.values` gives them, `rows` their numbers."""

    plan: VectorPlan
    values: torch.Tensor
    rows: tuple[int, ...]


class Corpus:
    """Networks of any mix of layouts, each cut by a plan.

    Args:
        config: decides how they are cut.
        networks: a dataset, which is read in batches, or state dicts, which are held.
    """

    def __init__(self, config: VqConfig, networks: WeightDataset | Iterable[StateDict]) -> None:
        self._mode, self._size = config.mode, config.chunk_size
        self._data: WeightDataset | None = None
        self._held: dict[str, tuple[VectorPlan, list[torch.Tensor]]] = {}
        if isinstance(networks, WeightDataset):
            self._data = networks
            self.plans = {
                name: make_plan(vector.layout, vector.layers(), self._mode, self._size)
                for name, vector in networks.architectures.items()
            }
        else:
            self._hold(networks)
            self.plans = {name: plan for name, (plan, _) in self._held.items()}

    def _hold(self, states: Iterable[StateDict]) -> None:
        plans: dict[Layout, VectorPlan] = {}
        for state in states:
            layout = layout_of(state)
            plan = plans.get(layout)
            if plan is None:
                plan = plans[layout] = make_plan(layout, (), self._mode, self._size)
            row = plan.values(columns_of_state(state, layout), 1)
            self._held.setdefault(plan.architecture, (plan, []))[1].append(row)

    def __len__(self) -> int:
        if self._data is not None:
            return len(self._data)
        return sum(len(rows) for _, rows in self._held.values())

    def counts(self) -> dict[str, int]:
        """Networks of every architecture by its id."""
        if self._data is None:
            return {name: len(rows) for name, (_, rows) in self._held.items()}
        found = dict.fromkeys(self.plans, 0)
        for name in self._data.architecture_ids:
            found[name] += 1
        return found

    def groups(
        self, batch_size: int = 256, *, seed: int | None = None, epoch: int = 0
    ) -> Iterator[Group]:
        """Every network once, in batches of one layout; shuffled with a seed, another way in every epoch."""
        if self._data is not None:
            layouts = self._data.architectures
            names = self._data.architecture_ids
            for part in self._data.order(batch_size, seed=seed, epoch=epoch):
                plan = self.plans[names[int(part[0])]]
                step = _step(plan, len(part))
                for at in range(0, len(part), step):
                    rows = part[at : at + step]
                    weights = self._data.read(rows).weights
                    fields = layouts[plan.architecture].fields
                    columns = {
                        f.spec.name: weights[:, f.offset : f.offset + f.spec.num_elements]
                        for f in fields
                        if not f.aside
                    }
                    yield Group(plan, plan.values(columns, len(rows)), tuple(rows.tolist()))
            return
        draw = None if seed is None else torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        parts: list[tuple[str, torch.Tensor]] = []
        first: dict[str, int] = {}
        before = 0
        for name, (_, held) in self._held.items():
            first[name], before = before, before + len(held)
            order = torch.arange(len(held))
            if draw is not None:
                order = torch.randperm(len(held), generator=draw)
            parts += [(name, chosen) for chosen in torch.split(order, batch_size)]
        if draw is not None:
            parts = [parts[at] for at in torch.randperm(len(parts), generator=draw).tolist()]
        for name, chosen in parts:
            plan, held = self._held[name]
            values = torch.cat([held[at] for at in chosen.tolist()])
            yield Group(plan, values, tuple(first[name] + at for at in chosen.tolist()))


def measure(corpus: Corpus, kind: str) -> Normaliser:
    """The normalisation that all networks of a corpus give.

    Raises:
        ConfigError: there is no network, or none with a value.
    """
    sums: dict[str, Sums] = {}
    for plan, values, _ in corpus.groups():
        sums.setdefault(plan.architecture, Sums.of(plan)).add(values)
    if not any(found.plan.num_values for found in sums.values()):
        raise ConfigError(
            "There is no network with floating-point weights to fit on. Give a query, or states, that hold some."
        )
    return Normaliser.fit(sums, kind)


def chunk_sample(
    corpus: Corpus, normaliser: Normaliser, number: int, least: int, seed: int
) -> torch.Tensor:
    """(M, C) about `number` normalised chunks of all networks, drawn alike from all.

    Chunks with padding are left out unless fewer than `least` would be left.
    """
    full = {name: plan.mask.all(1) for name, plan in corpus.plans.items()}
    counts = corpus.counts()
    if sum(counts[name] * int(rows.sum()) for name, rows in full.items()) < least:
        full = {name: torch.ones_like(rows) for name, rows in full.items()}
    total = sum(counts[name] * int(rows.sum()) for name, rows in full.items())
    share = min(1.0, number / max(1, total))
    draw = torch.Generator().manual_seed(seed)
    found: list[torch.Tensor] = []
    for plan, values, _ in corpus.groups():
        chunks = plan.chunks(normaliser.pair(plan).normalise(values))
        rows = chunks[:, full[plan.architecture]].flatten(0, 1)
        if share < 1:
            rows = rows[torch.rand(len(rows), generator=draw) < share]
        found.append(rows)
    return torch.cat(found)


def _step(plan: VectorPlan, most: int) -> int:
    return max(1, min(most, _AT_ONCE // max(1, plan.num_values)))
