"""`zoo gc`: removes what no commit names and nobody is making."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zooplatform.catalog.files import reached
from zooplatform.catalog.leases import abandoned, lease, oldest_writer
from zooplatform.errors import CatalogError
from zooplatform.schema import table_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog.commits import Tables
    from zooplatform.catalog.tables import DeltaTable, TableFile

__all__ = ["Removed", "collect_garbage"]


@dataclass(frozen=True, slots=True)
class Removed:
    """A file that `zoo gc` removed, or would remove."""

    path: str
    size_bytes: int
    reason: str


def collect_garbage(tables: Tables, *, grace_seconds: float, dry_run: bool) -> list[Removed]:
    """Remove files that no commit names.

    A file is spared while it is younger than the grace period, or than the oldest writer that is alive: what a writer
    has published but not yet committed must not be taken from under it. Files are touched when they go out of use, so
    readers of older snapshots have the grace period, too.

    Raises:
        CatalogError: the catalog cannot be written.
    """
    with lease(tables.path) as folder:
        # The clock of the file system, with which everything is compared: it may lag behind that of the process.
        now = (folder / "lease").stat().st_mtime
        collector = _Collector(tables, now - grace_seconds, dry_run=dry_run)
        return list(collector.run())


class _Collector:
    """One collection; what is not older than `before` stays."""

    def __init__(self, tables: Tables, before: float, *, dry_run: bool) -> None:
        self._tables, self._root, self._dry_run = tables, tables.path, dry_run
        # The order is what makes it safe. A writer that is alive now is known by its lease; one that begins later makes
        # younger files; one that has ended has committed, or never will: the state read after this line tells which.
        oldest = oldest_writer(tables.path)
        self._before = before if oldest is None else min(before, oldest)
        self._snapshot = tables.reread()

    def run(self) -> Iterator[Removed]:
        if not self._dry_run and self._outdated():
            # Readers that remember a snapshot from before a compaction look again.
            self._tables["commits"].append([])
        for left in abandoned(self._root, before=self._before, remove=not self._dry_run):
            yield self._removed(left.path, left.size_bytes, "left by a writer that died")
        used = {self._root / p for p in self._snapshot.shard_rows.column("path").to_pylist()}
        for path in sorted((self._root / "weights").rglob("*.arrow")):
            if path not in used:
                yield from self._remove(path, "weight file of no commit")
        for path in sorted(self._root.glob(".*.tmp")):
            yield from self._remove(path, "file in the making")
        for name in table_names():
            yield from self._table(self._tables[name])
        yield from self._artifacts()

    def _outdated(self) -> bool:
        """Whether table files are about to go that a remembered snapshot may name."""
        for name in table_names():
            live = {f.path for f in self._tables[name].files()}
            for path in self._tables[name].path.glob("*.parquet"):
                if path.name not in live and self._is_old(path):
                    return True
        return False

    def _is_old(self, path: Path) -> bool:
        try:
            info = path.stat()
        except FileNotFoundError:
            return False  # another collector was quicker
        return max(info.st_mtime, info.st_ctime) < self._before

    def _removed(self, path: Path, size: int, reason: str) -> Removed:
        return Removed(path.relative_to(self._root).as_posix(), size, reason)

    def _remove(self, path: Path, reason: str) -> Iterator[Removed]:
        if not self._is_old(path):
            return
        try:
            size = path.stat().st_size
            if not self._dry_run:
                path.unlink()
                reached("removed")
        except FileNotFoundError:
            return  # another collector was quicker
        yield self._removed(path, size, reason)

    def _table(self, table: DeltaTable) -> Iterator[Removed]:
        yield from self._half_commits(table)
        live = {table.path / f.path for f in table.files()}
        for path in sorted(table.path.glob("*.parquet*")):
            if path not in live:
                yield from self._remove(path, "table file that no version names")
        # Entries in the making are ours, those with a number sign deltalake's.
        for pattern in (".*.tmp", "*#*"):
            for path in sorted(table.log.glob(pattern)):
                yield from self._remove(path, "log entry in the making")

    def _half_commits(self, table: DeltaTable) -> Iterator[Removed]:
        """Rows that were appended for commits that never came."""
        dead = [f for f in table.files() if self._never_committed(table, f)]
        if not dead:
            return
        if not self._dry_run:
            try:
                table.append([], remove=dead)
            except CatalogError:
                return  # another collector was first
            reached("half-commit-dropped")
            table.refresh()
        for file in dead:
            # Not in the log any more, and no reader ever opened it: no need to wait once more.
            path = table.path / file.path
            if not self._dry_run:
                path.unlink(missing_ok=True)
            yield self._removed(path, file.size_bytes, "rows of a commit that never came")

    def _never_committed(self, table: DeltaTable, file: TableFile) -> bool:
        # A file of several commits was made by another engine's compaction; its rows are told apart when read.
        if table.name == "commits" or file.commit_id is None or self._snapshot.is_complete(file):
            return False
        path = table.path / file.path
        return not path.exists() or self._is_old(path)

    def _artifacts(self) -> Iterator[Removed]:
        used = set(self._snapshot.table("artifacts", ["path"]).column("path").to_pylist())
        folder = self._root / "artifacts"
        for artifact in sorted(folder.iterdir()) if folder.is_dir() else []:
            if f"artifacts/{artifact.name}" in used:
                continue
            parts = sorted(artifact.rglob("*"), reverse=True)
            if any(p.stat().st_ctime >= self._before for p in (artifact, *parts)):
                continue
            for path in parts:
                if path.is_file():
                    yield from self._remove(path, "artifact of no commit")
                elif not self._dry_run:
                    path.rmdir()
            if not self._dry_run:
                artifact.rmdir()
