"""Models of other kinds in an ensemble: what the encoders miss in aggregated statistics, and err in otherwise.

They are predictors of their own (`zooplatform_statnn`), fitted on the same networks with the same seed; what they
predict counts as a score beside those of the encoders.

Legend for shapes: N networks, B networks of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import NotInstalledError
from zooplatform.fitting import network_batches

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    import torch

    from zooplatform.fitting import FitData
    from zooplatform.interfaces import NetworkBatch, Predictor
    from zooplatform_sne.losses import TargetScale

__all__ = ["COMPANIONS", "Companion", "new_companions"]

# Keys of the configuration, in the order of their scores: gradient boosting and a perceptron.
COMPANIONS = ("trees", "perceptron")


@dataclass(frozen=True, slots=True)
class Companion:
    """One of them.

    Attributes:
        name: one of `COMPANIONS`; also the folder that it is stored in.
        weight: among the members.
        predictor: fitted or loaded by `fit` and `load`.
    """

    name: str
    weight: float
    predictor: Predictor

    def fit(self, data: FitData, *, target: str, scale: TargetScale, seed: int) -> None:
        """On the same networks as the members."""
        config: dict[str, Any] = {}
        if self.name == "trees":
            config |= {"learning_rate": 0.02, "leaves": 63, "min_leaf": 20, "features": 0.2}
            config["target_transform"] = "logit" if scale.bounded else "none"
        else:
            config["members"] = 3
        self.predictor.fit(data, target=target, config=config, seed=seed)

    def scores(self, batch: NetworkBatch, scale: TargetScale) -> torch.Tensor:
        """(B,) on the scale of the members."""
        return scale.scores(self.predictor.predict(batch))

    def validation_scores(self, data: FitData, scale: TargetScale) -> npt.NDArray[np.float64]:
        """(N,) of the validation networks, in their order."""
        found = np.empty(len(data.validation))
        for indices, batch in network_batches(data.validation):
            found[indices] = self.scores(batch, scale).numpy()
        return found

    def save(self, folder: Path) -> None:
        """Into a folder of its own in `folder`."""
        (folder / self.name).mkdir(exist_ok=True)
        self.predictor.save(folder / self.name)

    def load(self, folder: Path) -> None:
        """What `save` wrote."""
        self.predictor.load(folder / self.name)


def new_companions(weights: Sequence[float], *, responses: bool = False) -> list[Companion]:
    """Those of `COMPANIONS` with a weight above 0, not fitted yet; with `responses` they read those, too.

    Raises:
        NotInstalledError: the extra of the trees is missing.
    """
    return [
        Companion(name, weight, _new(name, responses=responses))
        for name, weight in zip(COMPANIONS, weights, strict=True)
        if weight
    ]


def _new(name: str, *, responses: bool) -> Predictor:
    if name == "perceptron":
        from zooplatform_sne.perceptrons import ResponsesMLP
        from zooplatform_statnn.perceptrons import AggregateMLP

        return ResponsesMLP() if responses else AggregateMLP()
    if find_spec("lightgbm") is None:
        raise NotInstalledError(
            "Predictor 'sne' with trees", ["lightgbm"], "pip install 'zooplatform[boosting]'"
        )
    from zooplatform_sne.boosted import Responses
    from zooplatform_statnn.boosted import AggregateRich

    return Responses() if responses else AggregateRich()
