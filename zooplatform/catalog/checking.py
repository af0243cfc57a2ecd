"""`zoo check`: finds what is missing, cut off or changed, and names it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from zooplatform.errors import ArtifactError, IntegrityError
from zooplatform.schema import table_names, table_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog.catalog import Catalog
    from zooplatform.catalog.commits import Tables
    from zooplatform.catalog.snapshot import Snapshot
    from zooplatform.catalog.tables import TableFile

__all__ = ["Problem", "Severity", "check", "check_artifacts"]

Severity: TypeAlias = Literal["error", "warning", "note"]

_RESTORE = "Restore it from a copy of the catalog."


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: with what, what it is, what to do.

    `severity` is `error` for what is damaged; the lint, which doubts what is declared, adds `warning` and `note`.
    """

    kind: str
    subject: str
    message: str
    severity: Severity = "error"


def check(tables: Tables, *, deep: bool) -> list[Problem]:
    """Every problem that can be found; with `deep` every stored byte is compared with its hash.

    What depends on something damaged is not followed: mend that first and check again. Weight files depend on the
    tables that list them alone.
    """
    problems = list(_check_logs(tables))
    if problems:
        return problems
    try:
        snapshot = tables.snapshot()
    except IntegrityError as exc:
        return [Problem("table", "tables/commits", str(exc))]
    problems = list(_check_tables(tables, snapshot)) or list(_check_versions(tables, snapshot))
    listing = ("tables/shards/", "tables/commits/")
    if not any(problem.subject.startswith(listing) for problem in problems):
        references = [] if problems else list(_check_references(snapshot))
        places = [] if problems or references else _check_places(snapshot)
        problems += [*_check_shards(snapshot, deep=deep), *references, *places]
    return problems


# --- tables ----------------------------------------------------------------------------------------------------------


def _check_logs(tables: Tables) -> Iterator[Problem]:
    for name in table_names():
        try:
            tables[name].reread()
            tables[name].check_log()
        except IntegrityError as exc:
            yield Problem("log", f"tables/{name}/_delta_log", str(exc))


def _check_versions(tables: Tables, snapshot: Snapshot) -> Iterator[Problem]:
    """A log that ends too early looks like a shorter one; the commits know how far each must go."""
    wanted: dict[str, int] = {}
    for text in snapshot.commits.column("table_versions").to_pylist():
        for name, version in json.loads(text).items():
            wanted[name] = max(wanted.get(name, 0), version)
    for name, version in sorted(wanted.items()):
        if tables[name].version < version:
            yield Problem(
                "log",
                f"tables/{name}/_delta_log",
                f"it ends at entry {tables[name].version}, but entry {version} was committed. "
                f"{_RESTORE}",
            )


def _check_tables(tables: Tables, snapshot: Snapshot) -> Iterator[Problem]:
    for name in table_names():
        used = {Path(path).name for files in snapshot.files(name) for path in files}
        for file in tables[name].files():
            if file.path in used:
                wrong = _table_file_problem(tables[name].absolute(file), file, name)
                if wrong:
                    yield Problem("table", f"tables/{name}/{file.path}", f"{wrong} {_RESTORE}")


def _table_file_problem(path: str, file: TableFile, table: str) -> str | None:
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        return f"the table file is missing or cannot be read ({exc.strerror})."
    if len(data) != file.size_bytes:
        return f"it has {len(data)} bytes, {file.size_bytes} were committed."
    if file.checksum is not None and xxhash.xxh3_128_hexdigest(data) != file.checksum:
        return "its bytes changed since it was written."
    try:
        rows = pq.read_table(pa.BufferReader(data))
    except (OSError, pa.ArrowInvalid) as exc:
        return f"it is damaged ({exc})."
    missing = set(table_schema(table).arrow.names) - set(rows.column_names)
    if missing:
        return f"columns {sorted(missing)} are missing."
    if file.commit_id is not None and rows.column("commit_id").unique().to_pylist() != [
        file.commit_id
    ]:
        return f"its rows are not those of commit {file.commit_id}, as the log says."
    return None


# --- shards ----------------------------------------------------------------------------------------------------------


def _check_shards(snapshot: Snapshot, *, deep: bool) -> Iterator[Problem]:
    for shard in snapshot.shard_rows.to_pylist():
        path = snapshot.path / shard["path"]
        remedy = "Restore it from a copy of the catalog, or ingest its sources into a new one."
        try:
            size = path.stat().st_size
            if size != shard["size_bytes"]:
                wrong = f"it has {size} bytes, {shard['size_bytes']} were committed."
            elif deep and file_hash(path) != shard["checksum"]:
                wrong = "its bytes changed since it was sealed."
            else:
                continue
        except FileNotFoundError:
            wrong = "the weight file is missing."
        except OSError as exc:
            wrong = f"the weight file cannot be read ({exc.strerror})."
        yield Problem("shard", shard["path"], f"{wrong} {remedy}")


def file_hash(path: Path) -> str:
    """xxh3-128 of a file, as hex."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while block := handle.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


# --- artifacts -------------------------------------------------------------------------------------------------------


def check_artifacts(catalog: Catalog, *, deep: bool) -> Iterator[Problem]:
    """What is missing or changed of the fitted methods; with `deep` every byte is compared with its hash."""
    from zooplatform.artifacts import check_files, list_artifacts

    for artifact in list_artifacts(catalog):
        try:
            check_files(catalog, artifact, deep=deep)
        except ArtifactError as exc:
            yield Problem("artifact", artifact.path, str(exc))
        except OSError as exc:
            yield Problem(
                "artifact", artifact.path, f"it cannot be read ({exc.strerror}). {_RESTORE}"
            )


# --- references ------------------------------------------------------------------------------------------------------

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
    ("embeddings", "checkpoint_id", "checkpoints", "checkpoint_id"),
    ("embeddings", "artifact_id", "artifacts", "artifact_id"),
    ("splits", "model_id", "models", "model_id"),
)


def _check_references(snapshot: Snapshot) -> Iterator[Problem]:
    for table, column, target, key in _REFERENCES:
        given = snapshot.table(table, [column]).column(column).unique().drop_null()
        rows = snapshot.shard_rows if target == "shards" else snapshot.table(target, [key])
        known = rows.column(key).combine_chunks()
        dangling = given.filter(pc.invert(pc.is_in(given, value_set=known)))
        for value in dangling.to_pylist()[:20]:
            yield Problem("reference", f"{table}.{column}", f"{value} is not in {target}.")


def _check_places(snapshot: Snapshot) -> Iterator[Problem]:
    """Rows and bytes that a shard does not have."""
    shards = snapshot.shard_rows
    for table, name, end, limit in (
        ("checkpoints", "row", pc.field("shard_row") + 1, "num_rows"),
        ("tensors", "byte", pc.field("shard_offset") + pc.field("size_bytes"), "size_bytes"),
    ):
        own = ["shard_row"] if table == "checkpoints" else ["shard_offset", "size_bytes"]
        rows = snapshot.table(table, ["checkpoint_id", "shard_id", *own])
        rows = rows.filter(pc.field("shard_id").is_valid())
        at = pc.index_in(rows.column("shard_id"), value_set=shards.column("shard_id"))
        rows = rows.append_column("limit", shards.column(limit).take(at))
        wrong = rows.filter((pc.field(own[0]) < 0) | (end > pc.field("limit")))
        for row in wrong.slice(0, 20).to_pylist():
            yield Problem(
                "reference",
                f"{table}.{own[0]}",
                f"{row['checkpoint_id']} begins at {name} {row[own[0]]} of shard {row['shard_id']}, which has "
                f"{row['limit']}. {_RESTORE}",
            )
