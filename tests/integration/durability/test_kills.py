"""`kill -9` at every step of the protocol and at random moments: what was acknowledged is whole, the rest is gone.

`ZOO_KILLS=200` runs a longer campaign of random moments.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from catalog_invariants import acknowledged, assert_no_half_commit, assert_stored, assert_tidy

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pool

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

LONG = "ZOO_KILLS" in os.environ
RANDOM_KILLS = int(os.environ.get("ZOO_KILLS", "16"))
KILLED = -signal.SIGKILL


def steps(pool: Pool, folder: Path, job: str, **arguments: Any) -> list[str]:
    """The steps that a job takes when it is left alone."""
    record = folder / "steps"
    pool.start(job, record=record, **arguments).succeed()
    return record.read_text(encoding="utf-8").split()


@pytest.mark.parametrize("kind", ["population", "tensors"])
def test_killed_at_every_step_of_a_write(pool: Pool, tmp_path: Path, kind: str) -> None:
    path, log = tmp_path / "catalog", tmp_path / "acknowledged"
    numbers = count()

    def arguments() -> dict[str, Any]:
        number = next(numbers)
        return {
            "path": path,
            "kind": kind,
            "writer": 0,
            "start": number,
            "count": 1,
            "acknowledge": log,
        }

    open_catalog(path, create=True)
    pool.start("write", **arguments()).succeed()
    taken = steps(pool, tmp_path, "write", **arguments())
    assert {"leased", "shard-durable", "shard-published", "rows-staged", "rows-durable"} <= set(
        taken
    )
    assert {"appended-checkpoints", "commit-staged", "published-commits", "committed"} <= set(taken)
    catalog = open_catalog(path)
    for number, step in enumerate(taken):
        before = acknowledged(log)
        process = pool.start("write", kill_at=number, **(job := arguments()))
        assert process.wait() == KILLED, f"{step}: {process.error()}"
        done = acknowledged(log)
        assert done == before, "it was killed before it could say so"
        names = assert_no_half_commit(catalog)
        # From the moment that the row in `commits` has its name, the commit is there although nobody was told.
        there = taken.index("published-commits") <= number
        assert (f"w0b{job['start']}" in names) == there, step
        assert_tidy(catalog)
        if number % 7 == 0:
            assert_stored(open_catalog(path), done)
    # Repeating what was cut off stores it, and stores nothing twice.
    pool.start("write", **(arguments() | {"start": 0, "count": next(numbers)})).succeed()
    assert_stored(open_catalog(path), acknowledged(log))
    assert_tidy(catalog)


def filled(pool: Pool, folder: Path) -> tuple[Path, list[Any]]:
    """A catalog of ten commits with half commits and orphans beside them, and what is acknowledged of it."""
    path, log = folder / "filled", folder / "acknowledged"
    pool.start(
        "write", path=path, kind="both", writer=1, start=0, count=10, acknowledge=log
    ).succeed()
    for kind, number in (("population", 100), ("tensors", 101)):
        rest = {"path": path, "kind": kind, "writer": 1, "count": 1, "acknowledge": log}
        record = folder / f"steps-{kind}"
        pool.start("write", record=record, start=number, **rest).succeed()
        until = record.read_text(encoding="utf-8").split().index("commit-staged")
        killed = pool.start("write", kill_at=until, start=number + 100, **rest)
        assert killed.wait() == KILLED
    return path, acknowledged(log)


def chosen(taken: list[str]) -> list[tuple[int, str]]:
    """All steps in the long campaign; else each kind of step once, since tables are treated alike."""
    seen: Counter[str] = Counter()
    picked = []
    for number, step in enumerate(taken):
        kind = step.removesuffix(f"-{step.rpartition('-')[2]}") if step.count("-") else step
        seen[kind] += 1
        if LONG or seen[kind] == 1 or step.endswith("-commits"):
            picked.append((number, step))
    return picked


@pytest.mark.parametrize("job", ["compact", "collect"])
def test_killed_at_every_step_of_care(pool: Pool, tmp_path: Path, job: str) -> None:
    """A compaction or a collection that is cut off has changed nothing that anybody can see, and the next ends it."""
    path, done = filled(pool, tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree(path, whole)
    taken = steps(pool, tmp_path, job, path=path)
    expected = {
        "compact": {"shards-merged", "merge-committed", "compaction-staged-commits"},
        "collect": {"removed", "half-commit-dropped"},
    }
    assert expected[job] <= set(taken)
    for number, step in chosen(taken):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(whole, copy)
        process = pool.start(job, path=copy, kill_at=number)
        assert process.wait() == KILLED, f"{step}: {process.error()}"
        catalog = open_catalog(copy)
        assert_no_half_commit(catalog)
        if number % 5 == 0:
            assert_stored(catalog, done)
            catalog.compact()
        assert_tidy(catalog)
        if number % 5 == 0:
            assert_stored(open_catalog(copy), done)
        shutil.rmtree(copy)


def test_killed_at_random_moments(pool: Pool, tmp_path: Path) -> None:
    """Writers are killed and started again, beside one that lives, while others collect and compact."""
    path = tmp_path / "catalog"
    catalog = open_catalog(path, create=True)
    moments = random.Random(20_260)
    logs = []
    began = time.monotonic()

    def start(kind: str, writer: int, writes: int) -> Any:
        logs.append(tmp_path / f"acknowledged-{writer}")
        return pool.start(
            "write", path=path, kind=kind, writer=writer, start=writer, count=writes,
            acknowledge=logs[-1],
        )  # fmt: skip

    witness = start("both", 0, 4)
    kills = 0
    for round_ in count(1):
        kind = ("population", "tensors", "both")[round_ % 3]
        running = [start(kind, 2 * round_, 1000), start("both", 2 * round_ + 1, 1000)]
        care = pool.start(("collect", "compact")[round_ % 2], path=path)
        for process in [*running, care]:
            time.sleep(moments.uniform(0.02, 0.5))
            process.kill()
            if process.wait() == KILLED:
                kills += 1
        if not witness.alive():
            witness.succeed()
            witness = start("both", 100_000 + round_, 4)
        assert_no_half_commit(catalog)
        if round_ % 8 == 0:
            catalog.compact()
        if kills >= RANDOM_KILLS:
            break
    witness.succeed()
    done = [entry for log in logs for entry in acknowledged(log)]
    assert len(done) > 4
    assert_stored(open_catalog(path), done)
    assert_tidy(catalog)
    assert_stored(catalog, done)
    seen = len(assert_no_half_commit(catalog))
    print(
        f"{kills} kills at random in {time.monotonic() - began:.0f} s: {len(done)} writes acknowledged and whole, "
        f"{seen - len(done)} more committed"
    )
