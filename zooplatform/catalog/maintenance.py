"""Care of a catalog: check what is stored, remove what no commit names, merge what is small."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from zooplatform.catalog.files import fsync_dir
from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.schema import table_names, table_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog.commits import Snapshot, Tables
    from zooplatform.catalog.tables import TableFile

__all__ = ["Problem", "Removed", "check", "collect_garbage", "compact"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: with what, what it is, what to do."""

    kind: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A file that `zoo gc` removed, or would remove."""

    path: str
    size_bytes: int
    reason: str


# --- check -----------------------------------------------------------------------------------------------------------


def check(snapshot: Snapshot, *, deep: bool) -> list[Problem]:
    """Every problem that can be found; with `deep` every stored byte is compared with its hash."""
    problems = list(_check_tables(snapshot))
    if problems:
        return problems  # rows cannot be followed through damaged tables
    problems += _check_shards(snapshot, deep=deep)
    problems += _check_references(snapshot)
    return problems


def _check_tables(snapshot: Snapshot) -> Iterator[Problem]:
    for name in table_names():
        files = snapshot.files(name)
        for path in (*files.pure, *files.mixed):
            try:
                with pq.ParquetFile(path) as file:
                    missing = set(table_schema(name).arrow.names) - set(file.schema_arrow.names)
                    if missing:
                        yield Problem(
                            "table",
                            path,
                            f"columns {sorted(missing)} are missing. Restore it from a copy.",
                        )
                    file.read()
            except (OSError, pa.ArrowInvalid) as exc:
                yield Problem(
                    "table",
                    path,
                    f"missing or damaged ({exc}). Restore it from a copy of the catalog.",
                )


def _check_shards(snapshot: Snapshot, *, deep: bool) -> Iterator[Problem]:
    for shard in snapshot.shard_rows.to_pylist():
        path = snapshot.path / shard["path"]
        remedy = "Restore it from a copy of the catalog, or ingest its sources into a new one."
        try:
            size = path.stat().st_size
        except OSError:
            yield Problem("shard", shard["path"], f"the weight file is missing. {remedy}")
            continue
        if size != shard["size_bytes"]:
            yield Problem(
                "shard",
                shard["path"],
                f"it has {size} bytes, {shard['size_bytes']} were committed. {remedy}",
            )
            continue
        if deep and _file_hash(path) != shard["checksum"]:
            yield Problem(
                "shard", shard["path"], f"its bytes changed since it was sealed. {remedy}"
            )


def _file_hash(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while block := handle.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


_REFERENCES = (
    ("models", "architecture_id", "architectures", "architecture_id"),
    ("models", "zoo_id", "zoos", "zoo_id"),
    ("checkpoints", "model_id", "models", "model_id"),
    ("checkpoints", "architecture_id", "architectures", "architecture_id"),
    ("checkpoints", "shard_id", "shards", "shard_id"),
    ("tensors", "checkpoint_id", "checkpoints", "checkpoint_id"),
    ("tensors", "shard_id", "shards", "shard_id"),
    ("tensor_stats", "checkpoint_id", "checkpoints", "checkpoint_id"),
    ("metrics", "checkpoint_id", "checkpoints", "checkpoint_id"),
    ("files", "checkpoint_id", "checkpoints", "checkpoint_id"),
    ("splits", "model_id", "models", "model_id"),
)


def _check_references(snapshot: Snapshot) -> Iterator[Problem]:
    for table, column, target, key in _REFERENCES:
        given = snapshot.table(table, [column]).column(column).unique().drop_null()
        known = snapshot.table(target, [key]).column(key).combine_chunks()
        dangling = given.filter(pc.invert(pc.is_in(given, value_set=known)))
        for value in dangling.to_pylist()[:20]:
            yield Problem("reference", f"{table}.{column}", f"{value} is not in {target}.")


# --- gc --------------------------------------------------------------------------------------------------------------


def collect_garbage(tables: Tables, *, grace_seconds: float, dry_run: bool) -> list[Removed]:
    """Remove files that no commit names.

    A file is spared while it is younger than the grace period, or than the oldest writer that is alive: what a writer
    has published but not yet committed must not be taken from under it.
    """
    snapshot = tables.snapshot()
    root = snapshot.path
    newest = time.time() - grace_seconds
    removed: list[Removed] = []
    for folder, born, alive in _leases(root):
        if alive:
            newest = min(newest, born)
        elif born < newest:
            removed += _remove_folder(root, folder, dry_run=dry_run)
    # The snapshot was taken before the leases were looked at, so a commit may have come between: look again.
    snapshot = tables.snapshot()
    used = {str(root / path) for path in snapshot.shard_rows.column("path").to_pylist()}
    for path in sorted((root / "weights").rglob("*.arrow")):
        if str(path) not in used:
            removed += _remove(root, path, newest, "weight file of no commit", dry_run=dry_run)
    for name in table_names():
        table = root / "tables" / name
        live = {table / f.path for f in tables[name].files()}
        for path in sorted(table.glob("*.parquet*")):
            if path not in live:
                removed += _remove(
                    root, path, newest, "table file that no version names", dry_run=dry_run
                )
        for path in sorted((table / "_delta_log").glob(".*.tmp")):
            removed += _remove(root, path, newest, "log entry in the making", dry_run=dry_run)
    removed += _artifact_folders(snapshot, newest, dry_run=dry_run)
    return removed


def _leases(root: Path) -> Iterator[tuple[Path, float, bool]]:
    """Folders of writers: path, when they began, whether the writer lives."""
    for folder in sorted((root / "tmp").iterdir()):
        if not folder.is_dir():
            continue
        try:
            born = folder.stat().st_ctime
            handle = os.open(folder / "lease", os.O_RDWR)
        except FileNotFoundError:
            yield folder, _birth(folder), False
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alive = False
        except BlockingIOError:
            alive = True
        finally:
            os.close(handle)
        yield folder, min(born, _birth(folder)), alive


def _birth(folder: Path) -> float:
    """When the folder was made, from its time-ordered name."""
    try:
        return int(folder.name[:12], 16) / 1000
    except ValueError:
        return 0.0


def _remove(root: Path, path: Path, newest: float, reason: str, *, dry_run: bool) -> list[Removed]:
    try:
        info = path.stat()
        if info.st_mtime > newest or info.st_ctime > newest:
            return []
        if not dry_run:
            path.unlink()
            fsync_dir(path.parent)
    except FileNotFoundError:
        return []
    return [Removed(path.relative_to(root).as_posix(), info.st_size, reason)]


def _remove_folder(root: Path, folder: Path, *, dry_run: bool) -> list[Removed]:
    removed = []
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            removed.append(
                Removed(
                    path.relative_to(root).as_posix(),
                    path.stat().st_size,
                    "left by a writer that died",
                )
            )
            if not dry_run:
                path.unlink()
        elif not dry_run:
            path.rmdir()
    if not dry_run:
        folder.rmdir()
    return removed


def _artifact_folders(snapshot: Snapshot, newest: float, *, dry_run: bool) -> list[Removed]:
    used = set(snapshot.table("artifacts", ["path"]).column("path").to_pylist())
    removed: list[Removed] = []
    for folder in sorted((snapshot.path / "artifacts").iterdir()):
        if f"artifacts/{folder.name}" not in used and folder.stat().st_ctime <= newest:
            removed += _remove_folder(snapshot.path, folder, dry_run=dry_run)
    return removed


# --- compact ---------------------------------------------------------------------------------------------------------


def compact(tables: Tables) -> dict[str, int]:
    """Merge the committed files of every table into one each; returns how many were merged, by table.

    Rows that a later commit supersedes are left out. Files of commits that are not complete stay as they are. The
    merged files are removed by `zoo gc` after its grace period, so that readers of older snapshots go on reading.
    """
    snapshot = tables.snapshot()
    merged: dict[str, int] = {}
    for name in table_names():
        table = tables[name]
        files = [f for f in table.files() if _complete(f, snapshot, name)]
        if len(files) < 2:
            continue
        rows = _merge(snapshot, name, files)
        pending = table.stage(rows, committed=True)
        table.sync(pending)
        try:
            table.append([pending], remove=files)
        except CatalogError:
            pending.path.unlink(missing_ok=True)
            continue  # another compaction was first
        merged[name] = len(files)
        table.refresh()
        table.write_checkpoint()
    return merged


def _complete(file: TableFile, snapshot: Snapshot, name: str) -> bool:
    return (
        file.committed
        or name == "commits"
        or (file.commit_id is not None and snapshot.is_committed(file.commit_id))
    )


def _merge(snapshot: Snapshot, name: str, files: list[TableFile]) -> pa.Table:
    from zooplatform.catalog.commits import latest_rows

    schema = table_schema(name)
    folder = snapshot.path / "tables" / name
    try:
        parts = [
            pq.read_table(folder / f.path, partitioning=None).select(schema.arrow.names)
            for f in files
        ]
    except (OSError, pa.ArrowInvalid) as exc:
        raise IntegrityError(
            f"{folder}: a table file is damaged ({exc}); nothing was merged. Run `zoo check`."
        ) from exc
    rows = pa.concat_tables(parts).cast(schema.arrow)
    if snapshot.replaced(name):
        rows = latest_rows(rows, schema.key)
    return rows
