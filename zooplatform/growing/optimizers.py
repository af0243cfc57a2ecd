"""SGD, Adam and AdamW for a stack of networks, each row with its own rule and rates.

The three rules are one formula with different coefficients, so a mixed stack costs no more than a plain one:

    g = g + l2 * w                     SGD and Adam; AdamW shrinks w by (1 - lr * decay) instead
    m = b1 * m + c * g                 c = 1 for SGD, 1 - b1 for Adam
    v = b2 * v + (1 - b2) * g^2
    w = w - a * m / (s * sqrt(v) + e)  s = 0, e = 1 for SGD; s = 1 / sqrt(1 - b2^t), e = eps for Adam
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OPTIMIZERS", "Rule", "StackedOptimizer"]

OPTIMIZERS = ("sgd", "adam", "adamw")

# As torch.optim.Adam has them by default.
_BETAS = (0.9, 0.999)
_EPS = 1e-8


@dataclass(frozen=True, slots=True)
class Rule:
    """How one network is updated; `momentum` is for SGD only."""

    optimizer: str
    learning_rate: float
    weight_decay: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"Unknown optimizer {self.optimizer!r}. Known: {', '.join(OPTIMIZERS)}."
            )


class StackedOptimizer:
    """Updates the first rows of a weight matrix (M, P) in place; equals torch.optim up to rounding.

    Args:
        rules: one per row.
        weights: the matrix; its device and dtype are used for the state.
    """

    def __init__(self, rules: Sequence[Rule], weights: Tensor) -> None:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=weights.dtype, device=weights.device).unsqueeze(1)

        beta1, beta2 = _BETAS
        self._weights = weights
        self._beta2 = beta2
        self._steps = [0] * len(rules)
        self._is_adam = [rule.optimizer != "sgd" for rule in rules]
        self._rate = [rule.learning_rate for rule in rules]
        self._m = torch.zeros_like(weights)
        self._beta1 = column(
            [beta1 if a else r.momentum for a, r in zip(self._is_adam, rules, strict=True)]
        )
        self._fresh = column([1 - beta1 if a else 1.0 for a in self._is_adam])
        self._l2 = column([0.0 if r.optimizer == "adamw" else r.weight_decay for r in rules])
        self._shrink = column(
            [1 - r.learning_rate * r.weight_decay if r.optimizer == "adamw" else 1.0 for r in rules]
        )
        self._any_l2 = bool(self._l2.any())
        self._any_shrink = bool((self._shrink != 1).any())
        # Without Adam in the stack the second moment is never asked for.
        self._v = torch.zeros_like(weights) if any(self._is_adam) else None
        self._denominator = torch.empty_like(weights) if self._v is not None else None

    def step(self, gradient: Tensor) -> None:
        """One update of the first A rows; `gradient` (A, P) is used as scratch space."""
        active, g = len(gradient), gradient
        weights, m = self._weights[:active], self._m[:active]
        size, root, offset = self._coefficients_now(active)
        if self._any_l2:
            g.addcmul_(weights, self._l2[:active])
        if self._any_shrink:
            weights.mul_(self._shrink[:active])
        m.mul_(self._beta1[:active]).addcmul_(g, self._fresh[:active])
        if self._v is None or self._denominator is None:
            weights.addcmul_(m, size, value=-1.0)
            return
        v = self._v[:active]
        v.mul_(self._beta2).addcmul_(g, g, value=1 - self._beta2)
        denominator = torch.sqrt(v, out=self._denominator[:active])
        denominator.mul_(root).add_(offset)
        weights.addcmul_(torch.div(m, denominator, out=denominator), size, value=-1.0)

    def _coefficients_now(self, active: int) -> tuple[Tensor, Tensor, Tensor]:
        """a, s and e of the formula for the coming step, each (A, 1)."""
        beta1, beta2 = _BETAS
        values = []
        for row in range(active):
            self._steps[row] += 1
            step = self._steps[row]
            if self._is_adam[row]:
                # As torch.optim.Adam corrects the moments for having begun at zero.
                root = (1 - beta2**step) ** -0.5
                values.append((self._rate[row] / (1 - beta1**step), root, _EPS))
            else:
                values.append((self._rate[row], 0.0, 1.0))
        table = torch.tensor(values, dtype=self._weights.dtype).to(self._weights.device)
        size, root_factor, offset = table.unsqueeze(2).unbind(1)
        return size, root_factor, offset
