"""Predictors from statistics of the weights, and from the weights as they are: the baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform import hookimpl

if TYPE_CHECKING:
    from zooplatform.interfaces import PredictorSpec


@hookimpl
def zoo_register_predictors() -> list[PredictorSpec]:
    return []
