"""Codes of the networks of a fit with what can be told of them, and their cutting into steps.

Legend for shapes: N networks, B networks of a step, T tokens of a network, Q kinds of networks, L levels, K codes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from zooplatform.fit_state import digest
from zooplatform_igpg.conditions import Told
from zooplatform_igpg.sampling import blocks_of

if TYPE_CHECKING:
    from zooplatform_igpg.sampling import Block
    from zooplatform_igpg.transformer import CodeTransformer, Places

__all__ = ["CodeSide", "Group", "Step", "Tables"]


class Group(NamedTuple):
    """The networks of one blueprint: `codes` (copies, N, T) int32, `rows` (N,) their numbers in the tables, `places` of
    the T tokens and `mask` (T,), True where they count."""

    codes: torch.Tensor
    rows: torch.Tensor
    places: Places
    mask: torch.Tensor


class Tables(NamedTuple):
    """What can be told of networks.

    Attributes:
        texts: (Q, captions, U) understood instructions.
        datasets: (D, draws, I), NaN where there are no images.
        classes: (D, draws, K, I / 2), or None.
        architectures: (blueprints, A).
        text, dataset, architecture, level, basin: (N,) the number of each network's; -1 is none.
    """

    texts: torch.Tensor
    datasets: torch.Tensor
    classes: torch.Tensor | None
    architectures: torch.Tensor
    text: torch.Tensor
    dataset: torch.Tensor
    architecture: torch.Tensor
    level: torch.Tensor
    basin: torch.Tensor

    def told(self, rows: torch.Tensor, generator: torch.Generator | None) -> Told:
        """Of networks (B,), in words and with examples drawn by chance; without a generator the first ones."""
        count = len(rows)
        number, draw = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
        if generator is not None:
            number = torch.randint(self.texts.shape[1], (count,), generator=generator)
            draw = torch.randint(max(1, self.datasets.shape[1]), (count,), generator=generator)
        dataset = self.dataset[rows]
        known = dataset >= 0
        at = dataset.clamp_min(0)
        vectors = self.datasets[at, draw].masked_fill(~known[:, None], math.nan)
        classes = None
        if self.classes is not None:
            classes = self.classes[at, draw].masked_fill(~known[:, None, None], math.nan)
        return Told(
            text=self.texts[self.text[rows], number],
            dataset=vectors,
            name=dataset,
            architecture=self.architectures[self.architecture[rows]],
            level=self.level[rows],
            basin=self.basin[rows],
            classes=classes,
        )


class Step(NamedTuple):
    """Networks (B,) of a group at one block."""

    group: int
    block: Block
    chosen: torch.Tensor


class CodeSide:
    """Codes of one side of a fit, cut into blocks.

    Args:
        groups: by blueprint.
        tables: what is told of them.
        context, window: of the transformer.
    """

    def __init__(self, groups: list[Group], tables: Tables, context: int, window: int) -> None:
        self.groups, self.tables = groups, tables
        self.blocks = [blocks_of(g.codes.shape[2], context, window) for g in groups]

    def __len__(self) -> int:
        return sum(g.codes.shape[1] for g in self.groups)

    def num_steps(self, batch_size: int) -> int:
        return sum(
            -(-g.codes.shape[1] // batch_size) * len(blocks)
            for g, blocks in zip(self.groups, self.blocks, strict=True)
        )

    def steps(self, batch_size: int, draw: np.random.Generator | None = None) -> list[Step]:
        """Every network at every block once, in an order by chance; without a generator in theirs."""
        found = []
        for number, group in enumerate(self.groups):
            count = group.codes.shape[1]
            for block in self.blocks[number]:
                order = np.arange(count) if draw is None else draw.permutation(count)
                found += [
                    Step(number, block, torch.from_numpy(order[at : at + batch_size]))
                    for at in range(0, count, batch_size)
                ]
        return found if draw is None else [found[at] for at in draw.permutation(len(found))]

    def counts(self, model: CodeTransformer) -> torch.Tensor:
        """(L, K) how often each code of a model is used."""
        found = torch.zeros((model.levels, model.codes), dtype=torch.int64)
        for group in self.groups:
            for level in sorted(set(group.places.levels.tolist())):
                at = (group.places.levels == level) & group.mask
                codes = group.codes[:, :, at].flatten().long()
                found[level] += torch.bincount(codes, minlength=model.codes)
        return found

    def digest(self) -> str:
        parts: list[bytes] = []
        for group in self.groups:
            parts.append(group.codes.numpy().tobytes())
            parts.append(group.places.positions.numpy().tobytes())
        for table in self.tables:
            if isinstance(table, torch.Tensor):
                parts.append(table.numpy().tobytes())
        return digest(*parts)
