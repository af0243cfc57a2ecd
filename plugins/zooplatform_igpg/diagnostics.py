"""How well codes do: use of the codebooks, rate, error of the weights.

Legend for shapes: N networks, n chunks, S tokens of a chunk, q levels, K codes, V values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CodeUse", "Reconstruction"]


class CodeUse:
    """Counts of codes by level.

    Attributes:
        counts: (q, K) float64.
    """

    def __init__(self, levels: int, num_codes: int) -> None:
        self.counts = torch.zeros((levels, num_codes), dtype=torch.float64)

    def add(self, codes: torch.Tensor) -> None:
        """Count codes (N, n, S); the token j of a chunk is of level j modulo q."""
        levels, number = self.counts.shape
        for level in range(levels):
            own = codes[..., level::levels].flatten().cpu()
            self.counts[level] += torch.bincount(own, minlength=number).double()

    def metrics(self) -> dict[str, float]:
        """`perplexity` (mean of the levels), `dead_codes` and `codebook_use` (of all levels together)."""
        shares = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        entropy = -(shares * shares.clamp(min=1e-300).log()).sum(1)
        dead = int((self.counts == 0).sum())
        return {
            "perplexity": float(entropy.exp().mean()),
            "dead_codes": float(dead),
            "codebook_use": 1 - dead / self.counts.numel(),
        }


class Reconstruction:
    """Sums of squared errors over sums of squares, and bits over weights."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._bits: list[float] = [0.0, 0.0]

    def add(self, name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
        """Take values of any shape into account under a name."""
        error = float((found.double() - wanted.double()).square().sum())
        sums = self._sums.setdefault(name, [0.0, 0.0])
        sums[0] += error
        sums[1] += float(wanted.double().square().sum())

    def add_values(
        self, name: str, found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
    ) -> None:
        """The same for tensors by name."""
        for key, value in wanted.items():
            self.add(name, found[key], value)

    def add_bits(self, bits: float, weights: int) -> None:
        """Bits of a network and the weights that they stand for."""
        self._bits[0] += bits
        self._bits[1] += weights

    def metrics(self) -> dict[str, float]:
        found = {name: a / b if b else 0.0 for name, (a, b) in self._sums.items()}
        return {**found, "bits_per_weight": self._bits[0] / max(1.0, self._bits[1])}
