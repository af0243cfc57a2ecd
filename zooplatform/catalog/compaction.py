"""`zoo compact`: merges the small files of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zooplatform.catalog.files import reached, touch
from zooplatform.catalog.leases import lease
from zooplatform.catalog.merging import merge_shards
from zooplatform.catalog.snapshot import RETIRED, latest_rows
from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.schema import table_names, table_schema

if TYPE_CHECKING:
    from zooplatform.catalog.commits import Tables
    from zooplatform.catalog.snapshot import Snapshot
    from zooplatform.catalog.tables import TableFile

__all__ = ["compact"]


# From so many entries on, opening gains from a summary of the log.
_LONG_LOG = 10


def compact(tables: Tables) -> dict[str, int]:
    """Merge small shards, then the committed files of every table into one each; how many were merged, by what.

    Rows that a later commit supersedes are left out. Files of commits that are not complete stay as they are. The
    merged files are removed by `zoo gc` after its grace period, so that readers of older snapshots go on reading.

    Raises:
        IntegrityError: a file to merge is damaged.
        CatalogError: the catalog cannot be written.
    """
    merged: dict[str, int] = {}
    with lease(tables.path) as folder:
        shards = merge_shards(tables, folder)
        if shards:
            merged["weights"] = shards
        for name in table_names():
            count = _compact_table(tables, name)
            if count:
                merged[name] = count
        if merged:
            # Readers look at `commits` only; a new version of it tells them to look at all tables again.
            tables["commits"].append([])
    return merged


def _compact_table(tables: Tables, name: str) -> int:
    snapshot = tables.reread()
    table = tables[name]
    files = [f for f in table.files() if name == "commits" or snapshot.is_complete(f)]
    if len(files) < 2:
        return 0
    everything = all(f.commit_id is not None or f.complete_at is not None for f in table.files())
    rows = _merged_rows(snapshot, name, files, drop_retired=everything)
    pending = table.stage(rows, complete_at=snapshot.version)
    try:
        table.sync(pending)
        reached(f"compaction-staged-{name}")
        touch(table.path / f.path for f in files)
        table.append([pending], remove=files)
    except CatalogError:
        pending.path.unlink(missing_ok=True)
        return 0  # another process changed these files first
    reached(f"compacted-{name}")
    if table.refresh() >= _LONG_LOG:
        table.write_checkpoint()
    return len(files)


def _merged_rows(
    snapshot: Snapshot, name: str, files: list[TableFile], *, drop_retired: bool
) -> pa.Table:
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
    if name == "shards" and drop_retired:
        # The rows that they superseded are all in what is merged here, so nothing comes back.
        kept = rows.filter(pc.not_equal(rows.column("kind"), RETIRED))
        rows = kept if kept.num_rows else rows
    return rows
