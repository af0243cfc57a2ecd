"""The set-based neural network encoder (SNE): properties of networks from their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform import hookimpl
from zooplatform.interfaces import PredictorSpec
from zooplatform_sne.sql import FUNCTIONS

if TYPE_CHECKING:
    from zooplatform.interfaces import SqlFunction


@hookimpl
def zoo_register_predictors() -> list[PredictorSpec]:
    return [
        PredictorSpec(
            name="sne",
            factory="zooplatform_sne.predictor:SnePredictor",
            summary="Set encoders of layers, units and weights, alone or as an ensemble, for any architecture.",
            requires=("numpy", "safetensors", "torch"),
            install="pip install numpy safetensors torch",
        ),
        PredictorSpec(
            name="responses",
            factory="zooplatform_sne.boosted:Responses",
            summary="Rich statistics and what a network does with fixed inputs, boosted; any mix of architectures.",
            requires=("lightgbm", "torch"),
            install="pip install 'zooplatform[boosting]'",
        ),
    ]


@hookimpl
def zoo_register_sql() -> list[SqlFunction]:
    return [*FUNCTIONS]
