"""Normalisation of weights before they are coded: what was measured on the training networks, stored and undone.

Every value is coded as (value - mean) / spread. Both belong to the architecture, never to the network at hand, so that
a network can be decoded from its codes alone: one pair for every tensor (`layer`: a layer's weights, its biases, its
running means), or one for every position of the vector (`position`, for zoos of few initialisations). Architectures
that were not there in fitting get the pair of their layer type and kind of tensor, pooled over all that were.

Legend for shapes: N networks, V values of one, S tensors of a layout that are coded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform.errors import TokenizerError
from zooplatform_igpg.vectors import tensor_kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform_igpg.vectors import VectorPlan

__all__ = ["NORMALISATIONS", "Normaliser", "Pair", "Sums"]

NORMALISATIONS = ("layer", "position")

_ANY = "any"
# Spread of a position relative to that of its tensor, below which rounding would be amplified.
_LEAST_SPREAD = 0.1


class Pair(NamedTuple):
    """Mean and spread of every value, (V,) float32 each."""

    mean: torch.Tensor
    spread: torch.Tensor

    def normalise(self, values: torch.Tensor) -> torch.Tensor:
        """(N, V) as they are coded."""
        return (values - self.mean.to(values.device)) / self.spread.to(values.device)

    def undo(self, values: torch.Tensor) -> torch.Tensor:
        """(N, V) as they are in networks."""
        return values * self.spread.to(values.device) + self.mean.to(values.device)


@dataclass
class Sums:
    """Running sums over the networks of one layout, (V,) float64 each."""

    plan: VectorPlan
    number: int
    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def of(cls, plan: VectorPlan) -> Sums:
        zero = torch.zeros(plan.num_values, dtype=torch.float64)
        return cls(plan, 0, zero, zero.clone())

    def add(self, values: torch.Tensor) -> None:
        """Take (N, V) into account."""
        exact = values.to(device="cpu", dtype=torch.float64)
        self.number += len(exact)
        self.first += exact.sum(0)
        self.second += exact.square().sum(0)


class Normaliser:
    """Means and spreads by architecture, and by layer type and kind of tensor for all others.

    Attributes:
        kind: one of `NORMALISATIONS`.
        known: by architecture id, mean and spread (2, S), or (2, V) of kind `position`.
        pooled: by `layer_type/tensor_kind`, `tensor_kind` and `any`, mean and spread.
    """

    def __init__(
        self,
        kind: str = "layer",
        known: Mapping[str, torch.Tensor] | None = None,
        pooled: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.kind = kind
        self.known = dict(known or {})
        self.pooled = dict(pooled or {})

    @classmethod
    def fit(cls, sums: Mapping[str, Sums], kind: str) -> Normaliser:
        """From the sums of every architecture, by its id."""
        known: dict[str, torch.Tensor] = {}
        totals: dict[str, torch.Tensor] = {}  # count, sum, sum of squares
        for architecture, found in sums.items():
            layers = found.plan.layer_of()
            rows = []
            for spec, start in zip(found.plan.coded, found.plan.starts, strict=True):
                own = slice(start, start + spec.num_elements)
                count = float(found.number * spec.num_elements)
                first, second = found.first[own], found.second[own]
                total = torch.stack([torch.tensor(count).double(), first.sum(), second.sum()])
                names = (f"{layers[spec.name].type}/", "", None)
                for name in names:
                    key = _ANY if name is None else f"{name}{tensor_kind(spec.name)}"
                    totals[key] = totals.get(key, torch.zeros(3, dtype=torch.float64)) + total
                if kind == "position":
                    rows.append(_by_position(first, second, found.number, _pair(total)[1]))
                else:
                    rows.append(torch.tensor(_pair(total)).unsqueeze(1))
            known[architecture] = torch.cat(rows, dim=1).float() if rows else torch.empty(2, 0)
        return cls(kind, known, {key: _pair(total) for key, total in totals.items()})

    def pair(self, plan: VectorPlan) -> Pair:
        """Mean and spread of every value of a layout.

        Raises:
            TokenizerError: nothing was measured.
        """
        sizes = torch.tensor([spec.num_elements for spec in plan.coded], dtype=torch.int64)
        table = self.known.get(plan.architecture)
        if table is None:
            layers = plan.layer_of()
            pairs = [self._fallback(layers[s.name].type, s.name) for s in plan.coded]
            table = torch.tensor(pairs, dtype=torch.float32).view(-1, 2).T
        elif self.kind == "position":
            return Pair(table[0], table[1])
        mean, spread = (row.repeat_interleave(sizes) for row in table)
        return Pair(mean, spread)

    def _fallback(self, layer_type: str, name: str) -> tuple[float, float]:
        kind = tensor_kind(name)
        for key in (f"{layer_type}/{kind}", kind, _ANY):
            if key in self.pooled:
                return self.pooled[key]
        raise TokenizerError(
            f"Nothing is known of values like those of {name!r}. Fit the tokenizer on networks of this kind."
        )


def _pair(total: torch.Tensor) -> tuple[float, float]:
    """Mean and spread from count, sum and sum of squares; a spread of 1 where there is none."""
    count, first, second = total.tolist()
    if not count:
        return 0.0, 1.0
    mean = first / count
    variance = second / count - mean * mean
    # What is left by rounding alone is no spread.
    usable = variance > 1e-12 * max(second / count, 1e-30)
    return mean, variance**0.5 if usable else 1.0


def _by_position(
    first: torch.Tensor, second: torch.Tensor, number: int, spread: float
) -> torch.Tensor:
    """(2, numbers): every position's own, its spread not far below that around all positions' means."""
    mean = first / max(1, number)
    variance = (second / max(1, number) - mean.square()).clamp(min=0)
    around = float(variance.mean().sqrt()) if len(variance) else 0.0
    least = _LEAST_SPREAD * (around if around > 1e-6 * spread else spread)
    return torch.stack([mean, variance.sqrt().clamp(min=least)])
