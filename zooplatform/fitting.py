"""What predictors and generators are fitted on, and what they are asked about.

    data = FitData(train=catalog.dataset(query, split="main", role="train"), validation=...)
    report = predictor.fit(data, target="test_accuracy", config={}, seed=0)
    for indices, batch in network_batches(test, 4096):
        predictions[indices] = predictor.predict(batch)

Legend for shapes: N networks, B networks of a batch, P values of one network.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zooplatform.interfaces import NetworkBatch
from zooplatform.kendall import kendall_tau

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
