"""Kernel density estimates of the chunks of networks.

The density of a chunk is the mean over anchors of normal distributions around the anchor's own chunk, independent in
each value, with a standard deviation of `width` times the spread of the value among anchors.

Legend for shapes: A anchors, V validation networks, P values of a network, C chunks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WIDTHS", "Densities", "likelihoods", "spread_within"]

WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_COMPARED = 256  # networks of either side that widths are compared on, at most


class Densities(NamedTuple):
    """Attributes:
    anchors: (A, P).
    spread: (P,) standard deviation of each value among anchors.
    chunk: (P,) the chunk of each value.
    """

    anchors: torch.Tensor
    spread: torch.Tensor
    chunk: torch.Tensor

    def draw(
        self, rows: torch.Tensor, width: float, random: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(P,) a network whose chunks are drawn each by itself, and (C,) the anchors that they lie near.

        Args:
            rows: the anchors that may be drawn.
            width: of the kernels, over the spread.
            random: source of the draws.
        """
        count = int(self.chunk.max()) + 1
        chosen = rows[torch.randint(len(rows), (count,), generator=random)]
        values = self.anchors[chosen[self.chunk], torch.arange(len(self.chunk))]
        noise = torch.randn(len(values), generator=random)
        return values + width * self.spread * noise, chosen


def spread_within(weights: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """(P,) standard deviation of each value of (A, P) networks from the mean of its cluster."""
    found = of.bincount()
    count, sizes = len(found), found.clamp_min(1)
    values = weights.double()
    sums = torch.zeros(count, values.shape[1], dtype=torch.float64).index_add_(0, of, values)
    left = values - (sums / sizes[:, None])[of]
    free = max(1, len(weights) - int((found > 0).sum()))
    return (left.square().sum(dim=0) / free).sqrt().float()


def likelihoods(found: Densities, held_out: torch.Tensor, widths: Sequence[float]) -> list[float]:
    """Nats per value of the (V, P) validation networks under each width, mean over networks.

    Without validation networks each anchor is judged by the others. Values without spread do not count; -inf where
    nothing can be judged.
    """
    usable = found.spread > 0
    anchors = _few(found.anchors)
    judged = _few(held_out) if len(held_out) else anchors
    itself = not len(held_out)
    count = len(anchors) - itself
    if count < 1 or not usable.any():
        return [-math.inf] * len(widths)
    sums = torch.zeros(len(widths), len(judged), dtype=torch.float64)
    spread = found.spread[usable]
    one, other = judged[:, usable] / spread, anchors[:, usable] / spread
    chunk = found.chunk[usable]
    sizes = chunk.bincount()
    places = torch.tensor_split(chunk.argsort(stable=True), sizes.cumsum(0)[:-1].tolist())
    for columns in places:
        if not len(columns):
            continue
        # (V, A) squared distances; by differences, so that near ones keep their digits.
        squares = torch.cdist(
            one[:, columns], other[:, columns], compute_mode="donot_use_mm_for_euclid_dist"
        )
        squares = squares.double().square()
        if itself:
            squares.fill_diagonal_(torch.inf)
        for at, width in enumerate(widths):
            if width > 0:
                near = (-squares / (2 * width**2)).logsumexp(dim=1) - math.log(count)
                sums[at] += near - len(columns) * math.log(width * math.sqrt(2 * math.pi))
            else:
                sums[at] = -torch.inf
    per_value = (sums.mean(dim=1) - float(spread.double().log().sum())) / len(spread)
    return [float(value) for value in per_value]


def _few(weights: torch.Tensor) -> torch.Tensor:
    """So many evenly spaced rows as are compared."""
    if len(weights) <= _COMPARED:
        return weights
    return weights[torch.linspace(0, len(weights) - 1, _COMPARED).long()]
