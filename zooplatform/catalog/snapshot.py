"""One committed state of a catalog: which files belong to it and the rows that they hold."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zooplatform.errors import IntegrityError
from zooplatform.schema import table_schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from zooplatform.catalog.mirror import Mirror
    from zooplatform.catalog.tables import TableFile

__all__ = ["RETIRED", "Snapshot", "TableCache", "TableFiles", "latest_rows", "read_file"]

# Kind of a shard whose rows were moved into another one; its file goes with the next `zoo gc`.
RETIRED = "retired"

# Appending to a table of chunks is free; reading one value of it is not.
_MANY_CHUNKS = 32
_LARGE_FILE = 20_000


class TableFiles(NamedTuple):
    """Parquet files of a table: in `pure` ones every row is committed, in `mixed` ones some may not be."""

    pure: tuple[str, ...]
    mixed: tuple[str, ...]


class _Whole(NamedTuple):
    """A table as read from these files, in this order."""

    files: tuple[str, ...]
    rows: pa.Table


class TableCache:
    """What snapshots of one catalog have read, so that the next one reads only files that are new."""

    def __init__(self) -> None:
        self._whole: dict[tuple[str, tuple[str, ...]], _Whole] = {}
        self._parts: dict[tuple[str, tuple[str, ...]], pa.Table] = {}

    def whole(self, name: str, files: tuple[str, ...], columns: Sequence[str]) -> pa.Table:
        """Columns of all `files` of a table, one after another."""
        key = (name, tuple(columns))
        known = self._whole.get(key, _Whole((), None))
        if files == known.files:
            return known.rows
        if known.files and files[: len(known.files)] == known.files:
            new = [self.part(path, columns) for path in files[len(known.files) :]]
            rows = pa.concat_tables([known.rows, *new], promote_options="permissive")
        else:
            rows = pa.concat_tables(
                [self.part(path, columns) for path in files], promote_options="permissive"
            )
        if rows.num_columns and rows.column(0).num_chunks > _MANY_CHUNKS:
            rows = rows.combine_chunks()
        # The rows are in one place now; older snapshots that ask again are rare.
        for path in files:
            self._parts.pop((path, key[1]), None)
        self._whole[key] = _Whole(files, rows)
        return rows

    def part(self, path: str, columns: Sequence[str]) -> pa.Table:
        """Columns of one file."""
        key = (path, tuple(columns))
        found = self._parts.get(key)
        if found is None:
            found = self._parts[key] = read_file(path, list(columns))
        return found


class Snapshot:
    """One committed state of a catalog; never changes.

    Args:
        path: the catalog.
        commits: every commit that is part of it, and the tables in which each supersedes rows.
        files: live files of every table.
        version: version of the table `commits`.
        cache: shared by the snapshots of one catalog object.
        mirror: where a remote catalog is fetched from.
    """

    def __init__(
        self,
        path: Path,
        commits: Mapping[str, Sequence[str]],
        files: Mapping[str, tuple[TableFile, ...]],
        version: int,
        cache: TableCache,
        mirror: Mirror | None = None,
    ) -> None:
        self.path, self.version, self.mirror = path, version, mirror
        self._ids = commits.keys()
        self._files = files
        self._cache = cache
        self._listed: dict[str, TableFiles] = {}
        self._tables: dict[tuple[str, tuple[str, ...]], pa.Table] = {}
        self._replacing: dict[str, set[str]] = {}
        for commit, tables in commits.items():
            for name in tables:
                self._replacing.setdefault(name, set()).add(commit)

    @property
    def commits(self) -> pa.Table:
        """Rows of `commits`."""
        return self.table("commits", keep=True)

    @cached_property
    def committed(self) -> pa.Array:
        """Ids of all commits."""
        return pa.array(self._ids, type=pa.string())

    def weight_file(self, path: str) -> Path:
        """A weight file on this machine, by its path in the catalog."""
        return self.path / path if self.mirror is None else self.mirror.weight_file(path)

    @property
    def last_commit(self) -> str:
        """Id of the newest commit, empty in an empty catalog."""
        return max(self._ids, default="")

    def is_committed(self, commit_id: str) -> bool:
        return commit_id in self._ids

    def replaced(self, table: str) -> bool:
        """Whether a key of the table may have several rows, of which the latest commit counts."""
        replacing = self._replacing.get(table)
        if replacing is None:
            return False
        merged = sum(f.complete_at is not None for f in self._files[table])
        mixed = any(f.commit_id is None and f.complete_at is None for f in self._files[table])
        # Compaction leaves superseded rows out, and a commit that supersedes rows committed after it says so itself.
        return merged > 1 or mixed or any(f.commit_id in replacing for f in self._files[table])

    def replaced_since(self, base: Snapshot, table: str) -> bool:
        """Whether a commit after `base` superseded rows of the table."""
        return not self._replacing.get(table, set()) <= base._replacing.get(table, set())

    def is_complete(self, file: TableFile) -> bool:
        """Whether every row of a table file is committed."""
        return file.complete_at is not None or file.commit_id in self._ids

    def files(self, table: str) -> TableFiles:
        """Files of a table that hold committed rows."""
        listed = self._listed.get(table)
        if listed is None:
            folder = f"{self.path}/tables/{table}"
            pure, mixed = [], []
            for file in self._files[table]:
                if self.is_complete(file):
                    pure.append(f"{folder}/{file.path}")
                elif file.commit_id is None:
                    mixed.append(f"{folder}/{file.path}")
            listed = self._listed[table] = TableFiles(tuple(pure), tuple(mixed))
        return listed

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
        key = (name, tuple(wanted))
        if key in self._tables:
            return self._tables[key]
        replaced = self.replaced(name)
        read = list(dict.fromkeys([*wanted, *schema.key, "commit_id"])) if replaced else wanted
        pure, mixed = self.files(name)
        parts = []
        if pure and keep:
            parts.append(self._cache.whole(name, pure, read))
        elif pure:
            parts += [read_file(path, read) for path in pure]
        for path in mixed:
            part = read_file(path, list(dict.fromkeys([*read, "commit_id"])))
            parts.append(self._only_committed(part).select(read))
        if not parts:
            return pa.schema([schema.arrow.field(c) for c in wanted]).empty_table()
        table = pa.concat_tables(parts, promote_options="permissive") if parts[1:] else parts[0]
        if replaced:
            table = latest_rows(table, schema.key)
        table = table.select(wanted)
        if keep:
            self._tables[key] = table
        return table

    def _only_committed(self, rows: pa.Table) -> pa.Table:
        return rows.filter(pc.is_in(rows.column("commit_id"), value_set=self.committed))

    def row(self, name: str, key: str, columns: Sequence[str]) -> dict[str, Any] | None:
        """Columns of the row with a key, None when there is none; reads only files that may hold it.

        Args:
            name: a table whose key is one column.
            key: the value of that.
            columns: only these, besides `commit_id`.
        """
        column = table_schema(name).key[0]
        read = list(dict.fromkeys([column, *columns, "commit_id"]))
        found: dict[str, Any] | None = None
        for file in self._files[name]:
            complete = self.is_complete(file)
            if not (complete or file.commit_id is None) or not file.may_hold(key):
                continue
            part = self._cache.part(f"{self.path}/tables/{name}/{file.path}", read)
            if not complete:
                part = self._only_committed(part)
            at = pc.index(part.column(column), key).as_py()
            while at >= 0:
                row = {c: part.column(c)[at].as_py() for c in read}
                if found is None or row["commit_id"] >= found["commit_id"]:
                    found = row
                rest = part.column(column).slice(at + 1)
                further = pc.index(rest, key).as_py() if len(rest) and not complete else -1
                at = at + 1 + further if further >= 0 else -1
        return found

    def rows_of(self, name: str, checkpoint_id: str, commit_id: str) -> list[dict[str, Any]]:
        """Rows of one checkpoint, which commit `commit_id` wrote: only files that can hold them are read."""
        parts = []
        for file in self._files[name]:
            if file.commit_id not in (None, commit_id):
                continue
            path = f"{self.path}/tables/{name}/{file.path}"
            try:
                if file.num_rows > _LARGE_FILE:  # row groups of other commits are passed over
                    part = pq.read_table(path, filters=[("commit_id", "=", commit_id)])
                else:
                    part = read_file(path, None)
            except (OSError, pa.ArrowInvalid) as exc:
                raise _damaged(path, exc) from exc
            own = pc.and_(
                pc.equal(part.column("checkpoint_id"), checkpoint_id),
                pc.equal(part.column("commit_id"), commit_id),
            )
            parts.append(part.filter(own))
        return pa.concat_tables(parts).to_pylist() if parts else []

    @cached_property
    def shard_rows(self) -> pa.Table:
        """Rows of `shards` that are in use."""
        rows = self.table("shards", keep=True)
        return rows.filter(pc.not_equal(rows.column("kind"), RETIRED))

    def shards(self, kind: str | None = None) -> pa.Table:
        """Rows of `shards` that are in use, of one kind or of both."""
        rows = self.shard_rows
        return rows if kind is None else rows.filter(pc.equal(rows.column("kind"), kind))


def read_file(path: str, columns: list[str] | None) -> pa.Table:
    """Columns of a table file, all of them for None.

    Raises:
        IntegrityError: it is missing or damaged.
    """
    try:
        # An open file: finding out which file system a path is on takes longer than reading a small one. Nothing is
        # read ahead: for that, another thread would be waited for.
        with pa.OSFile(path) as handle, pq.ParquetFile(handle, pre_buffer=False) as file:
            return file.read(columns=columns, use_threads=False)
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
