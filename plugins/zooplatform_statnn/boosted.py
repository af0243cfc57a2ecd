"""Gradient boosting on statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from zooplatform_statnn.inputs import layers_aggregated, layers_flat, merged
from zooplatform_statnn.predictor import InputsPredictor
from zooplatform_statnn.settings import TreeSettings
from zooplatform_statnn.spaces import TREES
from zooplatform_statnn.trees import Trees

if TYPE_CHECKING:
    import torch

    from zooplatform.interfaces import NetworkBatch
    from zooplatform_statnn.features import Kind
    from zooplatform_statnn.learners import Table

__all__ = ["Aggregate", "AggregateRich", "Rich", "StatNN"]


class _Boosted(InputsPredictor[TreeSettings]):
    SETTINGS = TreeSettings
    SPACE = TREES
    KIND: ClassVar[Kind]

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        return layers_flat(batch, self.KIND)

    def learner(self, settings: TreeSettings) -> Trees:
        return Trees(settings)


class StatNN(_Boosted):
    """Unterthiner et al. (2020): mean, variance and quantiles of every layer, boosted."""

    NAME = "statnn"
    KIND = "plain"


class Rich(_Boosted):
    """The rich statistics of every layer, boosted."""

    NAME = "rich"
    KIND = "rich"


class Aggregate(_Boosted):
    """Plain statistics aggregated over layers, boosted: for any mix of architectures."""

    NAME = "aggregate"
    KIND: ClassVar[Kind] = "plain"
    PER_ARCHITECTURE = False

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        return layers_aggregated(batch, self.KIND)

    def _joined(self, tables: list[Table]) -> list[Table]:
        return merged(tables)


class AggregateRich(Aggregate):
    """Rich statistics aggregated over layers, boosted: for any mix of architectures."""

    NAME = "aggregate-rich"
    KIND = "rich"
