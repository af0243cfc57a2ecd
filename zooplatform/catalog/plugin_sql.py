"""SQL that plugins give: macros and views, and how each becomes a statement."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from zooplatform.catalog.views import quote
from zooplatform.errors import QueryError
from zooplatform.interfaces import SqlFunction, SqlView

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["FUNCTIONS_SCHEMA", "create_statement", "sql_text"]

# Columns of `zoo_functions()`.
FUNCTIONS_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("plugin", pa.string()),
        pa.field("parameters", pa.list_(pa.string())),
        pa.field("returns", pa.string()),
        pa.field("null_handling", pa.string()),
        pa.field("summary", pa.string()),
        pa.field("error", pa.string()),
    ]
)


def sql_text(spec: SqlFunction | SqlView) -> str:
    """The query that a descriptor amounts to, for checking it as one from a user is."""
    return spec.sql if isinstance(spec, SqlView) else f"SELECT {spec.sql}"


def create_statement(
    spec: SqlFunction | SqlView, *, taken: Collection[str], functions: Collection[str] = ()
) -> str:
    """The statement that creates it; `taken` are views and `functions` functions of the catalog itself.

    Raises:
        QueryError: the name belongs to the catalog or to DuckDB, where it would change what queries mean.
    """
    if isinstance(spec, SqlView):
        if spec.name in taken:
            raise QueryError(f"the catalog has a view {spec.name!r} itself")
        return f"CREATE VIEW {quote(spec.name)} AS {spec.sql}"
    if spec.name in functions:
        raise QueryError(f"the catalog has a function {spec.name!r} itself")
    if spec.name in _built_in():
        raise QueryError(f"DuckDB has a function {spec.name!r} itself")
    parameters = ", ".join(quote(name) for name in spec.parameters)
    # The cast holds a plugin to the type that it declares.
    return f"CREATE MACRO {quote(spec.name)}({parameters}) AS CAST(({spec.sql}) AS {spec.returns})"


@cache
def _built_in() -> frozenset[str]:
    """Names of DuckDB's own functions; asked once, since it takes as long as opening a connection."""
    with duckdb.connect(":memory:") as connection:
        rows = connection.sql("SELECT function_name FROM duckdb_functions()").fetchall()
    return frozenset(name for (name,) in rows)
