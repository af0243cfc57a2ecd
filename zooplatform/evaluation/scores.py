"""How well predictions agree with what was measured, with intervals that count training runs and not rows.

The checkpoints of one training run are alike, so a figure over them is less certain than their number suggests. The
bootstrap here draws whole runs: a run that is drawn twice brings each of its rows twice.

Legend for shapes: N rows, G groups (training runs), D draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform import kendall
from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = [
    "Difference",
    "Scores",
    "group_draws",
    "interval",
    "kendall_tau",
    "mae",
    "mse",
    "paired_difference",
    "r2",
    "scores",
    "spearman",
    "tau_draws",
]

_LEVEL = 0.95
# Weights of so many (row, draw) pairs are held at once: 2 MB, which stays in the processor's cache.
_BLOCK = 250_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What `zoo predictor evaluate` says.

    Attributes:
        n: rows.
        num_models: training runs among them.
        kendall_tau: tau-b; NaN where all targets or all predictions are equal, as for `spearman` and `r2`.
        kendall_tau_ci: 95 % interval by bootstrap over training runs.
        spearman: correlation of ranks.
        r2: share of the variance of the target that is explained; below 0 is worse than the mean.
        mae: mean absolute error, in the unit of the target.
        mse: mean squared error, in its square.
    """

    n: int
    num_models: int
    kendall_tau: float
    kendall_tau_ci: tuple[float, float]
    spearman: float
    r2: float
    mae: float
    mse: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Tau-b of one prediction less that of another, on the same rows.

    Attributes:
        difference: above 0 where the first is better.
        ci: 95 % interval by bootstrap over training runs, both predictions seeing the same draws.
        wins: share of the draws in which the first is better.
    """

    difference: float
    ci: tuple[float, float]
    wins: float


def scores(
    target: npt.ArrayLike,
    prediction: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any],
    seed: int = 0,
    draws: int = 1000,
) -> Scores:
    """Every figure of one prediction.

    Args:
        target: (N,) what was measured.
        prediction: (N,) what was predicted.
        groups: (N,) the training run of every row.
        seed: of the bootstrap.
        draws: D.

    Raises:
        ConfigError: lengths differ, there is no row, or a value is not finite.
    """
    y, p = _pair(target, prediction)
    drawn = interval(tau_draws(y, p, groups, seed, draws))
    return Scores(
        n=len(y),
        num_models=len(np.unique(np.asarray(groups))),
        kendall_tau=kendall_tau(y, p),
        kendall_tau_ci=drawn,
        spearman=spearman(y, p),
        r2=r2(y, p),
        mae=mae(y, p),
        mse=mse(y, p),
    )


def paired_difference(
    target: npt.ArrayLike,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any],
    seed: int = 0,
    draws: int = 1000,
) -> Difference:
    """Whether prediction `a` ranks better than prediction `b`; arguments as `scores`."""
    drawn = tau_draws(target, a, groups, seed, draws) - tau_draws(target, b, groups, seed, draws)
    known = drawn[np.isfinite(drawn)]
    return Difference(
        difference=kendall_tau(target, a) - kendall_tau(target, b),
        ci=interval(drawn),
        wins=float((known > 0).mean()) if len(known) else float("nan"),
    )


def tau_draws(
    target: npt.ArrayLike,
    prediction: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any],
    seed: int = 0,
    draws: int = 1000,
) -> Array:
    """(D,) tau-b of every draw of the bootstrap.

    The same groups and seed give the same draws, so that differences and means over several predictions are paired.
    """
    y, p = _pair(target, prediction)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if len(group_of) != len(y):
        raise ConfigError(f"{len(y)} rows have {len(group_of)} groups; give one for every row.")
    counts = group_draws(len(names), seed, draws)
    found = np.empty(draws)
    step = max(1, _BLOCK // len(y))
    pairs = kendall.RankedPairs(y, p)
    for at in range(0, draws, step):
        found[at : at + step] = pairs.tau(counts[:, at : at + step][group_of])
    return found


def group_draws(count: int, seed: int, draws: int) -> Array:
    """(G, D) how often each of `count` groups is drawn; every draw takes `count` of them."""
    if draws < 1:
        raise ConfigError(f"{draws} draws give no interval. Give 1 or more; 1000 is usual.")
    # RandomState, because its streams are frozen for good; those of newer generators may change between versions.
    draw = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    return draw.multinomial(count, np.full(count, 1 / count), size=draws).T.astype(np.float64)


def interval(drawn: Array) -> tuple[float, float]:
    """The middle 95 % of the draws; those in which the figure is not defined are left out."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


# --- the figures -----------------------------------------------------------------------------------------------------


def kendall_tau(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Kendall's tau-b, in O(N log N)."""
    return kendall.kendall_tau(*_pair(target, prediction))


def spearman(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank."""
    y, p = (_ranks(values) for values in _pair(target, prediction))
    y, p = y - y.mean(), p - p.mean()
    scale = np.sqrt((y @ y) * (p @ p))
    return float(y @ p / scale) if scale else float("nan")


def r2(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """1 less the squared error over that of the mean of these targets."""
    y, p = _pair(target, prediction)
    # Equal targets have a mean that may differ from them in the last bit.
    spread = 0.0 if (y == y[0]).all() else float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - p) ** 2).sum()) / spread if spread else float("nan")


def mae(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Mean absolute error."""
    y, p = _pair(target, prediction)
    return float(np.abs(y - p).mean())


def mse(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Mean squared error."""
    y, p = _pair(target, prediction)
    return float(((y - p) ** 2).mean())


def _pair(target: npt.ArrayLike, prediction: npt.ArrayLike) -> tuple[Array, Array]:
    y, p = np.asarray(target, np.float64), np.asarray(prediction, np.float64)
    if y.ndim != 1 or y.shape != p.shape or not len(y):
        raise ConfigError(
            f"Targets of shape {y.shape} and predictions of shape {p.shape} cannot be compared. Give one prediction "
            "for every target, and at least one."
        )
    for what, values in (("targets", y), ("predictions", p)):
        bad = ~np.isfinite(values)
        if bad.any():
            raise ConfigError(
                f"{int(bad.sum())} of {len(values)} {what} are not finite (the first is row {int(bad.argmax())}). "
                "Leave those rows out."
            )
    return y, p


def _ranks(values: Array) -> Array:
    """(N,) rank of every value from 0, ties at the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = (last - (counts + 1) / 2)[which]
    return mean
