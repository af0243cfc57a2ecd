"""Units in which things are learnt: of targets, and of inputs.

Legend for shapes: N networks, D inputs, Q quantiles.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = ["InputScale", "TargetScale"]

# Accuracies of 0 and 1 are as good as these: their logits are finite.
_EDGE = 1e-3
_QUANTILES = 101
_CLIP = 5.0


@dataclass(frozen=True)
class TargetScale:
    """Targets to what is learnt, and back.

    Attributes:
        logit: the logarithm of the odds is learnt.
        bounded: all targets lay in [0, 1], so do predictions.
        mean, std: of what is learnt.
    """

    logit: bool
    bounded: bool
    mean: float
    std: float

    @classmethod
    def of(cls, targets: npt.NDArray[np.float64], transform: str, name: str) -> TargetScale:
        """Fit to targets (N,).

        Raises:
            ConfigError: a target is not finite, or has no logit.
        """
        if not np.isfinite(targets).all():
            raise ConfigError(
                f"{int((~np.isfinite(targets)).sum())} of {len(targets)} networks have no finite {name}. Leave them "
                "out: missing='drop', or a condition in the query."
            )
        bounded = bool(((targets >= 0) & (targets <= 1)).all())
        if transform == "logit" and not bounded:
            raise ConfigError(
                f"target_transform = 'logit' needs values of {name} in [0, 1]; these are {targets.min():g} to "
                f"{targets.max():g}. Use 'none' or 'auto'."
            )
        logit = bounded and transform != "none"
        learnt = _logit(targets) if logit else targets
        return cls(logit, bounded, float(learnt.mean()), float(learnt.std()) or 1.0)

    def forward(self, targets: npt.NDArray[np.float64]) -> torch.Tensor:
        """(N,) float32, of mean 0 and deviation 1."""
        learnt = _logit(targets) if self.logit else targets
        return torch.from_numpy(((learnt - self.mean) / self.std).astype(np.float32))

    def inverse(self, learnt: torch.Tensor) -> torch.Tensor:
        """(N,) float64, in the unit of the target."""
        values = learnt.detach().cpu().double() * self.std + self.mean
        if self.logit:
            values = values.sigmoid()
        return values.clamp(0, 1) if self.bounded else values

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TargetScale:
        return cls(
            bool(data["logit"]), bool(data["bounded"]), float(data["mean"]), float(data["std"])
        )


def _logit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    inside = np.clip(values, _EDGE, 1 - _EDGE)
    found: npt.NDArray[np.float64] = np.log(inside / (1 - inside))
    return found


class InputScale:
    """Inputs (N, D) to comparable ones, whatever their distribution; outliers stay within `_CLIP` of the middle.

    Args:
        kind: `quantile`, `robust` or `none`.
        grid: (Q, D) quantiles of the training networks.
    """

    def __init__(self, kind: str, grid: torch.Tensor) -> None:
        self.kind, self.grid = kind, grid

    @classmethod
    def of(cls, inputs: torch.Tensor, kind: str) -> InputScale:
        """Fit to (N, D)."""
        at = [0.25, 0.5, 0.75] if kind == "robust" else np.linspace(0, 1, _QUANTILES)
        if kind == "none":
            return cls(kind, torch.zeros(1, inputs.shape[1]))
        if kind == "robust":
            # A statistic that is the same for most networks has no quartiles, but may have a deviation.
            found = np.quantile(inputs.numpy(), at, axis=0)
            width = (found[2] - found[0]) / 1.349
            deviation = inputs.numpy().std(axis=0)
            width = np.where(width > 1e-3 * deviation, width, deviation)
            grid = np.stack([found[1], np.where(width > 1e-12, width, 1.0)])
        else:
            grid = np.quantile(inputs.numpy(), at, axis=0)
        return cls(kind, torch.from_numpy(grid.astype(np.float32)))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, D) float32."""
        if self.kind == "none":
            return inputs
        if self.kind == "robust":
            return ((inputs - self.grid[0]) / self.grid[1]).clamp(-_CLIP, _CLIP)
        columns = inputs.T.contiguous()
        grid = self.grid.T.contiguous()
        last = grid.shape[1] - 1
        left = torch.searchsorted(grid, columns, side="left")
        right = torch.searchsorted(grid, columns, side="right")
        low = grid.gather(1, (left - 1).clamp(0, last))
        high = grid.gather(1, left.clamp(0, last))
        part = ((columns - low) / (high - low).clamp_min(1e-30)).clamp(0, 1)
        between = (left - 1 + part).clamp(0, last)
        # A value that fills several quantiles is in the middle of them.
        equal = (left + right - 1) / 2
        share = torch.where(right > left, equal, between) / last
        edge = 0.5 / _QUANTILES
        return (math.sqrt(2) * torch.erfinv(2 * share.clamp(edge, 1 - edge) - 1)).T.contiguous()
