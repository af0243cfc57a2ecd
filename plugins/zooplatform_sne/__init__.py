"""The set-based neural network encoder (SNE): properties of networks from their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform import hookimpl
from zooplatform_sne.sql import FUNCTIONS

if TYPE_CHECKING:
    from zooplatform.interfaces import PredictorSpec, SqlFunction


@hookimpl
def zoo_register_predictors() -> list[PredictorSpec]:
    return []


@hookimpl
def zoo_register_sql() -> list[SqlFunction]:
    return [*FUNCTIONS]
