"""Kendall's tau-b of many predictions at once, with its spread over resampled training runs.

The checkpoints of a run are not independent, so whole runs are drawn with replacement. Concordant pairs are counted
once for every pair of runs; a resample is then a weighting of these counts, which gives exactly the tau-b of the drawn
networks at the price of a small matrix product: what `scores.tau_draws` gives, several times faster for the few
hundred runs of a test zoo. All predictions see the same draws, so differences are paired.

Legend for shapes: N networks, M runs, K predictions, D draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zooplatform.evaluation.scores import group_draws

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Taus", "resampled_taus"]

# Pairs looked at in one go.
_PAIRS = 4_000_000


class Taus(NamedTuple):
    """`value` (K,) and `draws` (K, D) of tau-b; NaN where it is undefined, as for constant targets.

    A constant prediction orders nothing: its tau is 0.
    """

    value: npt.NDArray[np.float64]
    draws: npt.NDArray[np.float64]


def resampled_taus(
    target: npt.NDArray[np.float64],
    predictions: npt.NDArray[np.float64],
    runs: npt.NDArray[np.int64],
    *,
    draws: int,
    seed: int,
) -> Taus:
    """Tau-b of every prediction, for the networks as they are and for every draw of runs.

    Args:
        target: (N,).
        predictions: (K, N).
        runs: (N,) run of every network.
        draws: D.
        seed: of the draws; equal seeds and numbers of runs give equal draws.
    """
    order = np.argsort(runs, kind="stable")
    _, starts = np.unique(runs[order], return_index=True)
    of_target = _ranks(target[order])
    every = np.concatenate([np.ones((1, len(starts))), group_draws(len(starts), seed, draws).T])
    in_target: npt.NDArray[np.float64] | None = None
    taus = np.empty((len(predictions), len(every)))
    for at, prediction in enumerate(predictions):
        counts = _pair_counts(of_target, _ranks(prediction[order]), starts)
        concordant, in_prediction = (_quadratic(every, count) for count in counts[:2])
        in_target = _quadratic(every, counts[2]) if in_target is None else in_target
        with np.errstate(invalid="ignore", divide="ignore"):
            tau = concordant / np.sqrt(in_target * in_prediction)
        taus[at] = np.where((in_prediction == 0) & (in_target > 0), 0.0, tau)
    return Taus(taus[:, 0], taus[:, 1:])


def _quadratic(
    weights: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """w A w for every row w."""
    found: npt.NDArray[np.float64] = ((weights @ counts) * weights).sum(axis=1)
    return found


def _pair_counts(
    target: npt.NDArray[np.int64], prediction: npt.NDArray[np.int64], starts: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(M, M) by pair of runs: concordant minus discordant pairs, and pairs untied in the prediction and the target."""
    count, num_runs = len(target), len(starts)
    found = tuple(np.zeros((num_runs, num_runs)) for _ in range(3))
    ends = np.append(starts[1:], count)
    first = 0
    while first < num_runs:
        # As many whole runs as keep the block of pairs small.
        last = first + 1
        while last < num_runs and (ends[last] - starts[first]) * count <= _PAIRS:
            last += 1
        rows = slice(starts[first], ends[last - 1])
        of_target, own = (np.sign(r[rows, None] - r[None, :]) for r in (target, prediction))
        for sums, block in zip(
            found, (own * of_target, np.abs(own), np.abs(of_target)), strict=True
        ):
            by_column = np.add.reduceat(block, starts, axis=1)
            sums[first:last] = np.add.reduceat(
                by_column, starts[first:last] - starts[first], axis=0
            )
        first = last
    return found[0], found[1], found[2]


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Dense ranks, so that no difference is lost to rounding."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
