"""What predictors and generators are fitted on, and what they are asked about.

    data = FitData(train=catalog.dataset(query, split="main", role="train"), validation=...)
    report = predictor.fit(data, target="test_accuracy", config={}, seed=0)
    for indices, batch in network_batches(test, 4096):
        predictions[indices] = predictor.predict(batch)

Legend for shapes: N networks, B networks of a batch, P values of one network.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zooplatform.errors import ConfigError
from zooplatform.interfaces import NetworkBatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from zooplatform.datasets import WeightDataset
    from zooplatform.interfaces import Progress

__all__ = ["FitData", "kendall_tau", "network_batches"]


@dataclass(frozen=True, kw_only=True)
class FitData:
    """Networks to learn from, and what fitting may use.

    Attributes:
        train: networks with their targets, of any mix of architectures.
        validation: networks to choose by: early stopping, hyper-parameters. Never those that a figure is reported on.
        device: torch device.
        max_minutes: time after which fitting ends with the best so far; None is no limit.
        folder: where a fit that takes long keeps its state, so that the same call goes on after an interruption; None
            keeps none.
        progress: where to say how far it is.
    """

    train: WeightDataset
    validation: WeightDataset
    device: str = "cpu"
    max_minutes: float | None = None
    folder: Path | None = None
    progress: Progress | None = None
    _start: float = field(default_factory=time.monotonic, init=False, repr=False)

    def seconds_left(self) -> float:
        """Seconds until `max_minutes` are over since this object was made; infinite without a limit."""
        if self.max_minutes is None:
            return float("inf")
        return 60 * self.max_minutes - (time.monotonic() - self._start)


def network_batches(
    data: WeightDataset, batch_size: int = 4096
) -> Iterator[tuple[npt.NDArray[np.int64], NetworkBatch]]:
    """Every network once, in order: the indices (B,) of a batch in `data`, and the batch.

    Raises:
        IntegrityError: a weight file is missing or truncated.
    """
    layouts = data.architectures
    for indices in data.order(batch_size):
        weights, _, ids, architecture_id = data.read(indices)
        yield (
            indices,
            NetworkBatch(weights, layouts[architecture_id], tuple(ids), architecture_id),
        )


def kendall_tau(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Kendall's tau-b of two sequences (N,), ties counted, in O(N log^2 N).

    Returns:
        -1 to 1; NaN for less than two values, where one sequence is constant, or where a value is NaN.

    Raises:
        ConfigError: they are of different lengths.
    """
    import numpy as np

    a, b = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if len(a) != len(b):
        raise ConfigError(f"Kendall's tau needs pairs; these are {len(a)} and {len(b)} values.")
    if len(a) < 2 or np.isnan(a).any() or np.isnan(b).any():
        return float("nan")
    # Ranks are exact as integers, ties share one.
    x, y = (np.unique(values, return_inverse=True)[1].astype(np.int64) for values in (a, b))
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    pairs = len(x) * (len(x) - 1) // 2
    tied_x, tied_y = _tied_pairs(x), _tied_pairs(y)
    if pairs in (tied_x, tied_y):
        return float("nan")
    tied_both = _tied_pairs(x * (int(y.max()) + 1) + y)
    discordant = _inversions(y)
    concordant = pairs - tied_x - tied_y + tied_both - discordant
    scale = math.sqrt(pairs - tied_x) * math.sqrt(pairs - tied_y)
    return max(-1.0, min(1.0, (concordant - discordant) / scale))


def _tied_pairs(values: npt.NDArray[np.int64]) -> int:
    import numpy as np

    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: npt.NDArray[np.int64]) -> int:
    """Pairs i < j with values[i] > values[j], counted while halves of blocks of 2, 4, 8, ... are merged."""
    import numpy as np

    place = np.arange(len(values))
    current, total, half = values, 0, 1
    while half < len(values):
        block = place // (2 * half)
        right = (place // half) % 2
        # Stable: of equal values those of the left half come first, and count as no inversion.
        order = np.lexsort((right, current, block))
        merged_right = right[order] == 1
        lefts_so_far = np.cumsum(~merged_right)
        # Every block that has a right half has a whole left one, so these are the lefts up to its end.
        lefts_in_all = (block + 1) * half
        total += int((lefts_in_all - lefts_so_far)[merged_right].sum())
        current = current[order]
        half *= 2
    return total
