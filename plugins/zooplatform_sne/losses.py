"""What fitting minimises, the scale on which it does, and the rank correlation it is chosen by.

A predictor gives one score z per network. Where the target is bounded (an accuracy, in [0, 1]) the score is a logit
and the prediction is sigmoid(z); where it is free the score is standardised and the prediction is mean + std * z. With
y the target and s(y) the score that stands for it:

    bce          -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)), with soft targets; bounded targets only
    mse          (z - s(y))^2: on the logit of a bounded target, on a free one standardised
    huber        z - s(y) squared over 2 up to DELTA, linear beyond
    rank-huber   huber + RANK * mean over pairs with y_i > y_j of log(1 + exp(z_j - z_i))

Legend for shapes: B networks of a batch, N networks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch.nn import functional

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = ["LOSSES", "TargetScale", "kendall_tau", "loss_of", "pairwise_rank"]

LOSSES = ("auto", "bce", "mse", "huber", "rank-huber")


@dataclass(frozen=True)
class TargetScale:
    """How targets become scores and scores predictions.

    Attributes:
        bounded: scores are logits; else they are standardised.
        mean, std: of the training targets, for free ones.
        clip: bounded targets are kept this far from 0 and 1, where logits are infinite.
    """

    bounded: bool
    mean: float = 0.0
    std: float = 1.0
    clip: float = 0.005

    @classmethod
    def of(
        cls,
        targets: npt.NDArray[np.float64],
        *,
        kind: Literal["auto", "bounded", "free"] = "auto",
        clip: float = 0.005,
    ) -> Self:
        """The scale for training targets (N,); `auto` takes targets that all lie in [0, 1] for bounded.

        Raises:
            ConfigError: targets are not finite, or `kind` is bounded and one lies outside of [0, 1].
        """
        finite = np.isfinite(targets)
        if not len(targets) or not finite.all():
            raise ConfigError(
                f"{int((~finite).sum())} of {len(targets)} targets are not finite numbers. Leave those networks out "
                "with missing='drop', or choose others in the query."
            )
        low, high = float(targets.min()), float(targets.max())
        inside = low >= 0 and high <= 1
        if kind == "bounded" and not inside:
            raise ConfigError(
                f"Targets reach from {low:g} to {high:g}; bounded ones lie in [0, 1]. Set target_kind = 'free'."
            )
        # A target that is always 0 or 1 has no spread on the logit scale that could be learnt either.
        if kind != "free" and inside:
            return cls(bounded=True, clip=clip)
        spread = float(targets.std())
        return cls(bounded=False, mean=float(targets.mean()), std=spread or 1.0, clip=clip)

    def scores(self, targets: torch.Tensor) -> torch.Tensor:
        """The score of every target, of any shape."""
        if self.bounded:
            return torch.logit(targets, eps=self.clip)
        return (targets - self.mean) / self.std

    def predictions(self, scores: torch.Tensor) -> torch.Tensor:
        """Predictions in the unit of the target, of any shape."""
        if self.bounded:
            return torch.sigmoid(scores)
        return scores * self.std + self.mean

    def describe(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_description(cls, given: Mapping[str, Any]) -> Self:
        return cls(bool(given["bounded"]), *(float(given[k]) for k in ("mean", "std", "clip")))


def pairwise_rank(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of log(1 + exp(-(z_i - z_j))) over the pairs with y_i > y_j; 0 where there is no such pair (B,)."""
    above = targets[:, None] > targets[None, :]
    margins = functional.softplus(scores[None, :] - scores[:, None])
    return (margins * above).sum() / above.sum().clamp(min=1)


def loss_of(
    name: str,
    scores: torch.Tensor,
    targets: torch.Tensor,
    scale: TargetScale,
    *,
    rank: float = 1.0,
    delta: float = 1.0,
) -> torch.Tensor:
    """The loss of a batch: mean over its networks.

    Args:
        name: one of `LOSSES`; `auto` is `rank-huber`.
        scores: (B,) given by the predictor.
        targets: (B,) in their own unit.
        scale: of the targets.
        rank: weight of the pairs in `rank-huber`.
        delta: where `huber` becomes linear, in scores.

    Raises:
        ConfigError: no loss has this name, or it does not fit the kind of target.
    """
    if name == "bce":
        if not scale.bounded:
            raise ConfigError(
                "The loss bce needs targets in [0, 1]. Use mse, huber or rank-huber for free ones."
            )
        return functional.binary_cross_entropy_with_logits(scores, targets)
    wanted = scale.scores(targets)
    if name == "mse":
        return functional.mse_loss(scores, wanted)
    if name not in LOSSES:
        raise ConfigError(f"Unknown loss {name!r}. Known: {', '.join(LOSSES)}.")
    loss = functional.huber_loss(scores, wanted, delta=delta)
    if name == "huber" or not rank:
        return loss
    return loss + rank * pairwise_rank(scores, targets)


def kendall_tau(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Kendall's tau-b of two sequences (N,), ties counted, in O(N log^2 N); 0 where one of them is constant."""
    x = np.unique(first, return_inverse=True)[1]
    y = np.unique(second, return_inverse=True)[1]
    n = len(x)
    pairs = n * (n - 1) // 2
    ties_x, ties_y = _tied(x), _tied(y)
    ties_both = _tied(x * (int(y.max(initial=0)) + 1) + y)
    size = float(pairs - ties_x) * float(pairs - ties_y)
    if size <= 0:
        return 0.0
    # Sorted by x and then y, the inversions of y are the pairs in opposite order: ties give none.
    discordant = _inversions(y[np.lexsort((y, x))])
    agreed = pairs - ties_x - ties_y + ties_both - 2 * discordant
    return float(agreed / np.sqrt(size))


def _tied(ranks: npt.NDArray[np.int64]) -> int:
    """Pairs of equal values."""
    counts = np.unique(ranks, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: npt.NDArray[np.int64]) -> int:
    """Pairs i < j with values[i] > values[j], by merging runs of doubling length."""
    n = len(values)
    span = int(values.max(initial=0)) + 1
    place = np.arange(n)
    values, width, found = values.astype(np.int64), 1, 0
    while width < n:
        # One key per value: its pair of runs first, so that all pairs of runs are handled at once.
        pair, right = place // (2 * width), (place // width) % 2 == 1
        keys = pair * span + values
        left_keys, right_keys = keys[~right], keys[right]  # each sorted, since runs are
        not_above = np.searchsorted(left_keys, right_keys, side="right")
        end_of_left = np.searchsorted(left_keys, (pair[right] + 1) * span, side="left")
        found += int((end_of_left - not_above).sum())
        values = np.sort(keys) - pair * span
        width *= 2
    return found
