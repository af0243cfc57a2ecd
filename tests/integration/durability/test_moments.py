"""Moments that chance seldom hits, and power cuts, which no killed process can show: each one made to happen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from catalog_invariants import assert_no_half_commit, assert_tidy, leftovers
from catalog_processes import WIDTH, population, tensor_file

from zooplatform.catalog import open_catalog
from zooplatform.catalog.commits import Tables
from zooplatform.catalog.files import reached
from zooplatform.catalog.tables import DeltaTable
from zooplatform.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.catalog import Catalog

pytestmark = pytest.mark.integration


@pytest.fixture
def stored(tmp_path: Path) -> Catalog:
    catalog = open_catalog(tmp_path / "catalog", create=True)
    catalog.append(population(0, 0), zoo="z")
    return catalog


def test_a_compaction_while_a_reader_opens(
    stored: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has read `commits`; a commit and a compaction come; then it reads the other tables.

    The merged files hold rows of a commit that the reader does not know of.
    """
    reader, other = open_catalog(stored.path), open_catalog(stored.path)
    fresh = DeltaTable.refresh
    seen: list[str] = []

    def late(table: DeltaTable) -> int:
        seen.append(table.name)
        # Of the tables that a reader lists, some before and some after.
        if seen.count("metrics") == 1 and table.name == "metrics" and table.path != moved:
            monkeypatch.setattr(DeltaTable, "refresh", fresh)
            other.append(population(0, 1), zoo="z")
            other.ingest(tensor_file(tmp_path, 0, 2))
            other.compact()
        return fresh(table)

    moved = Path()
    monkeypatch.setattr(DeltaTable, "refresh", late)
    snapshot = reader.snapshot()
    assert "metrics" in seen
    known = set(snapshot.committed.to_pylist())
    for name in ("checkpoints", "models", "metrics", "tensor_stats", "shards"):
        assert set(snapshot.table(name).column("commit_id").to_pylist()) <= known, name
    assert assert_no_half_commit(reader) == {"w0b0", "w0b1", "w0b2"}


def test_a_writer_that_began_before_a_compaction(
    stored: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit is older by name than what was merged, and stays outside the merged file; both are seen."""
    other = open_catalog(stored.path)
    done: list[str] = []

    def meanwhile(step: str) -> None:
        if step == "rows-durable" and not done:
            done.append(step)
            other.append(population(0, 1), zoo="z")
            other.compact()

    monkeypatch.setattr("zooplatform.catalog.commits.reached", meanwhile)
    stored.append(population(0, 2), zoo="z")
    monkeypatch.undo()
    assert done
    for reader in (stored, other, open_catalog(stored.path)):
        assert assert_no_half_commit(reader) == {"w0b0", "w0b1", "w0b2"}
    assert_tidy(stored)
    assert len(assert_no_half_commit(stored)) == 3


def test_two_compactions_at_once(stored: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds that what it merged is gone, and leaves nothing behind."""
    stored.append(population(0, 1), zoo="z")
    other = open_catalog(stored.path)
    done: list[str] = []

    def meanwhile(step: str) -> None:
        if step in ("shards-merged", "compaction-staged-metrics") and step not in done:
            done.append(step)
            other.compact()

    for module in ("merging", "compaction"):
        monkeypatch.setattr(f"zooplatform.catalog.{module}.reached", meanwhile)
    stored.compact()
    monkeypatch.undo()
    assert done[0] == "shards-merged"
    assert assert_no_half_commit(stored) == {"w0b0", "w0b1"}
    assert_tidy(stored)
    assert assert_no_half_commit(open_catalog(stored.path)) == {"w0b0", "w0b1"}


def test_a_collection_between_the_steps_of_a_write(
    stored: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step, by another process, without any grace."""
    other = open_catalog(stored.path)
    steps: list[str] = []

    def collect(step: str) -> None:
        steps.append(step)
        watch(reached)  # a collection has steps itself
        assert other.gc(grace_seconds=0) == [], step
        watch(collect)

    def watch(hook: Callable[[str], None]) -> None:
        for module in ("commits", "shards", "tables"):
            monkeypatch.setattr(f"zooplatform.catalog.{module}.reached", hook)

    watch(collect)
    stored.append(population(0, 1), zoo="z")
    stored.ingest(tensor_file(tmp_path, 0, 2))
    stored.commit("plain", {"metrics": [_metric(stored)]})
    monkeypatch.undo()
    assert len(steps) > 40
    assert assert_no_half_commit(open_catalog(stored.path)) == {"w0b0", "w0b1", "w0b2"}
    assert_tidy(stored)


def _metric(catalog: Catalog) -> dict[str, object]:
    (row,) = catalog.sql("SELECT min(checkpoint_id) AS c FROM checkpoints").to_pylist()
    return {
        "checkpoint_id": row["c"], "dataset": "", "split": "", "name": "n", "value": 0.5,
        "origin": "measured",
    }  # fmt: skip


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is passed to fsync, in order."""
    paths: list[Path] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        fsync(handle)
        paths.append(Path(f"/proc/self/fd/{handle}").readlink())

    monkeypatch.setattr(os, "fsync", spy)
    return paths


@pytest.mark.parametrize("kind", ["population", "tensors", "plain", "compact"])
def test_all_that_is_new_is_synced_before_it_is_acknowledged(
    stored: Catalog, tmp_path: Path, synced: list[Path], kind: str
) -> None:
    """Contents under one of their names, and every folder after it took a name."""
    if kind == "compact":
        stored.append(population(0, 5), zoo="z")
    before = {p for p in stored.path.rglob("*") if p.is_file()}
    del synced[:]
    if kind == "population":
        stored.append(population(0, 1), zoo="new")
    elif kind == "tensors":
        stored.ingest(tensor_file(tmp_path, 0, 1))
    elif kind == "plain":
        stored.commit("plain", {"metrics": [_metric(stored)]})
    else:
        stored.compact()
    new = {p for p in stored.path.rglob("*") if p.is_file()} - before
    kinds = {p.suffix for p in new if "checkpoint" not in p.name}
    assert {".json", ".parquet"} <= kinds
    assert (".arrow" in kinds) == (kind != "plain")
    for path in new:
        if "checkpoint" in path.name:
            continue  # a summary that can be made again
        assert path.parent in synced, f"the name of {path} is not durable"
        if path.suffix == ".parquet":
            assert path in synced
            assert synced.index(path) < _last(synced, path.parent)
    # Log entries and shards are synced under the names that they had before they got their own.
    contents = [p for p in synced if p.suffix == ".tmp" or "/tmp/" in str(p)]
    assert len(contents) >= sum(
        p.suffix in (".json", ".arrow") and "checkpoint" not in p.name for p in new
    )
    # What makes it visible comes after all that it makes visible.
    commits = stored.path / "tables" / "commits" / "_delta_log"
    others = [p for p in new if p.suffix in (".arrow", ".parquet")]
    assert all(_last(synced, commits) > synced.index(p.parent) for p in others)


def _last(items: list[Path], item: Path) -> int:
    return len(items) - 1 - items[::-1].index(item)


def test_a_disk_that_fails_at_the_very_end(
    stored: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row in `commits` has its name, but the folder cannot be synced: nothing may be taken back any more."""

    def fail(step: str) -> None:
        if step == "published-commits":
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("zooplatform.catalog.tables.reached", fail)
    with pytest.raises(CatalogError, match="is there, but the disk failed to make it durable"):
        stored.append(population(0, 1), zoo="z")
    monkeypatch.undo()
    assert assert_no_half_commit(open_catalog(stored.path)) == {"w0b0", "w0b1"}
    assert_tidy(stored)


def test_a_creation_that_is_cut_off_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of its tables."""

    class Stopped(BaseException):
        pass

    create = DeltaTable.create
    for number in range(0, 13, 3):
        path = tmp_path / f"catalog-{number}"
        calls: list[str] = []

        def cut(
            path: Path, name: str, schema: object, calls: list[str] = calls, number: int = number
        ) -> DeltaTable:
            if len(calls) == number:
                raise Stopped
            calls.append(name)
            return create(path, name, schema)  # type: ignore[arg-type]

        monkeypatch.setattr(DeltaTable, "create", cut)
        with pytest.raises(Stopped):
            open_catalog(path, create=True)
        monkeypatch.undo()
        with pytest.raises(CatalogError, match="is not a catalog"):
            open_catalog(path)
        (path / ".0123456789abcdef.tmp").write_bytes(b"{")
        catalog = open_catalog(path, create=True)
        catalog.append(population(0, 0), zoo="z")
        assert isinstance(catalog._tables, Tables)
        catalog.gc(grace_seconds=-10)
        assert leftovers(catalog) == []


def test_a_batch_of_several_shards_that_fails_leaves_none(
    stored: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted((stored.path / "weights").rglob("*.arrow"))
    steps: list[str] = []

    def fail(step: str) -> None:
        steps.append(step)
        if steps.count("shard-durable") == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("zooplatform.catalog.writer.MAX_POPULATION_BYTES", 2 * 4 * WIDTH)
    monkeypatch.setattr("zooplatform.catalog.shards.reached", fail)
    with pytest.raises(CatalogError, match="No space left on device"):
        stored.append(population(0, 1, rows=8), zoo="z")
    assert steps.count("shard-published") == 2
    monkeypatch.setattr("zooplatform.catalog.shards.reached", reached)
    assert sorted((stored.path / "weights").rglob("*.arrow")) == before
    ids = stored.append(population(0, 1, rows=8), zoo="z")
    assert len(sorted((stored.path / "weights").rglob("*.arrow"))) == len(before) + 4
    weights = stored.population(ids, verify=True).weights.numpy()
    np.testing.assert_array_equal(weights, population(0, 1, rows=8).weights)


def test_a_checkpoint_that_fails_after_its_shard_was_sealed(
    stored: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted((stored.path / "weights").rglob("*.arrow"))

    def fail(step: str) -> None:
        if step == "shard-published":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("zooplatform.catalog.shards.reached", fail)
    with pytest.raises(CatalogError, match="No space left on device"):
        stored.ingest(tensor_file(tmp_path, 0, 1))
    assert sorted((stored.path / "weights").rglob("*.arrow")) == before
