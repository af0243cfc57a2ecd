"""How the scores of an ensemble become one.

Models that read what carries over between data sets (statistics, propagation) are the base. Others know the classes of
the data that they were fitted on (probes): on such networks they are the best readers, on others they are wrong without
knowing it. They are guarded: they move the base's score s no further than they did on the validation networks,

    s' = s + share * clip(g - s, -c, c),    c = guard * median over the validation networks of |g - s|

with g the mean score of the guarded models. A network on which they disagree by more than c is moved by a constant, so
among such networks the base's order stays. The limit is that of Huber's estimator of location (Huber 1964).

Legend for shapes: N networks, E models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Fusion", "stacked_shares"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """Weights of the models and what limits the guarded ones.

    Attributes:
        base: (E,) weights of the base, 0 for guarded models, 1 in sum.
        guarded: (E,) weights of the guarded models, 0 for the base, 1 in sum; all 0 where there are none.
        share: of the difference that is added.
        limit: c.
    """

    base: Array
    guarded: Array
    share: float = 0.0
    limit: float = 0.0

    @classmethod
    def fit(
        cls, base: Array, guarded: Array, scores: Array, *, share: float, guard: float
    ) -> Fusion:
        """From weights (E,) that need not sum to 1, and scores (E, N) of the validation networks."""
        base = base / base.sum()
        if not guarded.any():
            return cls(base=base, guarded=guarded)
        guarded = guarded / guarded.sum()
        differences = np.abs((guarded - base) @ scores)
        limit = guard * float(np.median(differences))
        return cls(base=base, guarded=guarded, share=share, limit=limit)

    def __call__(self, scores: Array) -> Array:
        """(N,) from (E, N)."""
        found: Array = self.base @ scores
        if self.guarded.any():
            difference = self.guarded @ scores - found
            found = found + self.share * np.clip(difference, -self.limit, self.limit)
        return found


def stacked_shares(scores: Array, wanted: Array) -> Array:
    """(E,) weights >= 0 of sum 1 for which the weighted scores (E, N) are nearest `wanted` (N,) in squares.

    By exponentiated gradient steps (Kivinen and Warmuth 1997), which stay inside and need no solver.
    """
    moments = scores @ scores.T / len(wanted)
    with_wanted = scores @ wanted / len(wanted)
    shares = np.full(len(scores), 1 / len(scores))
    rate = 0.5 / max(float(np.abs(moments).max()), 1e-12)
    for _ in range(2000):
        gradient = moments @ shares - with_wanted
        shares = shares * np.exp(-rate * (gradient - gradient.min()))
        shares /= shares.sum()
    return shares
