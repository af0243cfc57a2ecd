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
from typing import TYPE_CHECKING, Any, NamedTuple

from zooplatform.interfaces import NetworkBatch
from zooplatform.kendall import kendall_tau
from zooplatform.layout import VectorLayout, architecture_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from zooplatform.datasets import WeightDataset
    from zooplatform.interfaces import Progress

__all__ = [
    "Blueprint",
    "FitData",
    "GeneratorData",
    "NetworkFacts",
    "TaskImages",
    "kendall_tau",
    "network_batches",
]


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


# --- what generators are given beside ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What a vector of weights needs to become a network again.

    Two blueprints of one layout may differ in what leaves no trace in it, such as the activation.

    Attributes:
        vector: which tensor lies where in the (P,) values of a network.
        family: architecture adapter that builds it (`cnn`, `timm`).
        config: what that adapter needs.
        name: of the architecture, for people.
        aside: (E,) bytes of the tensors of other dtypes (the counters of BatchNorm), as in a training network.
    """

    vector: VectorLayout
    family: str
    config: Mapping[str, Any]
    name: str = ""
    aside: bytes = b""

    @property
    def architecture_id(self) -> str:
        return architecture_id(self.vector.layout)

    def to_json(self) -> dict[str, Any]:
        """As JSON, for artifacts."""
        return {
            "layout": self.vector.rows(),
            "family": self.family,
            "config": dict(self.config),
            "name": self.name,
            "aside": self.aside.hex(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Blueprint:
        """The reverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is not what `to_json` wrote.
        """
        return cls(
            vector=VectorLayout.from_rows(value["layout"]),
            family=str(value["family"]),
            config=dict(value["config"]),
            name=str(value["name"]),
            aside=bytes.fromhex(value["aside"]),
        )


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What the catalog says of a network beside its weights.

    Attributes:
        checkpoint_id, model_id: of the network.
        blueprint: number of its blueprint in `GeneratorData.blueprints`.
        dataset: short name of the data set that it was trained on (`mnist`); empty if unknown.
        config: hyper-parameters as given, the activation among them.
        metrics: measured and reported values by name (`test_accuracy`).
        epoch: when it was taken.
        license: of the weights.
    """

    checkpoint_id: str
    model_id: str
    blueprint: int
    dataset: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    epoch: float | None = None
    license: str | None = None


class TaskImages(NamedTuple):
    """Training images of a data set, in the form that its networks take: `x` (N, C, H, W) float32 in [0, 1] (or
    (N, F)), `y` (N,) int64, classes from 0 to `num_classes` - 1. Test images are never among them."""

    name: str
    x: torch.Tensor
    y: torch.Tensor
    num_classes: int

    def examples(self, per_class: int, seed: int = 0) -> torch.Tensor:
        """(K, S, C, H, W): S images of each class, drawn by the seed; with repetition where there are fewer."""
        import torch

        draw = torch.Generator().manual_seed(seed)
        chosen = []
        for number in range(self.num_classes):
            own = (self.y == number).nonzero().squeeze(1)
            if not len(own):
                own = torch.arange(len(self.y))
            order = own[torch.randperm(len(own), generator=draw)]
            chosen.append(order.repeat(-(-per_class // len(order)))[:per_class])
        return self.x[torch.stack(chosen)]


@dataclass(frozen=True, kw_only=True)
class GeneratorData(FitData):
    """What a generator is fitted on: `FitData` with what the catalog says of the networks.

    `train` and `validation` have no target. Several checkpoints of one training run are on one side.

    Attributes:
        facts: of every network of both sides, by checkpoint id.
        blueprints: every layout with every way to build it that occurs.
        images: training images by the name of the data set; those of data sets that cannot be had are missing.
        build: a new network of a blueprint, weights as its constructor draws them.
    """

    facts: Mapping[str, NetworkFacts]
    blueprints: tuple[Blueprint, ...]
    images: Mapping[str, TaskImages]
    build: Callable[[Blueprint], nn.Module]


# --- reading ----------------------------------------------------------------------------------------------------------


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
