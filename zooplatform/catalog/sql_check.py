"""What a query is allowed to be, and what it names.

DuckDB's own parser says what a text means: its syntax tree is searched, never the text. External access is off besides;
this comes first because it can say what was wrong, and because some table functions of DuckDB read memory or settings
rather than files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from zooplatform.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["Query", "check_query"]

ALLOWED = "A query may be SELECT, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN of these."

# Names in the FROM clause that compute from their arguments alone or list what the connection holds.
_TABLE_FUNCTIONS = frozenset(
    {
        *("generate_series", "generate_subscripts", "range", "repeat", "repeat_row", "unnest"),
        *("json_each", "json_tree", "pg_timezone_names", "zoo_functions", "nearest"),
        *("duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_tables"),
        *("duckdb_types", "duckdb_views"),
    }
)
_QUERY_NODES = frozenset(["SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"])
_PATH_CHARACTERS = frozenset("/\\.:*?[]")
_LISTING_SCHEMAS = frozenset(["information_schema", "pg_catalog"])


@dataclass(frozen=True, slots=True)
class Query:
    """A statement that may run.

    Attributes:
        tables: names in FROM clauses, in lower case; those of its own WITH clauses are among them.
        functions: names of functions, in lower case.
        lists_names: it asks what tables or functions there are, so all of them must be defined.
    """

    tables: frozenset[str]
    functions: frozenset[str]
    lists_names: bool


def check_query(connection: duckdb.DuckDBPyConnection, text: str) -> Query:
    """Parse a query and find what it names.

    Raises:
        QueryError: it does not parse (DuckDB's message), is more than one statement, or would do anything but read
            the catalog.
    """
    statement = _one_statement(connection, text)
    if statement.type == duckdb.StatementType.EXPLAIN:
        statement = _explained(connection, statement.query)
    if statement.type == duckdb.StatementType.MULTI:
        raise QueryError(
            "PIVOT must list its columns, because DuckDB would create a type otherwise: "
            "PIVOT ... ON name IN ('a', 'b') USING ..."
        )
    if statement.type != duckdb.StatementType.SELECT:
        raise QueryError(
            f"{statement.type.name.replace('_', ' ')} is refused: SQL only reads the catalog. {ALLOWED}"
        )
    return _named(_tree(connection, statement.query))


def _one_statement(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.Statement:
    try:
        statements = connection.extract_statements(text)
    except duckdb.Error as exc:
        raise QueryError(str(exc)) from exc
    if len(statements) != 1:
        count = "no statement" if not statements else f"{len(statements)} statements"
        raise QueryError(f"The text holds {count}; give one. {ALLOWED}")
    return statements[0]


def _explained(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.Statement:
    """The statement behind EXPLAIN and its options: the longest rest of the text that parses.

    Options are words or stand in parentheses, so a rest that begins among them does not parse.
    """
    for offset, _ in duckdb.tokenize(text)[1:]:
        try:
            statements = connection.extract_statements(text.encode()[offset:].decode())
        except duckdb.Error:
            continue
        if len(statements) == 1 and statements[0].type != duckdb.StatementType.EXPLAIN:
            return statements[0]
    raise QueryError(f"EXPLAIN of this statement is refused. {ALLOWED}")


def _tree(connection: duckdb.DuckDBPyConnection, text: str) -> Any:
    rows = connection.execute("SELECT json_serialize_sql(?, skip_default := true)", [text])
    serialized = rows.fetchall()[0][0]
    try:
        tree = json.loads(serialized)
    except RecursionError:
        raise QueryError(
            "The query is nested too deeply. Split it with WITH, or give long lists as parameters: "
            "x IN (SELECT unnest(?))."
        ) from None
    if tree["error"]:
        raise QueryError(f"The query is refused: {tree['error_message']} {ALLOWED}")
    return tree["statements"]


def _named(tree: Any) -> Query:
    tables, functions, lists_names = set(), set(), False
    for node in _nodes(tree):
        kind = node.get("type")
        if not isinstance(kind, str):
            continue
        if kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise QueryError(
                f"{kind.split('_')[0]} inside WITH is refused: SQL only reads the catalog. {ALLOWED}"
            )
        if kind == "BASE_TABLE":
            tables.add(_table(node["table_name"]))
            lists_names |= str(node.get("schema_name", "")).lower() in _LISTING_SCHEMAS
            lists_names |= node["table_name"].lower().startswith(("duckdb_", "pg_", "sqlite_"))
        elif kind == "SHOW_REF":
            tables.add(node.get("table_name", "").strip('"').lower())
            lists_names |= node.get("show_type") in ("SHOW_SPECIAL", "SHOW_FROM")
        elif kind == "TABLE_FUNCTION":
            name = _table_function(node["function"]["function_name"], _TABLE_FUNCTIONS)
            lists_names |= name.startswith("duckdb_")
            functions.add(name)
        if node.get("class") == "FUNCTION":
            functions.add(node["function_name"].lower())
    return Query(frozenset(tables), frozenset(functions), lists_names)


def _table(name: str) -> str:
    if not _PATH_CHARACTERS.isdisjoint(name):
        raise QueryError(
            f"{name!r} is refused: SQL reads the catalog and no files. `SHOW TABLES` lists what it can read."
        )
    return name.lower()


def _table_function(name: str, allowed: Collection[str]) -> str:
    if name.lower() not in allowed:
        raise QueryError(
            f"Table function {name!r} is refused: SQL reads the catalog, no files, settings or other SQL. "
            f"Allowed: {', '.join(sorted(allowed))}."
        )
    return name.lower()


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a tree, without recursion."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
