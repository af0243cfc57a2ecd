"""One committed state of a catalog: which files belong to it and the rows that they hold."""

from __future__ import annotations

import json
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

    from zooplatform.catalog.tables import TableFile

__all__ = ["RETIRED", "Snapshot", "TableFiles", "latest_rows", "read_file"]

# Kind of a shard whose rows were moved into another one; its file goes with the next `zoo gc`.
RETIRED = "retired"


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
        self._ids: frozenset[str | None] = frozenset(self.committed.to_pylist())
        self._files = files
        self._cache = cache
        self._replacing: dict[str, set[str]] = {}
        superseding = commits.filter(pc.not_equal(commits.column("replaces"), "[]"))
        for commit, text in zip(
            superseding.column("commit_id").to_pylist(),
            superseding.column("replaces").to_pylist(),
            strict=True,
        ):
            for name in json.loads(text):
                self._replacing.setdefault(name, set()).add(commit)

    @property
    def last_commit(self) -> str:
        """Id of the newest commit, empty in an empty catalog."""
        return max(self.committed.to_pylist(), default="")

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
        folder = self.path / "tables" / table
        pure, mixed = [], []
        for file in self._files[table]:
            if self.is_complete(file):
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
            part = read_file(path, list(dict.fromkeys([*read, "commit_id"])))
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
            return read_file(path, columns)
        key = (path, tuple(columns))
        if key not in self._cache:
            self._cache[key] = read_file(path, columns)
        return self._cache[key]

    def rows_of(self, name: str, checkpoint_id: str, commit_id: str) -> list[dict[str, Any]]:
        """Rows of one checkpoint, which commit `commit_id` wrote: only files that can hold them are read."""
        folder = self.path / "tables" / name
        parts = []
        for file in self._files[name]:
            if (
                file.commit_id == commit_id
                or file.commit_id is None
                or file.complete_at is not None
            ):
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
        """Rows of `shards` that are in use."""
        rows = self.table("shards")
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
