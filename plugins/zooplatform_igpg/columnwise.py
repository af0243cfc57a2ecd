"""One layer's weights as codes, chosen for the layer's outputs.

Of B networks at once, all units in parallel, chunk after chunk along their inputs. With E the error of the weights and
H the second moments of the inputs, the squared error of the outputs is the trace of E H E'. A chunk's code is the one
that leaves least of it once the weights still to be coded have made up for its error as well as they can.

Legend for shapes: B networks, O units, I inputs of a unit, J <= d columns of a chunk, c chunks of a unit, K codes,
q levels.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform_igpg.beam import Column, search

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["code_columns"]


def code_columns(
    tables: torch.Tensor,
    weights: torch.Tensor,
    moments: torch.Tensor,
    mean: torch.Tensor,
    spread: torch.Tensor,
    *,
    damping: float = 0.01,
    metric: str = "hessian",
    sweeps: int = 0,
    beam: int = 1,
    order: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights that the codes stand for (B, O, I), and the codes (B, O, c, q).

    Args:
        tables: (q, K, d), in normalised weights.
        weights: (B, O, I), what is to be coded.
        moments: (B, I, I) or (1, I, I), the mean of the products of inputs.
        mean, spread: (O, I), the normalisation.
        damping: share of the mean of the diagonal of `moments` that is added to it.
        metric: `hessian` chooses the code that is best for the outputs, `plain` the nearest in normalised weights.
        sweeps: how often all chunks are coded again, given all others.
        beam: of every unit so many sequences of codes are kept, see `beam`; 1 takes the best code at every chunk, as do
            several levels and the metric `plain`.
        order: of the chunks; as they lie by default.
        limits: how many of the first codes each chunk may have; all by default.
    """
    size = tables.shape[2]
    number, units, inputs = weights.shape
    every = torch.split(torch.arange(inputs, device=weights.device), size)
    order = range(len(every)) if order is None else order
    # Everything in the order of coding; what comes out goes back to where it belongs.
    sorting = torch.cat([every[at] for at in order])
    layer = _Layer(
        tables, weights[:, :, sorting], _damped(moments[:, sorting][:, :, sorting], damping),
        mean[:, sorting], spread[:, sorting], metric, limits,
    )  # fmt: skip
    ends = list(accumulate(len(every[at]) for at in order))
    columns = {at: slice(end - len(every[at]), end) for at, end in zip(order, ends, strict=True)}
    codes = torch.empty(
        (number, units, len(every), len(tables)), dtype=torch.int64, device=weights.device
    )
    greedy = beam == 1 or len(tables) > 1 or metric == "plain"
    found = layer.carried(columns, codes) if greedy else layer.searched(columns, codes, beam)
    for _ in range(sweeps):
        layer.sweep(columns, found, codes)
    return found[:, :, torch.argsort(sorting)], codes


class _Layer(NamedTuple):
    """What is to be coded; see `code_columns`. `moments` are damped."""

    tables: torch.Tensor
    weights: torch.Tensor
    moments: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    metric: str
    limits: Sequence[int] | None

    def codes_of(self, at: int) -> torch.Tensor:
        """(q, K, d) the codes that a chunk may have."""
        return self.tables if self.limits is None else self.tables[:, : self.limits[at]]

    def scaled(self, own: slice, factor: torch.Tensor) -> torch.Tensor:
        """(B or 1, J, J), which an error in normalised weights is multiplied by; `factor` is for weights as they are.

        Spreads differ between units only where every position has its own; the nearest is judged by their mean then.
        """
        return self.spread[:, own].mean(0).unsqueeze(1) * factor

    def searched(
        self, columns: Mapping[int, slice], codes: torch.Tensor, width: int
    ) -> torch.Tensor:
        """As `carried`, with several sequences of codes for every unit."""
        factors = _inverse_factors(self.moments)
        ready = {}
        for at, own in columns.items():
            inverse = torch.linalg.inv(factors[:, own, own])
            ready[at] = Column(
                own,
                self.codes_of(at)[0, :, : own.stop - own.start],
                self.scaled(own, inverse),
                inverse,
                factors[:, own, own.stop :],
            )
        codes[..., 0], found = search(self.weights, self.mean, self.spread, ready, width)
        return found

    def carried(self, columns: Mapping[int, slice], codes: torch.Tensor) -> torch.Tensor:
        """Code chunk after chunk, errors carried over to those that follow; fills `codes`, gives weights (B, O, I)."""
        factors = _inverse_factors(self.moments)
        rest, found = self.weights.clone(), torch.empty_like(self.weights)
        for at, own in columns.items():
            # The error that stays when later weights make up for it is that of error @ inverse.
            inverse = torch.linalg.inv(factors[:, own, own])
            codes[:, :, at], found[:, :, own] = self.choose(rest[:, :, own], own, inverse, at)
            error = (rest[:, :, own] - found[:, :, own]) @ inverse
            rest[:, :, own.stop :] -= error @ factors[:, own, own.stop :]
        return found

    def sweep(self, columns: Mapping[int, slice], found: torch.Tensor, codes: torch.Tensor) -> None:
        """Code every chunk again in place, given all others, where that makes the error less."""
        slopes = (found - self.weights) @ self.moments
        for at, own in columns.items():
            block, now = self.moments[:, own, own], found[:, :, own]
            best = now - torch.linalg.solve(block, slopes[:, :, own].transpose(1, 2)).transpose(
                1, 2
            )
            factor = torch.linalg.cholesky(block)
            chosen, value = self.choose(best, own, factor, at)
            before, after = (((one - best) @ factor).square().sum(2) for one in (now, value))
            better = (after < before).unsqueeze(2)
            slopes += torch.where(better, value - now, 0.0) @ self.moments[:, own]
            codes[:, :, at] = torch.where(better, chosen, codes[:, :, at])
            found[:, :, own] = torch.where(better, value, now)

    def choose(
        self, wanted: torch.Tensor, own: slice, factor: torch.Tensor, at: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (B, O, q) and the weights (B, O, J) that they stand for, nearest to `wanted` (B, O, J).

        Args:
            wanted: weights of the columns `own`.
            own: J of the inputs.
            factor: (B or 1, J, J), which an error is multiplied by before it is squared.
            at: number of the chunk.
        """
        mean, spread = self.mean[:, own], self.spread[:, own]
        width = wanted.shape[2]
        rest = (wanted - mean) / spread
        total = torch.zeros_like(rest)
        plain = self.metric == "plain" or width == 1
        scaled = self.scaled(own, factor)
        codes = []
        for table in self.codes_of(at):
            shown = table[:, :width]
            left, right = (rest, shown.unsqueeze(0)) if plain else (rest @ scaled, shown @ scaled)
            half = right.square().sum(2).unsqueeze(1) / 2
            code = _least(half - left @ right.transpose(1, 2))
            codes.append(code)
            rest, total = rest - shown[code], total + shown[code]
        return torch.stack(codes, dim=2), total * spread + mean


def _least(scores: torch.Tensor) -> torch.Tensor:
    """Index of the least along the last axis; numpy finds it four times as fast on the CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmin(2))
    return scores.argmin(2)


def _damped(moments: torch.Tensor, damping: float) -> torch.Tensor:
    diagonal = moments.diagonal(dim1=1, dim2=2)
    # Inputs that are never there leave zeros, whose weights are then coded on their own.
    extra = damping * diagonal.mean(1, keepdim=True).clamp(min=1e-12)
    return moments + torch.diag_embed(extra.expand_as(diagonal))


def _inverse_factors(moments: torch.Tensor) -> torch.Tensor:
    """(B, I, I) upper triangular U with U'U the inverse of `moments`; damped more where rounding demands it."""
    for _ in range(8):
        factor, failed = torch.linalg.cholesky_ex(moments)
        if not bool(failed.any()):
            inverse = torch.cholesky_inverse(factor)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not bool(failed.any()):
                found: torch.Tensor = upper
                return found
        moments = _damped(moments, 0.05)
    # Only inputs that are not finite come so far: weights are then coded on their own.
    return torch.eye(moments.shape[-1], device=moments.device).expand_as(moments)
