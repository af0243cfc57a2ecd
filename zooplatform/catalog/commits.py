"""The commit protocol: several tables change as one, and a reader sees all of a commit or none of it.

Order of a write: shard files are sealed first; rows are appended to the child tables and made durable; one row in
`commits` comes last. Readers open `commits` first and keep only rows whose commit is there.
"""

from __future__ import annotations

import getpass
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.catalog.files import fsync_dir, new_id, reached
from zooplatform.catalog.leases import lease
from zooplatform.catalog.snapshot import (
    RETIRED,
    Snapshot,
    TableCache,
    TableFiles,
    latest_rows,
    read_file,
)
from zooplatform.catalog.tables import DeltaTable, PendingFile
from zooplatform.errors import CatalogError
from zooplatform.schema import rows_to_table, table_names, table_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from zooplatform.catalog.mirror import Mirror
    from zooplatform.catalog.tables import TableFile

__all__ = [
    "RETIRED",
    "ConflictError",
    "Guard",
    "Rows",
    "Snapshot",
    "TableFiles",
    "Tables",
    "latest_rows",
]

Rows: TypeAlias = "list[dict[str, Any]] | pa.Table"
Guard: TypeAlias = "Callable[[Snapshot], None]"


class ConflictError(CatalogError):
    """Another process moved weights that the commit refers to; it is to be made anew from the newest snapshot."""


# Tables whose rows say in which shard weights are.
_REFERRING = ("checkpoints", "tensors")


class _Draft(NamedTuple):
    """A commit in the making."""

    commit_id: str
    message: str
    tables: Mapping[str, pa.Table]
    base: Snapshot
    replaces: set[str]
    retires: frozenset[str]
    guard: Guard | None


class Tables:
    """All tables of a catalog: makes snapshots and commits."""

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self.path, self.mirror = path, mirror
        self._tables = {name: DeltaTable(path / "tables" / name, name) for name in table_names()}
        self._commits_read: dict[str, dict[str, tuple[str, ...]]] = {}
        self._cache = TableCache()
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
        if self.mirror is not None:
            self.mirror.refresh()
        commits = self._tables["commits"]
        while True:
            version = commits.refresh()
            if self._snapshot is not None and self._snapshot.version == version:
                return self._snapshot
            rows = self._committed(commits)
            # The child tables are listed after `commits`, so every committed row is in what is listed.
            files = {name: self._fresh(name) for name in table_names()}
            # A compaction that came between may have put rows of commits that were not read into its files.
            if all((f.complete_at or 0) <= version for listed in files.values() for f in listed):
                self._snapshot = Snapshot(self.path, rows, files, version, self._cache, self.mirror)
                return self._snapshot

    def _committed(self, commits: DeltaTable) -> dict[str, tuple[str, ...]]:
        """Every commit, and the tables in which it supersedes rows; the log says both unless `commits` was merged."""
        found: dict[str, tuple[str, ...]] = {}
        read = {}
        for file in commits.files():
            if file.commit_id is not None and file.replaces is not None:
                found[file.commit_id] = file.replaces
                continue
            rows = self._commits_read.get(file.path)
            if rows is None:
                table = read_file(commits.absolute(file), ["commit_id", "replaces"])
                ids, texts = (column.to_pylist() for column in table.columns)
                rows = {i: tuple(json.loads(text)) for i, text in zip(ids, texts, strict=True)}
            read[file.path] = rows
            found |= rows
        self._commits_read = read
        return found

    def reread(self) -> Snapshot:
        """The newest committed state, with every table looked at again: compaction changes files without a commit."""
        self._snapshot = None
        return self.snapshot()

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
        retires: Collection[str] = (),
        guard: Guard | None = None,
    ) -> str:
        """Make rows of several tables visible at once and durable; returns the commit id.

        Args:
            message: what changed, for people.
            rows: rows by table.
            base: the snapshot that the rows were made from; keys that others committed since are handled.
            replaces: tables in which rows supersede earlier ones of the same key.
            retires: shards that the rows take out of use.
            guard: is called with the state that the commit will come right after, and refuses it by raising.

        Raises:
            SchemaError: rows do not fit; nothing was written.
            ConflictError: since `base`, shards that the rows refer to were retired, or others came to refer to what
                the rows retire; nothing was committed.
            CatalogError: the disk is full or not writable; nothing was committed.
        """
        commit_id = new_id(after=base.last_commit)
        tables = {
            name: rows_to_table(name, part, commit_id) for name, part in rows.items() if len(part)
        }
        draft = _Draft(commit_id, message, tables, base, set(replaces), frozenset(retires), guard)
        try:
            with lease(self.path):
                self._write(draft)
        except ConflictError:
            raise
        except Exception as exc:
            if self._happened(commit_id):
                raise CatalogError(
                    f"{self.path}: commit {commit_id} is there, but the disk failed to make it durable ({exc})."
                ) from exc
            self._discard_shards(tables)
            raise
        return commit_id

    def _happened(self, commit_id: str) -> bool:
        try:
            return self.snapshot().is_committed(commit_id)
        except (CatalogError, OSError):
            return True  # not known, so nothing may be thrown away

    def _discard_shards(self, tables: Mapping[str, pa.Table]) -> None:
        """Give the space of weight files back that a failed commit would have brought."""
        if "shards" in tables:
            rows = tables["shards"]
            new = rows.filter(pc.not_equal(rows.column("kind"), RETIRED))
            for path in new.column("path").to_pylist():
                with suppress(OSError):
                    (self.path / path).unlink()

    def _write(self, draft: _Draft) -> None:
        tables, base = draft.tables, draft.base
        pending: dict[str, PendingFile] = {}
        versions: dict[str, int] = {}
        try:
            for name, part in tables.items():
                self._tables[name].ensure()
                pending[name] = self._tables[name].stage(part)
            reached("rows-staged")
            for name, staged in pending.items():
                self._tables[name].sync(staged)
            reached("rows-durable")
            for name in tables:
                versions[name] = self._tables[name].append([pending.pop(name)])
                reached(f"appended-{name}")
        except BaseException:
            for staged in pending.values():  # those that no log entry can name
                with suppress(OSError):
                    staged.path.unlink()
            raise
        # Another writer may have committed the same keys since `base`. `commits` is read again until its row is the
        # next version after what was checked, so no overlap goes unnoticed.
        commits = self._tables["commits"]
        replaces = draft.replaces
        while True:
            current = self.snapshot()
            self._refuse_moved(draft, current)
            if draft.guard is not None:
                draft.guard(current)
            replaces |= self._overlap(tables, base, current)
            row = {
                "time": datetime.now(UTC),
                "author": _author(),
                "message": draft.message,
                "table_versions": json.dumps(versions),
                "replaces": json.dumps(sorted(replaces)),
            }
            staged = commits.stage(
                rows_to_table("commits", [row], draft.commit_id), replaces=sorted(replaces)
            )
            try:
                commits.sync(staged)
                reached("commit-staged")
            except BaseException:
                staged.path.unlink(missing_ok=True)
                raise
            if commits.append_at(staged, current.version + 1):
                break
            staged.path.unlink()
        reached("committed")

    def _refuse_moved(self, draft: _Draft, current: Snapshot) -> None:
        """Raise ConflictError when shards that the draft refers to were retired, or what it retires gained rows."""
        base = draft.base
        if current.version == base.version:
            return
        own = set(_column(draft.tables, "shards", "shard_id"))
        if current.replaced_since(base, "shards"):
            live = own.union(current.shard_rows.column("shard_id").to_pylist())
            for name in _REFERRING:
                if not live.issuperset(_column(draft.tables, name, "shard_id")):
                    raise ConflictError(
                        f"{self.path}: weights were moved by `zoo compact`. Repeat."
                    )
        if draft.retires:
            if self._overlap(
                {n: draft.tables[n] for n in _REFERRING if n in draft.tables}, base, current
            ):
                raise ConflictError(f"{self.path}: what is being moved was changed. Repeat.")
            for name in _REFERRING:
                for path in _new_files(name, base, current):
                    ids = read_file(path, ["shard_id"]).column("shard_id")
                    if not draft.retires.isdisjoint(ids.unique().to_pylist()):
                        raise ConflictError(
                            f"{self.path}: what is being moved was referred to. Repeat."
                        )

    def _overlap(
        self, tables: Mapping[str, pa.Table], base: Snapshot, current: Snapshot
    ) -> set[str]:
        """Tables in which a commit between `base` and `current` holds a key that is also in `tables`."""
        found: set[str] = set()
        if current.version == base.version:
            return found
        for name, part in tables.items():
            key = list(table_schema(name).key)
            ours = set(zip(*(part.column(k).to_pylist() for k in key), strict=True))
            for path in _new_files(name, base, current):
                theirs = read_file(path, key)
                if not ours.isdisjoint(
                    zip(*(theirs.column(k).to_pylist() for k in key), strict=True)
                ):
                    found.add(name)
                    break
        return found


def _new_files(name: str, base: Snapshot, current: Snapshot) -> list[str]:
    before = set(base.files(name).pure)
    return [path for path in current.files(name).pure if path not in before]


def _column(tables: Mapping[str, pa.Table], table: str, column: str) -> list[Any]:
    """Distinct values that a column of a draft has, without NULL."""
    if table not in tables:
        return []
    return list(tables[table].column(column).drop_null().unique().to_pylist())


def _author() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
