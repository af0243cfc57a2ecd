"""The views over the tables: their SQL and what they need, created only when a query names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zooplatform.schema import table_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zooplatform.catalog.snapshot import TableFiles

__all__ = [
    "CORE_VIEWS",
    "STORED",
    "MetricKey",
    "View",
    "metric_columns",
    "quote",
    "stored_sql",
    "wide_sql",
]

# Schema of what views are made from; not on the search path.
STORED = "stored"


class View(NamedTuple):
    """A view: its query, the views it reads, and one line about it."""

    sql: str
    needs: tuple[str, ...]
    summary: str


class MetricKey(NamedTuple):
    """What tells metrics apart; `shared` says that some checkpoint has it for several data sets."""

    dataset: str
    split: str
    name: str
    origin: str
    shared: bool


def quote(name: str) -> str:
    """A name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def stored_sql(table: str, files: TableFiles, *, replaced: bool) -> str:
    """Committed rows of a table, of rows with one key the latest.

    Reads `stored.committed` (commit ids) where files hold uncommitted rows, and
    `stored.empty_<table>` where there are no files.
    """
    columns = ", ".join(quote(column.name) for column in table_schema(table).columns)
    parts = []
    if files.pure:
        parts.append(f"SELECT {columns} FROM {_parquet(files.pure)}")
    if files.mixed:
        parts.append(
            f"SELECT {columns} FROM {_parquet(files.mixed)} "
            f"WHERE commit_id IN (SELECT commit_id FROM {STORED}.committed)"
        )
    if not parts:
        return f"SELECT {columns} FROM {STORED}.empty_{table}"
    sql = " UNION ALL ".join(parts)
    if replaced:
        key = ", ".join(quote(column) for column in table_schema(table).key)
        sql = (
            f"SELECT {columns} FROM ({sql}) "
            f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY commit_id DESC) = 1"
        )
    return sql


def _parquet(paths: Sequence[str]) -> str:
    return f"read_parquet([{', '.join(literal(path) for path in paths)}])"


CORE_VIEWS: Mapping[str, View] = {
    "tensors": View(
        f"""
        SELECT * FROM {STORED}.tensors
        UNION ALL BY NAME
        SELECT c.commit_id, c.checkpoint_id, l.tensor_index, l.t.name AS name, l.t.dtype AS dtype,
            l.t.shape AS shape, l.t.numel AS num_elements, l.t.size_bytes AS size_bytes,
            c.shard_id, c.shard_row
        FROM (SELECT * FROM checkpoints WHERE shard_id IS NOT NULL) AS c
        JOIN (
            SELECT architecture_id, unnest(layout) AS t,
                generate_subscripts(layout, 1) - 1 AS tensor_index
            FROM architectures
        ) AS l USING (architecture_id)
        """,
        ("checkpoints", "architectures"),
        "Every tensor of every checkpoint: name, dtype, shape, size and, where it is stored by itself, its hash.",
    ),
    "hyperparameters": View(
        # Extracting by key after `unnest` lets a condition on `key` come first: four times faster than json_each.
        """
        SELECT model_id, key, json_extract_string(
            config, '/' || replace(replace(key, '~', '~0'), '/', '~1')) AS value
        FROM (SELECT model_id, config, unnest(json_keys(config)) AS key FROM models)
        """,
        ("models",),
        "One row per hyper-parameter of a model; values as text, nested ones as JSON.",
    ),
}

_WIDE_COLUMNS: Mapping[str, str] = {
    "checkpoint_id": "c.checkpoint_id",
    "model_id": "c.model_id",
    "zoo_id": "m.zoo_id",
    "zoo": "z.name",
    "model": "m.name",
    "architecture_id": "c.architecture_id",
    "architecture": "a.name",
    "family": "a.family",
    "license": "m.license",
    "seed": "m.seed",
    "step": "c.step",
    "epoch": "c.epoch",
    "dtype": "c.dtype",
    "num_parameters": "c.num_parameters",
    "size_bytes": "c.size_bytes",
    "state": "c.state",
}
WIDE = View(
    "", ("checkpoints", "models", "zoos", "architectures", "metrics"),
    "One row per checkpoint: its model, zoo and architecture, and each metric as a column.",
)  # fmt: skip

# Which data sets, splits and names there are, and whether one checkpoint has a name for more than one data set.
METRIC_KEYS_SQL = """
    WITH keys AS (SELECT DISTINCT dataset, split, name, origin FROM metrics),
    several AS (
        SELECT split, name, origin FROM keys GROUP BY ALL HAVING count(DISTINCT dataset) > 1
    ),
    shared AS (
        SELECT DISTINCT split, name, origin FROM (
            SELECT split, name, origin
            FROM metrics SEMI JOIN several USING (split, name, origin)
            GROUP BY checkpoint_id, split, name, origin
            HAVING count(DISTINCT dataset) > 1
        )
    )
    SELECT dataset, split, name, origin, shared.name IS NOT NULL
    FROM keys LEFT JOIN shared USING (split, name, origin)
    ORDER BY ALL
"""


def metric_columns(keys: Iterable[MetricKey]) -> dict[str, list[MetricKey]]:
    """Columns of `wide` and the metrics that each is taken from, measured ones first.

    A column is called `<split>_<name>` (`test_accuracy`), or just by the name where that begins with the split or there
    is none. Where a checkpoint has it for several data sets, each gets a column `<dataset>_<split>_<name>`.
    Predictions get columns of their own that begin with `predicted_`.
    """
    columns: dict[str, tuple[str, list[MetricKey]]] = {}
    for key in sorted(keys, key=lambda key: (key.origin != "measured", key)):
        name = key.name
        if key.split and not name.startswith(f"{key.split}_"):
            name = f"{key.split}_{name}"
        if key.shared and key.dataset:
            name = f"{key.dataset}_{name}"
        if key.origin == "predicted" and not name.startswith("predicted_"):
            name = f"predicted_{name}"
        if name.lower() in _WIDE_COLUMNS:
            name = f"metric_{name}"
        # DuckDB's names do not differ by case, so metrics that do share a column.
        columns.setdefault(name.lower(), (name, []))[1].append(key)
    return dict(columns.values())


def wide_sql(keys: Iterable[MetricKey]) -> str:
    """The query behind `wide` for the metrics that there are."""
    columns = metric_columns(keys)
    fixed = ", ".join(f"{source} AS {name}" for name, source in _WIDE_COLUMNS.items())
    sql = (
        "FROM checkpoints AS c LEFT JOIN models AS m USING (model_id) "
        "LEFT JOIN zoos AS z ON z.zoo_id = m.zoo_id "
        "LEFT JOIN architectures AS a ON a.architecture_id = c.architecture_id"
    )
    if not columns:
        return f"SELECT {fixed} {sql}"
    values = ", ".join(f"{_value(found)} AS {quote(name)}" for name, found in columns.items())
    names = ", ".join(f"v.{quote(name)}" for name in columns)
    return (
        f"SELECT {fixed}, {names} {sql} "
        f"LEFT JOIN (SELECT checkpoint_id, {values} FROM metrics GROUP BY checkpoint_id) AS v "
        "ON v.checkpoint_id = c.checkpoint_id"
    )


def _value(keys: Sequence[MetricKey]) -> str:
    """The first of `keys` that a checkpoint has."""
    parts = []
    for key in keys:
        condition = " AND ".join(
            f"{column} = {literal(value)}"
            for column, value in zip(("dataset", "split", "name", "origin"), key[:4], strict=True)
        )
        parts.append(f"max(value) FILTER (WHERE {condition})")
    return parts[0] if len(parts) == 1 else f"coalesce({', '.join(parts)})"
