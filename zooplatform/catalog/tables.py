"""Append-only Delta tables: Parquet files and a JSON log that other engines read as they are.

Appending is written here rather than through `deltalake`, because a commit touches many tables: one append costs about
a millisecond this way against ten through the library, and every file is fsynced, which the library never does
(protocol: https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Delta Log Entries", "Action Reconciliation").
The tests read every table back through `deltalake`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from zooplatform.catalog.files import fsync_dir, fsync_file, new_id, offered, publish_new, reached
from zooplatform.catalog.key_filter import KeyFilter, key_filter
from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.schema import table_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["DeltaTable", "PendingFile", "TableFile"]

log = logging.getLogger(__name__)

_CHECKPOINT_EVERY = 100
_ROW_GROUP = 131_072
# Questions about metrics ask for few of them and many checkpoints: rows of one lie together, and readers skip the rest.
_CLUSTERED = {"metrics": ("name", "dataset", "split")}
# Tags of the add actions; other engines pass over them.
_COMPLETE_AT = "zooplatform.complete_at"
_CHECKSUM = "zooplatform.xxh3"
_KEYS = "zooplatform.keys"
_REPLACES = "zooplatform.replaces"
# What a log entry says besides files: half of the time that a small catalog takes to open would go into parsing it.
_NO_FILES = (b'{"commitInfo":', b'{"metaData":', b'{"protocol":')


class TableFile(NamedTuple):
    """A live Parquet file.

    `commit_id` is set when all its rows have that one commit. `complete_at` is set when compaction made the file out of
    committed rows only: the version of `commits` at which they all were. `checksum` is the xxh3-128 of the file, None
    when another engine wrote it. `keys` tells what values of the table's key it may hold, None when nothing is known.
    `replaces` is for one commit's file of `commits`: the tables in which the commit supersedes rows.
    """

    path: str
    size_bytes: int
    num_rows: int
    commit_id: str | None
    complete_at: int | None
    checksum: str | None
    keys: KeyFilter | None = None
    replaces: tuple[str, ...] | None = None

    def may_hold(self, key: str) -> bool:
        """Whether a row may have this key, for tables whose key is one column."""
        return self.keys is None or key in self.keys


class PendingFile(NamedTuple):
    """A Parquet file that is written but not yet in the log."""

    path: Path
    action: dict[str, Any]


@dataclass
class _State:
    version: int = -1
    files: dict[str, TableFile] = field(default_factory=dict)


class DeltaTable:
    """One table under `tables/<name>/`. Remembers what it has read, so refreshing reads only new log entries."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.log = path / "_delta_log"
        self._state = _State()

    @classmethod
    def create(cls, path: Path, name: str, schema: pa.Schema) -> DeltaTable:
        """Create an empty table, durably."""
        table = cls(path, name)
        table.log.mkdir(parents=True, exist_ok=True)
        actions: list[dict[str, Any]] = [
            {"commitInfo": {"timestamp": _now_ms(), "operation": "CREATE TABLE"}},
            {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
            {
                "metaData": {
                    "id": _uuid_shape(new_id()),
                    "name": name,
                    "format": {"provider": "parquet", "options": {}},
                    "schemaString": json.dumps(_delta_struct(schema)),
                    "partitionColumns": [],
                    "configuration": {"delta.appendOnly": "false"},
                    "createdTime": _now_ms(),
                }
            },
        ]
        publish_new(table.log, _entry_name(0), _lines(actions))
        fsync_dir(table.log)
        fsync_dir(path)
        fsync_dir(path.parent)
        return table

    # --- reading ------------------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Read log entries that are new; returns the version of the table.

        It is -1 for a table that is younger than the catalog and was never written to: an empty one.
        """
        if self._state.version >= 0:
            # An entry that is there is never taken away, so what follows the last one is asked for by name.
            while (actions := self._entry(self._state.version + 1)) is not None:
                self._apply(actions)
                self._state.version += 1
            return self._state.version
        try:
            names = os.listdir(self.log)  # noqa: PTH208 - a third of the time, once for every table that is opened
        except FileNotFoundError as exc:
            if table_schema(self.name).added_later:
                return self._state.version
            raise IntegrityError(
                f"Table {self.name!r} has no log at {self.log}. The catalog is damaged: restore the folder from a copy."
            ) from exc
        versions = sorted(int(n[:20]) for n in names if n.endswith(".json") and n[:-5].isdigit())
        if "_last_checkpoint" in names:
            self._load_checkpoint(names)
        for version in versions:
            if version <= self._state.version:
                continue
            if version != self._state.version + 1:
                raise IntegrityError(
                    f"Log entry {self._state.version + 1} of table {self.name!r} is missing; the next one there is "
                    f"{version}. Restore {self.log} from a copy."
                )
            self._apply(self._entry(version) or [])
            self._state.version = version
        if self._state.version < 0 and not table_schema(self.name).added_later:
            raise IntegrityError(
                f"Table {self.name!r} has an empty log at {self.log}. Restore it from a copy."
            )
        return self._state.version

    def reread(self) -> int:
        """Forget what was read and read the log from its checkpoint on; returns the version of the table."""
        self._state = _State()
        return self.refresh()

    def files(self) -> tuple[TableFile, ...]:
        """Live files as of the last refresh, oldest first."""
        return tuple(self._state.files.values())

    @property
    def version(self) -> int:
        return self._state.version

    def absolute(self, file: TableFile) -> str:
        return str(self.path / file.path)

    def check_log(self) -> None:
        """Parse every entry whole, also what readers pass over.

        Raises:
            IntegrityError: one is damaged.
        """
        if self._state.version < 0:  # the table is younger than the catalog
            return
        for name in sorted(os.listdir(self.log)):  # noqa: PTH208 - as in `refresh`
            if name.endswith(".json") and name[:-5].isdigit():
                self._parsed(f"{self.log}/{name}", whole=True)

    def _entry(self, version: int) -> list[dict[str, Any]] | None:
        """The actions of a log entry that change files, None when there is no such entry."""
        return self._parsed(f"{self.log}/{_entry_name(version)}")

    def _parsed(self, path: str, *, whole: bool = False) -> list[dict[str, Any]] | None:
        try:
            with open(path, "rb") as handle:  # noqa: PTH123 - half the time of Path.open, and called for every commit
                lines = handle.read().splitlines()
            return [
                json.loads(line) for line in lines if line and (whole or not _passed_over(line))
            ]
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise IntegrityError(
                f"{path}: log entry cannot be read ({exc}). Restore it from a copy."
            ) from exc

    def _apply(self, actions: list[dict[str, Any]]) -> None:
        for action in actions:
            if "remove" in action:
                self._state.files.pop(unquote(action["remove"]["path"]), None)
        for action in actions:
            if "add" in action:
                added = _table_file(action["add"])
                self._state.files[added.path] = added

    def _load_checkpoint(self, names: Sequence[str]) -> None:
        """Start from the newest checkpoint of the log, which `write_checkpoint` or another engine wrote.

        Nothing depends on it as long as the log is whole: one that is absent or unreadable is passed over.
        """
        state = _State()
        try:
            last = json.loads((self.log / "_last_checkpoint").read_text(encoding="utf-8"))
            version = int(last["version"])
            prefix = f"{version:020d}.checkpoint"
            parts = [self.log / n for n in names if n.startswith(prefix) and n.endswith(".parquet")]
            for part in parts:
                for added in _added(part):
                    file = _table_file(added)
                    state.files[file.path] = file
        except (OSError, ValueError, KeyError, TypeError):
            return
        if len(parts) == int(last.get("parts") or 1):
            state.version = version
            self._state = state

    # --- writing ------------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Create a table that is younger than the catalog; of several writers that do, the first one's is used."""
        if self._state.version < 0 and self.refresh() < 0:
            DeltaTable.create(self.path, self.name, table_schema(self.name).arrow)
            self.refresh()

    def stage(
        self,
        rows: pa.Table,
        *,
        complete_at: int | None = None,
        replaces: Sequence[str] | None = None,
    ) -> PendingFile:
        """Write rows to a Parquet file that no log entry names yet; `sync` and `append` make them part of the table.

        Args:
            rows: at least one.
            complete_at: for compaction, see `TableFile`.
            replaces: for `commits`, see `TableFile`.
        """
        path = self.path / f"{new_id()}.parquet"
        sink = pa.BufferOutputStream()
        rows = _clustered(rows, _CLUSTERED.get(self.name, ()))
        # The smallest and largest value of a row group leave NaN out, so a reader that skips by them, as DuckDB does,
        # would find no NaN: floating columns go without.
        ordered = [f.name for f in rows.schema if not pa.types.is_floating(f.type)]
        pq.write_table(
            rows,
            sink,
            compression="lz4",
            row_group_size=_ROW_GROUP,
            use_dictionary=_repeating(rows),
            write_statistics=ordered,
        )
        data = memoryview(sink.getvalue())
        tags = {_CHECKSUM: xxhash.xxh3_128_hexdigest(data)}
        key = table_schema(self.name).key
        keys = key_filter(rows.column(key[0]).to_pylist()) if len(key) == 1 else None
        if keys is not None:
            tags[_KEYS] = keys
        if replaces is not None:
            tags[_REPLACES] = json.dumps(list(replaces))
        if complete_at is None:
            low = high = rows.column("commit_id")[0].as_py()
        else:
            tags[_COMPLETE_AT] = str(complete_at)
            bounds = pc.min_max(rows.column("commit_id")).as_py()
            low, high = bounds["min"], bounds["max"]
        stats = {
            "numRecords": rows.num_rows,
            "minValues": {"commit_id": low},
            "maxValues": {"commit_id": high},
            "nullCount": {"commit_id": 0},
        }
        try:
            with path.open("xb") as handle:
                handle.write(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        action = {
            "path": quote(path.name),
            "partitionValues": {},
            "size": len(data),
            "modificationTime": _now_ms(),
            "dataChange": complete_at is None,
            "stats": json.dumps(stats),
            "tags": tags,
        }
        return PendingFile(path, action)

    def sync(self, pending: PendingFile) -> None:
        """Make a staged file durable (its name too, with the folder)."""
        fsync_file(pending.path)
        fsync_dir(self.path)

    def append(self, pending: Sequence[PendingFile], *, remove: Sequence[TableFile] = ()) -> int:
        """Add staged files and drop others as the next version; returns it. Appends alone never conflict.

        With neither, the version is one in which nothing changes: it tells readers to look again.

        Raises:
            CatalogError: a file to remove was removed by another process meanwhile.
        """
        actions: list[dict[str, Any]] = [
            {"commitInfo": {"timestamp": _now_ms(), "operation": "OPTIMIZE" if remove else "WRITE"}}
        ]
        actions += [
            {"remove": {"path": quote(f.path), "deletionTimestamp": _now_ms(), "dataChange": False}}
            for f in remove
        ]
        actions += [{"add": p.action} for p in pending]
        if self._state.version < 0:
            self.refresh()
        version = self._state.version + 1
        with offered(self.log, _lines(actions)) as take:
            self._require_live(remove)
            while not take(_entry_name(version)):
                if remove:
                    self.refresh()
                    self._require_live(remove)
                version += 1
        self._published(version)
        return version

    def _require_live(self, files: Sequence[TableFile]) -> None:
        """Raise CatalogError unless all are in the newest version that was read."""
        if not {f.path for f in self.files()}.issuperset(f.path for f in files):
            raise CatalogError(
                f"Table {self.name!r} was compacted by another process meanwhile; nothing is lost."
            )

    def append_at(self, pending: PendingFile, version: int) -> bool:
        """Add one staged file as exactly this version; False when another writer has taken it."""
        actions = [
            {"commitInfo": {"timestamp": _now_ms(), "operation": "WRITE"}},
            {"add": pending.action},
        ]
        if not publish_new(self.log, _entry_name(version), _lines(actions)):
            return False
        self._published(version)
        return True

    def _published(self, version: int) -> None:
        reached(f"published-{self.name}")
        fsync_dir(self.log)
        if version % _CHECKPOINT_EVERY == 0:
            self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """Summarise the log, so that opening reads one file instead of every entry.

        A convenience only, so a failure (a full disk) must not fail the commit that is already there.
        """
        import deltalake
        from deltalake.exceptions import DeltaError

        try:
            deltalake.DeltaTable(str(self.path)).create_checkpoint()
        except (OSError, DeltaError) as exc:
            log.warning("%s: the log could not be summarised (%s); nothing is lost.", self.log, exc)


def _passed_over(line: bytes) -> bool:
    """Whether a line of a log is about no file, and whole: one that is cut off must not go unnoticed."""
    return line.startswith(_NO_FILES) and line.endswith(b"}}")


def _clustered(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Rows sorted by text columns, where that lets a reader skip row groups; equal ones keep their order."""
    if rows.num_rows <= _ROW_GROUP or not columns:
        return rows
    ranks = []
    for name in columns:
        encoded = rows.column(name).combine_chunks().dictionary_encode()
        ranks.append(pc.rank(encoded.dictionary).to_numpy()[encoded.indices.to_numpy()])
    return rows.take(np.lexsort(ranks[::-1]))


def _repeating(rows: pa.Table) -> list[str]:
    """Columns whose values repeat, going by the first thousand: a dictionary of others costs time and space."""
    head = rows.slice(0, 1000)
    return [
        name
        for name, column in zip(head.column_names, head.columns, strict=True)
        if not pa.types.is_nested(column.type)
        and 2 * pc.count_distinct(column).as_py() <= len(column)
    ]


def _added(part: Path) -> Iterator[dict[str, Any]]:
    """Add actions of a checkpoint of the log."""
    names = ("path", "size", "stats", "tags")
    with pa.OSFile(str(part)) as handle, pq.ParquetFile(handle) as file:
        added = file.read(columns=[f"add.{name}" for name in names]).column("add").combine_chunks()
    columns = [added.field(name).to_pylist() for name in names]
    for path, size, stats, tags in zip(*columns, strict=True):
        if path:
            yield {"path": path, "size": size, "stats": stats, "tags": dict(tags or ())}


def _table_file(add: dict[str, Any]) -> TableFile:
    stats = json.loads(add["stats"]) if add.get("stats") else {}
    low = stats.get("minValues", {}).get("commit_id")
    high = stats.get("maxValues", {}).get("commit_id")
    tags = add.get("tags") or {}
    return TableFile(
        unquote(add["path"]),
        int(add["size"]),
        int(stats.get("numRecords", -1)),
        low if low is not None and low == high else None,
        int(tags[_COMPLETE_AT]) if _COMPLETE_AT in tags else None,
        tags.get(_CHECKSUM),
        KeyFilter(tags[_KEYS]) if _KEYS in tags else None,
        tuple(json.loads(tags[_REPLACES])) if _REPLACES in tags else None,
    )


def _entry_name(version: int) -> str:
    return f"{version:020d}.json"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _uuid_shape(text: str) -> str:
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"


def _lines(actions: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(a, separators=(",", ":")).encode() + b"\n" for a in actions)


_DELTA_PRIMITIVES = {
    pa.string(): "string",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.bool_(): "boolean",
    pa.binary(): "binary",
    pa.timestamp("us", tz="UTC"): "timestamp",
}


def _delta_type(type_: pa.DataType) -> Any:
    if pa.types.is_list(type_):
        return {
            "type": "array",
            "elementType": _delta_type(type_.value_type),
            "containsNull": False,
        }
    if pa.types.is_struct(type_):
        return _delta_struct(pa.schema(list(type_)))
    return _DELTA_PRIMITIVES[type_]


def _delta_struct(schema: pa.Schema) -> dict[str, Any]:
    fields = [
        {"name": f.name, "type": _delta_type(f.type), "nullable": f.nullable, "metadata": {}}
        for f in schema
    ]
    return {"type": "struct", "fields": fields}
