"""How well predictions agree with what was measured, with intervals that count training runs and not rows.

The checkpoints of one training run are alike, so a figure over them is less certain than their number suggests. The
bootstrap here draws whole runs: a run that is drawn twice brings each of its rows twice.

Legend for shapes: N rows, G groups (training runs), D draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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
    """

    n: int
    num_models: int
    kendall_tau: float
    kendall_tau_ci: tuple[float, float]
    spearman: float
    r2: float
    mae: float


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
    pairs = _Pairs(y, p)
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
    y, p = _pair(target, prediction)
    return float(_Pairs(y, p).tau(np.ones((len(y), 1)))[0])


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


class _Pairs:
    """Tau-b of two rankings of N rows, for any number of weightings of the rows at once.

    With weights w, and sums over all ordered pairs of rows, a row and itself included,

        tau_b = (W - Tx - Ty + Txy - 4 D) / sqrt((W - Tx) (W - Ty))

    where W is the weight w_i w_j of all pairs, Tx, Ty and Txy that of the pairs tied in x, in y and in both, and D that
    of the unordered pairs that x and y order in opposite ways. Whole weights are copies of rows, so this is the figure
    of a bootstrap sample, computed exactly.

    D counts the inversions of y in the order of x (ties ordered by y, so that they count as none). They are counted
    bit by bit: two ranks differ first in one bit, so the pairs are those that agree in all higher bits and have a 1
    before a 0 in this one. Each bit is a stable partition and a cumulative sum, of all weightings together: O(N log N).
    """

    def __init__(self, x: Array, y: Array) -> None:
        order = np.lexsort((y, x))
        x_rank = np.unique(x, return_inverse=True)[1][order]
        y_rank = np.unique(y, return_inverse=True)[1][order]
        new_x = np.diff(x_rank, prepend=-1) != 0
        self._order = order
        self._tied_x = np.flatnonzero(new_x)
        self._tied_both = np.flatnonzero(new_x | (np.diff(y_rank, prepend=-1) != 0))
        self._bits: list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]] = []
        at = np.arange(len(x))  # rows in the order of x, within blocks of equal higher bits
        for bit in reversed(range(int(y_rank.max()).bit_length())):
            high = y_rank[at] >> (bit + 1)
            ones = (y_rank[at] >> bit) & 1
            block = np.searchsorted(high, high, side="left")  # where the block of each row begins
            self._bits.append((at, ones, block))
            at = at[np.argsort(y_rank[at] >> bit, kind="stable")]
        self._by_y = at
        self._tied_y = np.flatnonzero(np.diff(y_rank[at], prepend=-1) != 0)

    def tau(self, weights: Array) -> Array:
        """(D,) for `weights` (N, D); NaN where x or y are all tied."""
        w = weights[self._order]
        total = w.sum(axis=0) ** 2
        tied_x, tied_both = (self._tied(w, starts) for starts in (self._tied_x, self._tied_both))
        tied_y = self._tied(w[self._by_y], self._tied_y)
        opposite = np.zeros(w.shape[1])
        before = np.zeros((len(w) + 1, w.shape[1]))
        for at, ones, block in self._bits:
            here = w[at]
            np.cumsum(here * ones[:, None], axis=0, out=before[1:])
            zeros = np.flatnonzero(ones == 0)
            opposite += np.einsum("nd,nd->d", here[zeros], before[zeros] - before[block[zeros]])
        scale = np.sqrt((total - tied_x) * (total - tied_y))
        with np.errstate(invalid="ignore"):
            found: Array = np.where(
                scale > 0, (total - tied_x - tied_y + tied_both - 4 * opposite) / scale, np.nan
            )
        return found

    @staticmethod
    def _tied(weights: Array, starts: npt.NDArray[Any]) -> Array:
        """(D,) weight of the ordered pairs within the runs of rows that begin at `starts`."""
        summed: Array = (np.add.reduceat(weights, starts, axis=0) ** 2).sum(axis=0)
        return summed
