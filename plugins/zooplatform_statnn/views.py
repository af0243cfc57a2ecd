"""One layer of a batch of networks, with what several statistics need of it computed once.

Legend for shapes: B networks, O output units, I input units, K values per pair of units, N = O * I * K.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform_statnn.layers import LayerPlan, Piece

__all__ = [
    "TINY",
    "LayerView",
    "ordered",
    "quantiles",
    "quantiles_of_ordered",
    "safe_log",
    "singular_values",
    "spread",
]

TINY = 1e-12
# Larger weights are as good as infinite: their squares, and products of two layers, still fit.
LARGEST = 1e9
# Cosines and spectra are of at most this many units, those of largest norm: a choice that no order of units changes.
MOST_UNITS = 512
# Of larger tensors the quantiles are those of every n-th value.
MOST_SORTED = 1 << 24
# Products of smaller layers are taken in double precision, so that small singular values keep their digits.
DOUBLE_BELOW = 1 << 20


def safe_log(values: torch.Tensor) -> torch.Tensor:
    return values.clamp_min(TINY).log()


def quantiles(values: torch.Tensor, at: Sequence[float]) -> torch.Tensor:
    """(B, Q) quantiles of (B, n) along the last axis, interpolated linearly."""
    return quantiles_of_ordered(ordered(values), at)


def ordered(values: torch.Tensor) -> torch.Tensor:
    """(B, n) each row in ascending order; of very long rows every n-th value."""
    count = values.shape[-1]
    if count > MOST_SORTED:
        values = values[:, :: -(-count // MOST_SORTED)]
    # numpy sorts float32 with vector instructions, many times faster than torch.
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def quantiles_of_ordered(values: torch.Tensor, at: Sequence[float]) -> torch.Tensor:
    """(B, Q) quantiles of rows (B, n) in ascending order."""
    count = values.shape[-1]
    place = torch.tensor(at, dtype=torch.float64) * (count - 1)
    low = place.floor().long()
    part = (place - low).to(values.dtype)
    high = (low + 1).clamp_max(count - 1)
    return values[:, low] * (1 - part) + values[:, high] * part


def spread(values: torch.Tensor) -> torch.Tensor:
    """(B,) standard deviation of (B, n) over n, without Bessel's correction: 0 for one value."""
    return values.std(dim=-1, correction=0)


class LayerView:
    """Layer `plan` of networks `rows` (B, P), finite float32 on the CPU."""

    def __init__(self, plan: LayerPlan, rows: torch.Tensor, bad: torch.Tensor) -> None:
        self.plan = plan
        self._rows, self._bad = rows, bad

    def _take(self, pieces: Sequence[Piece], source: torch.Tensor) -> torch.Tensor:
        parts = [source[:, p.start : p.start + p.size] for p in pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @property
    def num_networks(self) -> int:
        return len(self._rows)

    @cached_property
    def values(self) -> torch.Tensor:
        """(B, n) all weights of the layer."""
        return self._take(self.plan.weights, self._rows)

    @cached_property
    def ordered_values(self) -> torch.Tensor:
        """(B, n) the weights of the layer in ascending order."""
        return ordered(self.values)

    @cached_property
    def biases(self) -> torch.Tensor | None:
        """(B, n) its biases; None where it has none."""
        return self._take(self.plan.biases, self._rows) if self.plan.biases else None

    @cached_property
    def bad_share(self) -> torch.Tensor:
        """(B,) share of values that are no finite number, or beyond `LARGEST`."""
        if not self._bad.any():
            return torch.zeros(self.num_networks)
        return self._take(self.plan.weights + self.plan.biases, self._bad).float().mean(dim=1)

    @cached_property
    def weight(self) -> torch.Tensor:
        """(B, O, I, K) the first tensor."""
        out, inputs, taps = self.plan.shape
        first = self._take(self.plan.weights[:1], self._rows)
        if self.plan.transposed:
            return (
                first.reshape(-1, inputs * taps, out).transpose(1, 2).reshape(-1, out, inputs, taps)
            )
        return first.reshape(-1, out, inputs, taps)

    @cached_property
    def rms(self) -> torch.Tensor:
        """(B,) root of the mean square of the first tensor."""
        return self.energy.mean(dim=(1, 2)).sqrt()

    @cached_property
    def energy(self) -> torch.Tensor:
        """(B, O, I) mean square over K."""
        if self.plan.shape[2] == 1:
            return self.weight[..., 0].square()
        return self.weight.square().mean(dim=-1)

    @cached_property
    def sums(self) -> torch.Tensor:
        """(B, O, I) sum over K: the matrix by which constant maps are transformed."""
        return self.weight[..., 0] if self.plan.shape[2] == 1 else self.weight.sum(dim=-1)

    @cached_property
    def in_norms(self) -> torch.Tensor:
        """(B, O) root mean square of what comes into a unit."""
        return self.energy.mean(dim=2).sqrt()

    @cached_property
    def out_norms(self) -> torch.Tensor:
        """(B, I) root mean square of what an input unit sends into this layer."""
        return self.energy.mean(dim=1).sqrt()

    @cached_property
    def rows_gram(self) -> torch.Tensor:
        """(B, O, O) inner products of the units' weights, of at most `MOST_UNITS` units."""
        rows = _wide(_strongest(self.weight.flatten(2), self.in_norms))
        return (rows @ rows.mT).double()

    @cached_property
    def inputs_gram(self) -> torch.Tensor:
        """(B, I, I) inner products of what the input units send, of at most `MOST_UNITS` of them."""
        rows = self.weight.transpose(1, 2).flatten(2)
        rows = _wide(_strongest(rows, self.out_norms))
        return (rows @ rows.mT).double()

    @cached_property
    def spectrum(self) -> torch.Tensor:
        """(B, R) singular values of the matrix (O, I * K), largest first."""
        out, inputs, taps = self.plan.shape
        if out <= inputs * taps:
            return _roots(self.rows_gram)
        if taps == 1:
            return _roots(self.inputs_gram)
        return singular_values(self.weight.flatten(2))

    @cached_property
    def sums_spectrum(self) -> torch.Tensor:
        """(B, R) singular values of `sums`, largest first."""
        return self.spectrum if self.plan.shape[2] == 1 else singular_values(self.sums)


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """(B, R) of (B, O, I), largest first, R at most `MOST_UNITS`; of the rows or columns of largest norm."""
    if matrix.shape[1] > matrix.shape[2]:
        matrix = matrix.mT
    rows = _wide(_strongest(matrix, matrix.square().sum(dim=2)))
    return _roots((rows @ rows.mT).double())


def _strongest(rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """(B, at most MOST_UNITS, n) the rows (B, O, n) of largest norm (B, O)."""
    if rows.shape[1] <= MOST_UNITS:
        return rows
    chosen = norms.topk(MOST_UNITS, dim=1).indices
    return torch.gather(rows, 1, chosen[..., None].expand(-1, -1, rows.shape[2]))


def _wide(rows: torch.Tensor) -> torch.Tensor:
    return rows.double() if rows[0].numel() <= DOUBLE_BELOW else rows.contiguous()


def _roots(gram: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp_min(0).sqrt().flip(-1)
