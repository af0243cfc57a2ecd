"""Several processes write at once and one reads all the time: nothing is lost, and nothing is seen by halves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from catalog_invariants import (
    acknowledged,
    assert_no_half_commit,
    assert_stored,
    assert_tidy,
)

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pool, Process

    from zooplatform.catalog import Catalog

pytestmark = pytest.mark.integration


def poll(
    catalog: Catalog, running: list[Process], seconds: float = 60.0, seen: Path | None = None
) -> int:
    """Read until the writers have ended; returns how many different states were seen, and tells writers in `seen`."""
    states: set[frozenset[str]] = set()
    deadline = time.monotonic() + seconds
    waiting = list(running)
    while waiting:
        names = assert_no_half_commit(catalog)
        assert all(names >= before for before in states), "a commit disappeared"
        states.add(frozenset(names))
        if seen is not None:
            seen.write_text(str(len(states)), encoding="utf-8")
        waiting = [p for p in waiting if p.alive()]
        assert time.monotonic() < deadline
    for process in running:
        process.succeed()
    return len(states)


@pytest.mark.parametrize(("writers", "writes"), [(2, 8), (8, 3)])
def test_writers_with_different_keys(pool: Pool, tmp_path: Path, writers: int, writes: int) -> None:
    """None of them finds a catalog, so they also create it at the same moment."""
    path = tmp_path / "catalog"
    logs = [tmp_path / f"acknowledged-{w}" for w in range(writers)]
    seen = tmp_path / "seen"
    seen.touch()
    arguments = {"path": path, "kind": "both", "count": writes, "seen": seen}
    running = [
        pool.start("write", writer=w, start=w, acknowledge=log, **arguments)
        for w, log in enumerate(logs)
    ]
    catalog = open_catalog(path, create=True)
    assert poll(catalog, running, seen=seen) > 2
    writes_done = [entry for log in logs for entry in acknowledged(log)]
    assert len(writes_done) == writers * writes
    for reader in (catalog, open_catalog(path)):
        assert_stored(reader, writes_done)
        assert len(assert_no_half_commit(reader)) == writers * writes
    assert_tidy(catalog)


def test_writers_with_the_same_keys(pool: Pool, tmp_path: Path) -> None:
    """All write the same networks: each is stored once, whoever was first."""
    path = tmp_path / "catalog"
    logs = [tmp_path / f"acknowledged-{w}" for w in range(4)]
    running = [
        pool.start("write", path=path, kind="both", writer=7, start=0, count=4, acknowledge=log)
        for log in logs
    ]
    catalog = open_catalog(path, create=True)
    poll(catalog, running)
    lists = [acknowledged(log) for log in logs]
    assert lists.count(lists[0]) == 4
    assert_stored(catalog, lists[0])
    assert catalog.sql(
        "select count(*), count(distinct checkpoint_id) from checkpoints"
    ).to_pylist() == [{"count_star()": 8, "count(DISTINCT checkpoint_id)": 8}]
    catalog.compact()
    assert_stored(catalog, lists[0])
    assert_tidy(catalog)
    assert_stored(catalog, lists[0])


def test_collection_and_compaction_beside_writers(pool: Pool, tmp_path: Path) -> None:
    """`zoo gc` without any grace and `zoo compact` run all the time while others write and read."""
    path = tmp_path / "catalog"
    open_catalog(path, create=True)
    logs = [tmp_path / f"acknowledged-{w}" for w in range(3)]
    running = [
        pool.start("write", path=path, kind="both", writer=w, start=w, count=8, acknowledge=log)
        for w, log in enumerate(logs)
    ]
    # Readers have the grace period; this one opens the catalog anew, as those do that begin now.
    others = [
        pool.start("collect", path=path, grace=5.0, times=40),
        pool.start("compact", path=path, times=12),
    ]
    catalog = open_catalog(path)
    poll(catalog, [*running, *others])
    writes_done = [entry for log in logs for entry in acknowledged(log)]
    assert len(writes_done) == 24
    assert_stored(catalog, writes_done)
    assert_tidy(catalog)
    assert_stored(open_catalog(path), writes_done)
