"""What every SQL function and view must do, as tests to inherit from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.interfaces import SqlFunction

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

    from zooplatform.plugins import Registry

__all__ = ["SqlContract", "SqlExample"]


@dataclass(frozen=True, slots=True)
class SqlExample:
    """A call and its value: `SqlExample("mb", "1500000", 1.5)`.

    `arguments` is SQL text; floats are compared to a relative error of 1e-9.
    """

    function: str
    arguments: str
    expected: Any


class SqlContract:
    """Tests of what a plugin registers through `zoo_register_sql`.

    Inherit, name the `plugin` and list `examples`, at least one per function.
    """

    plugin: str
    examples: Sequence[SqlExample] = ()

    @pytest.fixture
    def functions(self, zoo_registry: Registry) -> list[SqlFunction]:
        owned = [item for owner, item in zoo_registry.sql if owner == self.plugin]
        assert owned, f"plugin {self.plugin!r} registers no SQL"
        return [item for item in owned if isinstance(item, SqlFunction)]

    @pytest.fixture
    def connection(self, functions: list[SqlFunction]) -> Any:
        """A plain DuckDB connection with the functions of the plugin."""
        import duckdb

        with duckdb.connect() as connection:
            _create(connection, functions)
            yield connection

    def test_every_function_has_an_example(self, functions: list[SqlFunction]) -> None:
        assert {item.name for item in functions} == {item.function for item in self.examples}

    def test_the_examples_hold(self, connection: duckdb.DuckDBPyConnection) -> None:
        for example in self.examples:
            value = _one(connection, f"{example.function}({example.arguments})")
            same = value == example.expected or (
                isinstance(value, float)
                and math.isclose(value, example.expected, rel_tol=1e-9, abs_tol=1e-12)
            )
            assert same, f"{example} gave {value!r}"

    def test_the_type_is_the_declared_one(
        self, connection: duckdb.DuckDBPyConnection, functions: list[SqlFunction]
    ) -> None:
        declared = {item.name: item.returns for item in functions}
        for example in self.examples:
            given = _one(connection, f"typeof({example.function}({example.arguments}))")
            assert given == declared[example.function], example

    def test_null_gives_null_where_that_is_declared(
        self, connection: duckdb.DuckDBPyConnection, functions: list[SqlFunction]
    ) -> None:
        for item in functions:
            if item.null_handling == "NULL in, NULL out":
                nulls = ", ".join("NULL" for _ in item.parameters)
                assert _one(connection, f"{item.name}({nulls})") is None, item.name

    def test_they_work_on_a_column(
        self, connection: duckdb.DuckDBPyConnection, functions: list[SqlFunction]
    ) -> None:
        for example in self.examples:
            call = f"{example.function}({example.arguments})"
            rows = connection.execute(f"SELECT {call} FROM range(3000)").fetchall()
            assert len(rows) == 3000, call


def _create(connection: duckdb.DuckDBPyConnection, functions: list[SqlFunction]) -> None:
    """Create macros in any order: one that calls another waits until that one is there."""
    import duckdb

    from zooplatform.catalog.plugin_sql import create_statement

    waiting = list(functions)
    while waiting:
        refused: list[tuple[SqlFunction, duckdb.Error]] = []
        for item in waiting:
            try:
                connection.execute(create_statement(item, taken=()))
            except duckdb.Error as error:
                refused.append((item, error))
        if len(refused) == len(waiting):
            raise refused[0][1]
        waiting = [item for item, _ in refused]


def _one(connection: duckdb.DuckDBPyConnection, expression: str) -> Any:
    row = connection.execute(f"SELECT {expression}").fetchone()
    assert row is not None
    return row[0]
