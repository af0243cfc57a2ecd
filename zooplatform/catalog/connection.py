"""SQL over one snapshot: a DuckDB connection in memory that reads the committed files and nothing else."""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import duckdb
import pyarrow as pa

from zooplatform.catalog.plugin_sql import FUNCTIONS_SCHEMA, create_statement, sql_text
from zooplatform.catalog.predicting import (
    NEAREST,
    NEAREST_SQL,
    PREDICT,
    PREDICTION_FUNCTIONS,
    Predictions,
)
from zooplatform.catalog.sql_check import Query, check_query
from zooplatform.catalog.views import (
    CORE_VIEWS,
    METRIC_KEYS_SQL,
    STORED,
    WIDE,
    MetricKey,
    literal,
    quote,
    stored_sql,
    wide_sql,
)
from zooplatform.catalog.weight_views import WEIGHT_VIEWS, Weights
from zooplatform.errors import IntegrityError, QueryError
from zooplatform.schema import table_names, table_schema

if TYPE_CHECKING:
    from types import TracebackType

    from zooplatform.catalog.snapshot import Snapshot
    from zooplatform.errors import ZooError
    from zooplatform.interfaces import SqlFunction, SqlView
    from zooplatform.registry import Registry

__all__ = ["VIEW_NAMES", "Engine"]

Parameters = Sequence[Any] | Mapping[str, Any]

_T = TypeVar("_T")

VIEW_NAMES: tuple[str, ...] = tuple(sorted({*table_names(), *CORE_VIEWS, "wide", *WEIGHT_VIEWS}))


class Engine:
    """Answers SQL over one snapshot.

    Opening costs nothing; the first query opens the connection, and each view is created when a query first names it.
    What `zoo_predict` computes for a query is committed after it. Safe to use from several threads, which then wait for
    each other.

    Attributes:
        notes: what is wrong with SQL that plugins give; filled as it is needed.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        registry: Registry,
        *,
        threads: int | None = None,
        predictions: Predictions | None = None,
    ) -> None:
        self.snapshot, self.registry = snapshot, registry
        self._predictions = predictions or Predictions(snapshot.path, registry, snapshot.mirror)
        self.notes: list[str] = []
        self._threads = threads
        self._lock = threading.RLock()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._close: Callable[[], object] | None = None
        self._weights = Weights(snapshot)
        self._defined: set[str] = set()
        self._plugins = {spec.name: (owner, spec) for owner, spec in registry.sql}
        self._broken: dict[str, str] = {}
        self._failures: list[ZooError] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection and the mapped files back; the next query opens them again."""
        with self._lock:
            if self._close is not None:
                self._close()
            self._connection = self._close = None
            self._weights = Weights(self.snapshot)
            self._defined.clear()

    def sql(self, query: str, parameters: Parameters = ()) -> pa.Table:
        """The whole result of a query.

        Args:
            query: one statement that only reads.
            parameters: values of `?` in order, or of `$name` by name.

        Raises:
            QueryError: it was refused, or failed; carries DuckDB's own message.
            IntegrityError: a file that it reads is missing or damaged.
        """
        try:
            with self._lock:
                relation = self._relation(query, parameters)
                table = self._interruptible(relation.to_arrow_table)
                large = _huge_integers(relation)
        finally:
            self._predictions.store()
        columns = [
            _int64(column, name) if name in large else column
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
        return pa.table(columns, schema=_schema(table.schema, large))

    def reader(
        self, query: str, parameters: Parameters = (), batch_rows: int = 65_536
    ) -> pa.RecordBatchReader:
        """The result of a query in batches, made while they are read.

        It has a connection of its own, given back when the reader is exhausted or dropped.

        Raises:
            QueryError, IntegrityError: as `sql`; also while reading.
        """
        engine = Engine(
            self.snapshot, self.registry, threads=self._threads, predictions=self._predictions
        )
        try:
            relation = engine._relation(query, parameters)
            large = _huge_integers(relation)
            batches = engine._interruptible(lambda: relation.to_arrow_reader(batch_rows))
        except BaseException:
            engine.close()
            raise
        schema = _schema(batches.schema, large)
        return pa.RecordBatchReader.from_batches(schema, engine._stream(batches, schema, large))

    def _stream(
        self, batches: pa.RecordBatchReader, schema: pa.Schema, large: frozenset[str]
    ) -> Iterator[pa.RecordBatch]:
        try:
            with self:
                while (batch := self._interruptible(lambda: next(batches, None))) is not None:
                    columns = [
                        _int64(column, name) if name in large else column
                        for name, column in zip(schema.names, batch.columns, strict=True)
                    ]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)
        finally:
            self._predictions.store()

    # --- running ------------------------------------------------------------------------------------------------------

    def _relation(self, text: str, parameters: Parameters) -> duckdb.DuckDBPyRelation:
        connection = self._opened()
        self._failures.clear()
        query = check_query(connection, text)
        values = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
        self._define_all() if query.lists_names else self._define_named(query)
        try:
            return self._run(lambda: connection.sql(text, params=values or None))
        except QueryError as exc:
            named = (query.tables | query.functions).difference(VIEW_NAMES)
            broken = sorted(named.intersection(self._broken))
            if broken:
                raise QueryError(f"{exc}\n{self._broken[broken[0]]}") from exc.__cause__
            if not isinstance(exc.__cause__, duckdb.CatalogException):
                raise
            # A name that is not there: with all of them defined, DuckDB suggests the one that was meant.
            self._define_all()
            return self._run(lambda: connection.sql(text, params=values or None))

    def _run(self, work: Callable[[], _T]) -> _T:
        """Call into DuckDB and translate what it raises."""
        try:
            return work()
        except (duckdb.Error, pa.ArrowException, OSError) as exc:
            failure = self._weights.take_failure()
            if failure is None and self._failures:
                failure = self._failures[0]
                self._failures.clear()
            if failure is not None:
                raise failure from failure.__cause__ or exc
            # Files that are not the catalog's were refused before, so these are.
            if isinstance(exc, duckdb.IOException | duckdb.PermissionException):
                missing = [path for path in self._files() if not Path(path).exists()]
                what = f"{missing[0]}: table file is missing." if missing else f"{exc}"
                raise IntegrityError(
                    f"{what} Restore it from a copy of the catalog; `zoo check` lists what is affected."
                ) from exc
            raise QueryError(str(exc)) from exc

    def _interruptible(self, work: Callable[[], _T]) -> _T:
        """As `_run`, for what may take long: Ctrl-C ends it.

        By themselves DuckDB and Arrow hear Ctrl-C in some of their phases only, so they work in
        another thread while this one waits. Signals arrive in the main thread alone.
        """
        if threading.current_thread() is not threading.main_thread():
            return self._run(work)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._run, work)
            try:
                return running.result()
            except KeyboardInterrupt:
                # Again and again: an interrupt that comes before the query has begun is lost.
                while self._connection is not None and not running.done():
                    self._connection.interrupt()
                    wait([running], timeout=0.05)
                raise

    def _opened(self) -> duckdb.DuckDBPyConnection:
        if self._connection is not None:
            return self._connection
        config: dict[str, Any] = {
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        if self._threads is not None:
            config["threads"] = self._threads
        connection = duckdb.connect(":memory:", config=config)
        # At exit too: a connection that is still open then prints a leak report.
        self._close = weakref.finalize(self, connection.close)
        # Large sorts and joins may spill, into a folder that DuckDB makes and removes itself.
        spill = Path(tempfile.gettempdir()) / f"zooplatform-spill-{id(connection):x}"
        connection.execute(f"CREATE SCHEMA {STORED}")
        for setting in (
            "TimeZone = 'UTC'",
            "enable_progress_bar = false",
            # It scans a table twice for ORDER BY ... LIMIT, which costs four times as much here.
            "disabled_optimizers = 'late_materialization'",
            f"temp_directory = {literal(str(spill))}",
            f"allowed_paths = [{', '.join(literal(path) for path in self._files())}]",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        for name, table in self._weights.tables.items():
            connection.register(name, table)
        self._defined.update(WEIGHT_VIEWS)
        self._connection = connection
        return connection

    def _files(self) -> list[str]:
        """Table files of the snapshot."""
        parts = (part for name in table_names() for part in self.snapshot.files(name))
        return [path for part in parts for path in part]

    # --- defining what a query names ----------------------------------------------------------------------------------

    def _define_named(self, query: Query) -> None:
        for name in sorted(query.tables | query.functions):
            self._define(name)

    def _define_all(self) -> None:
        for name in (*VIEW_NAMES, *self._plugins, PREDICT, NEAREST, "zoo_functions"):
            self._define(name)

    def _define(self, name: str) -> None:
        if name in self._defined:
            return
        # Entered first, since SQL of plugins may name itself or run in a circle.
        self._defined.add(name)
        try:
            self._create(name)
        except BaseException:
            self._defined.discard(name)
            raise

    def _create(self, name: str) -> None:
        if name == "zoo_functions":
            self._define_functions()
        elif name == PREDICT:
            self._predictions.define(self._opened(), self.snapshot, self._failures)
        elif name == NEAREST:
            for needed in ("artifacts", "embeddings"):
                self._define(needed)
            self._run(lambda: self._opened().execute(NEAREST_SQL))
        elif name == "wide":
            for needed in WIDE.needs:
                self._define(needed)
            self._create_view("wide", wide_sql(self._metric_keys()))
        elif name in CORE_VIEWS:
            if name in table_names():
                self._create_stored(name, f"{STORED}.{name}")
            for needed in CORE_VIEWS[name].needs:
                self._define(needed)
            self._create_view(name, CORE_VIEWS[name].sql)
        elif name in table_names():
            self._create_stored(name, name)
        if name in self._plugins:
            self._define_plugin(*self._plugins[name])

    def _create_view(self, name: str, sql: str) -> None:
        connection = self._opened()
        self._run(lambda: connection.execute(f"CREATE OR REPLACE VIEW {name} AS {sql}"))

    def _create_stored(self, table: str, view: str) -> None:
        files = self.snapshot.files(table)
        if files.mixed and "committed" not in self._defined:
            self._defined.add("committed")
            self._create_table("committed", pa.table({"commit_id": self.snapshot.committed}))
        if not files.pure and not files.mixed:
            self._create_table(f"empty_{table}", table_schema(table).arrow.empty_table())
        self._create_view(view, stored_sql(table, files, replaced=self.snapshot.replaced(table)))

    def _create_table(self, name: str, rows: pa.Table) -> None:
        connection = self._opened()
        connection.register("_rows", rows)
        connection.execute(f"CREATE OR REPLACE TABLE {STORED}.{name} AS FROM _rows")
        connection.unregister("_rows")

    def _metric_keys(self) -> list[MetricKey]:
        connection = self._opened()
        rows = self._run(lambda: connection.sql(METRIC_KEYS_SQL).fetchall())
        return [MetricKey(*row) for row in rows]

    def _define_plugin(self, owner: str, spec: SqlFunction | SqlView) -> None:
        connection = self._opened()
        try:
            self._define_named(check_query(connection, sql_text(spec)))
            statement = create_statement(
                spec, taken=VIEW_NAMES, functions=(PREDICT, NEAREST, "zoo_functions")
            )
            self._run(lambda: connection.execute(statement))
        except QueryError as exc:
            note = f"SQL name {spec.name!r} of plugin {owner!r} cannot be used: {exc}"
            self._broken[spec.name] = note
            self.notes.append(note)

    def _define_functions(self) -> None:
        for name in self._plugins:
            self._define(name)
        rows = list(PREDICTION_FUNCTIONS)
        rows += [
            {
                "name": spec.name,
                "plugin": owner,
                "summary": spec.summary,
                "error": self._broken.get(spec.name),
                **_signature(spec),
            }
            for owner, spec in self._plugins.values()
        ]
        self._create_table("functions", pa.Table.from_pylist(rows, schema=FUNCTIONS_SCHEMA))
        self._opened().execute(
            f"CREATE OR REPLACE MACRO zoo_functions() AS TABLE SELECT * FROM {STORED}.functions"
        )


def _signature(spec: SqlFunction | SqlView) -> dict[str, Any]:
    from zooplatform.interfaces import SqlView

    if isinstance(spec, SqlView):
        return {"kind": "view"}
    return {
        "kind": "function",
        "parameters": list(spec.parameters),
        "returns": spec.returns,
        "null_handling": spec.null_handling,
    }


def _huge_integers(relation: duckdb.DuckDBPyRelation) -> frozenset[str]:
    """Columns of DuckDB's 128-bit integers, which is what `sum` of integers gives."""
    return frozenset(
        name
        for name, type_ in zip(relation.columns, relation.types, strict=True)
        if str(type_) == "HUGEINT"
    )


def _schema(schema: pa.Schema, large: frozenset[str]) -> pa.Schema:
    return pa.schema(
        [field.with_type(pa.int64()) if field.name in large else field for field in schema]
    )


def _int64(column: Any, name: str) -> Any:
    """Decimals of 38 digits, which Arrow has for 128-bit integers, as the integers that they are."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as exc:
        raise QueryError(
            f"Column {name!r} holds an integer beyond 64 bits. Cast it: {quote(name)}::DOUBLE or ::VARCHAR."
        ) from exc
