"""Perceptrons on statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from zooplatform_statnn.inputs import layers_aggregated, layers_flat, merged
from zooplatform_statnn.nets import Net, Perceptron
from zooplatform_statnn.predictor import InputsPredictor
from zooplatform_statnn.settings import NetSettings
from zooplatform_statnn.spaces import NETS

if TYPE_CHECKING:
    import torch

    from zooplatform.interfaces import NetworkBatch
    from zooplatform_statnn.features import Kind
    from zooplatform_statnn.learners import Table

__all__ = ["AggregateMLP", "RichMLP", "StatNNMLP"]


class _OnStatistics(InputsPredictor[NetSettings]):
    SETTINGS = NetSettings
    SPACE = NETS
    KIND: ClassVar[Kind]

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        return layers_flat(batch, self.KIND)

    def learner(self, settings: NetSettings) -> Net:
        return Net(settings, lambda inputs, _: Perceptron(inputs, settings))


class StatNNMLP(_OnStatistics):
    """The plain statistics of every layer and a perceptron."""

    NAME = "statnn-mlp"
    KIND = "plain"


class RichMLP(_OnStatistics):
    """The rich statistics of every layer and a perceptron."""

    NAME = "rich-mlp"
    KIND = "rich"


class AggregateMLP(_OnStatistics):
    """Rich statistics aggregated over layers and a perceptron: for any mix of architectures."""

    NAME = "aggregate-mlp"
    KIND = "rich"
    PER_ARCHITECTURE = False

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        return layers_aggregated(batch, self.KIND)

    def _joined(self, tables: list[Table]) -> list[Table]:
        return merged(tables)
