"""The commit protocol: several tables change as one, and a reader sees all of a commit or none of it.

Order of a write: shard files are sealed first; rows are appended to the child tables and made durable; one row in
`commits` comes last. Readers open `commits` first and keep only rows whose commit is there.
"""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zooplatform.catalog.files import fsync_dir, new_id, reached
from zooplatform.catalog.tables import DeltaTable, TableFile
from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.schema import rows_to_table, table_names, table_schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Rows", "Snapshot", "TableFiles", "Tables", "latest_rows"]

Rows: TypeAlias = "list[dict[str, Any]] | pa.Table"


class TableFiles(NamedTuple):
    """Parquet files of a table: in `pure` ones every row is committed, in `mixed` ones some may not be."""

    pure: tuple[str, ...]
    mixed: tuple[str, ...]


class Snapshot:
    """One committed state of a catalog; never changes."""

    def __init__(
        self,
        path: Path,
        commits: pa.Table,
        files: Mapping[str, tuple[TableFile, ...]],
        version: int,
        cache: dict[tuple[str, tuple[str, ...]], pa.Table],
    ) -> None:
        self.path, self.version = path, version
        self.commits = commits
        self.committed: pa.Array = commits.column("commit_id").combine_chunks()
        self._ids = frozenset(self.committed.to_pylist())
        self._files = files
        self._cache = cache
        self._replaced = frozenset(
            name
            for text in set(commits.column("replaces").to_pylist())
            if text
            for name in json.loads(text)
        )

    @property
    def last_commit(self) -> str:
        """Id of the newest commit, empty in an empty catalog."""
        return max(self._ids, default="")

    def is_committed(self, commit_id: str) -> bool:
        return commit_id in self._ids

    def replaced(self, table: str) -> bool:
        """Whether a key of the table may have several rows, of which the latest commit counts."""
        return table in self._replaced

    def files(self, table: str) -> TableFiles:
        """Files of a table that hold committed rows."""
        folder = self.path / "tables" / table
        pure, mixed = [], []
        for file in self._files[table]:
            if file.committed or (file.commit_id is not None and file.commit_id in self._ids):
                pure.append(str(folder / file.path))
            elif file.commit_id is None:
                mixed.append(str(folder / file.path))
        return TableFiles(tuple(pure), tuple(mixed))

    def table(
        self, name: str, columns: Sequence[str] | None = None, *, keep: bool = False
    ) -> pa.Table:
        """Committed rows of a whole table, superseded ones left out.

        Args:
            name: the table.
            columns: only these.
            keep: remember what was read, so that the next snapshot reads only files that are new.
        """
        schema = table_schema(name)
        wanted = list(columns) if columns is not None else schema.arrow.names
        read = wanted
        if self.replaced(name):
            read = list(dict.fromkeys([*wanted, *schema.key, "commit_id"]))
        parts = []
        pure, mixed = self.files(name)
        for path in pure:
            parts.append(self._part(path, read, keep))
        for path in mixed:
            part = _read(path, list(dict.fromkeys([*read, "commit_id"])))
            parts.append(
                part.filter(pc.is_in(part.column("commit_id"), value_set=self.committed)).select(
                    read
                )
            )
        if not parts:
            return pa.schema([schema.arrow.field(c) for c in wanted]).empty_table()
        table = pa.concat_tables(parts, promote_options="permissive")
        if self.replaced(name):
            table = latest_rows(table, schema.key)
        return table.select(wanted)

    def _part(self, path: str, columns: list[str], keep: bool) -> pa.Table:
        if not keep:
            return _read(path, columns)
        key = (path, tuple(columns))
        if key not in self._cache:
            self._cache[key] = _read(path, columns)
        return self._cache[key]

    def rows_of(self, name: str, checkpoint_id: str, commit_id: str) -> list[dict[str, Any]]:
        """Rows of one checkpoint, which commit `commit_id` wrote: only files that can hold them are read."""
        folder = self.path / "tables" / name
        parts = []
        for file in self._files[name]:
            if file.commit_id == commit_id or file.commit_id is None or file.committed:
                try:
                    part = pq.read_table(
                        folder / file.path, filters=[("checkpoint_id", "=", checkpoint_id)]
                    )
                except (OSError, pa.ArrowInvalid) as exc:
                    raise _damaged(str(folder / file.path), exc) from exc
                parts.append(part.filter(pc.equal(part.column("commit_id"), commit_id)))
        return pa.concat_tables(parts).to_pylist() if parts else []

    @cached_property
    def shard_rows(self) -> pa.Table:
        return self.table("shards")

    def shards(self, kind: str | None = None) -> pa.Table:
        """Rows of `shards`, of one kind or of both."""
        rows = self.shard_rows
        return rows if kind is None else rows.filter(pc.equal(rows.column("kind"), kind))


class Tables:
    """All tables of a catalog: makes snapshots and commits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tables = {name: DeltaTable(path / "tables" / name, name) for name in table_names()}
        self._commits_read: dict[str, pa.Table] = {}
        self._cache: dict[tuple[str, tuple[str, ...]], pa.Table] = {}
        self._snapshot: Snapshot | None = None

    @classmethod
    def create(cls, path: Path) -> Tables:
        (path / "tables").mkdir(parents=True, exist_ok=True)
        for name in table_names():
            if not (path / "tables" / name / "_delta_log" / f"{0:020d}.json").exists():
                DeltaTable.create(path / "tables" / name, name, table_schema(name).arrow)
        fsync_dir(path / "tables")
        return cls(path)

    def __getitem__(self, name: str) -> DeltaTable:
        return self._tables[name]

    def snapshot(self) -> Snapshot:
        """The newest committed state; the same object as before while nothing was committed."""
        commits = self._tables["commits"]
        version = commits.refresh()
        if self._snapshot is not None and self._snapshot.version == version:
            return self._snapshot
        parts = {}
        for file in commits.files():
            known = self._commits_read.get(file.path)
            parts[file.path] = known if known is not None else _read(commits.absolute(file), None)
        self._commits_read = parts
        rows = (
            pa.concat_tables(parts.values())
            if parts
            else table_schema("commits").arrow.empty_table()
        )
        # The child tables are listed after `commits`, so every committed row is in what is listed.
        files = {name: self._fresh(name) for name in table_names()}
        self._snapshot = Snapshot(self.path, rows, files, version, self._cache)
        return self._snapshot

    def _fresh(self, name: str) -> tuple[TableFile, ...]:
        if name != "commits":
            self._tables[name].refresh()
        return self._tables[name].files()

    def commit(
        self,
        message: str,
        rows: Mapping[str, Rows],
        *,
        base: Snapshot,
        replaces: Sequence[str] = (),
    ) -> str:
        """Make rows of several tables visible at once and durable; returns the commit id.

        Args:
            message: what changed, for people.
            rows: rows by table.
            base: the snapshot that the rows were made from; keys that others committed since are handled.
            replaces: tables in which rows supersede earlier ones of the same key.

        Raises:
            SchemaError: rows do not fit; nothing was written.
            CatalogError: the disk is full or not writable; nothing was committed.
        """
        commit_id = new_id(after=base.last_commit)
        tables = {
            name: rows_to_table(name, part, commit_id) for name, part in rows.items() if len(part)
        }
        try:
            return self._write(commit_id, message, tables, base, set(replaces))
        except OSError as exc:
            raise CatalogError(
                f"{self.path}: the commit could not be written ({exc.strerror or exc}); nothing was committed. "
                "Free space or mend the permissions, then repeat the command."
            ) from exc

    def _write(
        self,
        commit_id: str,
        message: str,
        tables: Mapping[str, pa.Table],
        base: Snapshot,
        replaces: set[str],
    ) -> str:
        pending = {name: self._tables[name].stage(part) for name, part in tables.items()}
        reached("rows-staged")
        for name, part in pending.items():
            self._tables[name].sync(part)
        reached("rows-durable")
        versions = {}
        for name, part in pending.items():
            versions[name] = self._tables[name].append([part])
            reached(f"appended-{name}")
        # Another writer may have committed the same keys since `base`. `commits` is read again until its row is the
        # next version after what was checked, so no overlap goes unnoticed.
        commits = self._tables["commits"]
        while True:
            current = self.snapshot()
            replaces |= self._overlap(tables, base, current)
            row = {
                "time": datetime.now(UTC),
                "author": _author(),
                "message": message,
                "table_versions": json.dumps(versions),
                "replaces": json.dumps(sorted(replaces)),
            }
            staged = commits.stage(rows_to_table("commits", [row], commit_id))
            commits.sync(staged)
            reached("commit-staged")
            if commits.append_at(staged, current.version + 1):
                break
            staged.path.unlink()
        reached("committed")
        return commit_id

    def _overlap(
        self, tables: Mapping[str, pa.Table], base: Snapshot, current: Snapshot
    ) -> set[str]:
        """Tables in which a commit between `base` and `current` holds a key that is also in `tables`."""
        found: set[str] = set()
        if current.version == base.version:
            return found
        for name, part in tables.items():
            before = set(base.files(name).pure)
            new = [path for path in current.files(name).pure if path not in before]
            key = list(table_schema(name).key)
            ours = set(zip(*(part.column(k).to_pylist() for k in key), strict=True))
            for path in new:
                theirs = _read(path, key)
                if not ours.isdisjoint(
                    zip(*(theirs.column(k).to_pylist() for k in key), strict=True)
                ):
                    found.add(name)
                    break
        return found


def _read(path: str, columns: list[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=columns)
    except (OSError, pa.ArrowInvalid) as exc:
        raise _damaged(path, exc) from exc


def _damaged(path: str, exc: Exception) -> IntegrityError:
    return IntegrityError(
        f"{path}: a table file is missing or damaged ({exc}). Restore it from a copy; "
        "`zoo check` lists what is affected."
    )


def latest_rows(table: pa.Table, key: Sequence[str]) -> pa.Table:
    """Of rows with one key, the one of the latest commit (ids are ordered by time); the order of rows is kept."""
    commits = table.column("commit_id").to_pylist()
    best: dict[tuple[Any, ...], int] = {}
    for index, row in enumerate(zip(*(table.column(k).to_pylist() for k in key), strict=True)):
        before = best.get(row)
        if before is None or commits[index] >= commits[before]:
            best[row] = index
    return table.take(pa.array(sorted(best.values()), type=pa.int64()))


def _author() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
