"""Properties and SQL functions."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import PropertySpec, SqlFunction, SqlView
from zooplatform_stats.sql import FUNCTIONS, VIEWS


@hookimpl
def zoo_register_properties() -> list[PropertySpec]:
    return [
        PropertySpec(
            name="dead_units",
            factory="zooplatform_stats.properties:dead_units",
            summary="Share of units of convolutions and linear layers without incoming weights.",
            requires=("torch",),
            install="pip install torch",
            unit="fraction",
        )
    ]


@hookimpl
def zoo_register_sql() -> list[SqlFunction | SqlView]:
    return [*FUNCTIONS, *VIEWS]
