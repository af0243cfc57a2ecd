"""Reads the table definitions in `schemas/` and gives Arrow schemas."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pyarrow as pa

from zooplatform.errors import SchemaError

__all__ = ["Column", "TableSchema", "rows_to_table", "table_names", "table_schema"]

_PRIMITIVES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "binary": pa.binary(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: pa.DataType
    nullable: bool
    description: str
    unit: str | None


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One table: `key` columns identify a row, of rows with one key the latest commit counts.

    `added_later` says that catalogs made before the table existed lack it, until something is written to it.
    """

    name: str
    version: int
    description: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    arrow: pa.Schema
    added_later: bool = False


def _arrow_type(spec: Any) -> pa.DataType:
    if isinstance(spec, str):
        return _PRIMITIVES[spec]
    if "list" in spec:
        return pa.list_(pa.field("element", _arrow_type(spec["list"]), nullable=False))
    fields = [
        pa.field(f["name"], _arrow_type(f["type"]), nullable=f["nullable"]) for f in spec["struct"]
    ]
    return pa.struct(fields)


@cache
def _load() -> dict[str, TableSchema]:
    tables = {}
    for entry in sorted(resources.files("zooplatform.schemas").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".json"):
            continue
        raw = json.loads(entry.read_text(encoding="utf-8"))
        columns = tuple(
            Column(
                c["name"], _arrow_type(c["type"]), c["nullable"], c["description"], c.get("unit")
            )
            for c in raw["columns"]
        )
        arrow = pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in columns])
        tables[raw["table"]] = TableSchema(
            raw["table"],
            raw["version"],
            raw["description"],
            tuple(raw["key"]),
            columns,
            arrow,
            added_later=raw.get("added_later", False),
        )
    return tables


def table_names() -> tuple[str, ...]:
    """Every table, `commits` last, since it is written last."""
    names = [name for name in _load() if name != "commits"]
    return (*names, "commits")


def table_schema(name: str) -> TableSchema:
    """The definition of one table.

    Raises:
        SchemaError: there is no such table.
    """
    try:
        return _load()[name]
    except KeyError:
        raise SchemaError(f"No table {name!r}. Tables: {', '.join(table_names())}.") from None


def rows_to_table(name: str, rows: list[dict[str, Any]] | pa.Table, commit_id: str) -> pa.Table:
    """Rows as an Arrow table of exactly the schema of `name`, stamped with `commit_id`.

    Raises:
        SchemaError: a column is unknown, missing without being nullable, or of another type.
    """
    schema = table_schema(name)
    if isinstance(rows, pa.Table):
        return _stamp(schema, rows, commit_id)
    known = set(schema.arrow.names)
    for row in rows:
        if not known.issuperset(row):
            unknown = sorted(set(row) - known)
            raise SchemaError(
                f"Table {name!r} has no column {', '.join(unknown)}; columns are {sorted(known)}."
            )
    columns = []
    for column in schema.columns:
        values = (
            [commit_id] * len(rows)
            if column.name == "commit_id"
            else [r.get(column.name) for r in rows]
        )
        if not column.nullable and any(v is None for v in values):
            raise SchemaError(f"Column {column.name!r} of table {name!r} may not be empty.")
        try:
            columns.append(pa.array(values, type=column.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as exc:
            raise SchemaError(
                f"Column {column.name!r} of table {name!r} takes {column.type}: {exc}"
            ) from exc
    return pa.Table.from_arrays(columns, schema=schema.arrow)


def _stamp(schema: TableSchema, table: pa.Table, commit_id: str) -> pa.Table:
    columns = []
    for field in schema.arrow:
        if field.name == "commit_id":
            columns.append(pa.array([commit_id] * table.num_rows, type=pa.string()))
        elif field.name in table.column_names:
            column = table.column(field.name).cast(field.type)
            if column.null_count and not field.nullable:
                raise SchemaError(
                    f"Column {field.name!r} of table {schema.name!r} may not be empty."
                )
            columns.append(column)
        elif field.nullable:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            raise SchemaError(f"Column {field.name!r} of table {schema.name!r} may not be empty.")
    return pa.Table.from_arrays(columns, schema=schema.arrow)
