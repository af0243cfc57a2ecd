"""Kendall's tau-b, ties counted, in O(N log N): of two sequences, and of many weightings of them at once.

Legend for shapes: N rows, D weightings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = ["RankedPairs", "kendall_tau"]


def kendall_tau(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Kendall's tau-b of two sequences (N,).

    Returns:
        -1 to 1; NaN for less than two values, where one sequence is constant, or where a value is NaN.

    Raises:
        ConfigError: they are of different lengths.
    """
    a, b = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if len(a) != len(b):
        raise ConfigError(f"Kendall's tau needs pairs; these are {len(a)} and {len(b)} values.")
    if len(a) < 2 or np.isnan(a).any() or np.isnan(b).any():
        return float("nan")
    return float(RankedPairs(a, b).tau(np.ones((len(a), 1)))[0])


class RankedPairs:
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
