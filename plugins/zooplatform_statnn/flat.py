"""The weights as one vector: what can be learnt without knowing that units have no order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform_statnn.inputs import raw_weights
from zooplatform_statnn.learners import Ridge
from zooplatform_statnn.nets import Net, Perceptron
from zooplatform_statnn.predictor import InputsPredictor
from zooplatform_statnn.settings import FlatSettings, RidgeSettings
from zooplatform_statnn.spaces import NETS, RIDGE

if TYPE_CHECKING:
    import torch

    from zooplatform.interfaces import NetworkBatch

__all__ = ["FlatLinear", "FlatMLP"]


class FlatLinear(InputsPredictor[RidgeSettings]):
    """Ridge regression on the weights."""

    NAME = "flat-linear"
    SETTINGS = RidgeSettings
    SPACE = RIDGE

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        return raw_weights(batch)

    def learner(self, settings: RidgeSettings) -> Ridge:
        return Ridge(settings)


class FlatMLP(InputsPredictor[FlatSettings]):
    """A perceptron on the weights."""

    NAME = "flat-mlp"
    SETTINGS = FlatSettings
    SPACE = NETS

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        return raw_weights(batch)

    def learner(self, settings: FlatSettings) -> Net:
        return Net(settings, lambda inputs, _: Perceptron(inputs, settings))
