"""Properties and SQL functions."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import PropertySpec, SqlFunction, SqlView
from zooplatform_stats.sql import FUNCTIONS, VIEWS


@hookimpl
def zoo_register_properties() -> list[PropertySpec]:
    return [
        PropertySpec(
            name=name,
            factory=f"zooplatform_stats.properties:{factory}",
            summary=summary,
            requires=("torch",),
            install="pip install torch",
            unit=unit,
        )
        for name, factory, summary, unit in (
            ("sparsity", "sparsity", "Share of floating-point values that are zero.", "fraction"),
            ("weight_norm", "weight_norm", "Euclidean norm of all floating-point values.", ""),
            (
                "dead_units",
                "dead_units",
                "Share of units of convolutions and linear layers without incoming weights.",
                "fraction",
            ),
        )
    ]


@hookimpl
def zoo_register_sql() -> list[SqlFunction | SqlView]:
    return [*FUNCTIONS, *VIEWS]
