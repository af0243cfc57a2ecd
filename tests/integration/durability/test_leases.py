"""Leases and collection, moment by moment: what belongs to a living writer is spared, what nobody owns goes."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

import pytest
from catalog_invariants import assert_tidy, leftovers
from catalog_processes import population

from zooplatform.catalog import leases, open_catalog
from zooplatform.catalog.leases import lease, oldest_writer

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog

pytestmark = pytest.mark.integration


@pytest.fixture
def filled(tmp_path: Path) -> Catalog:
    catalog = open_catalog(tmp_path / "catalog", create=True)
    catalog.append(population(0, 0), zoo="z")
    return catalog


def orphan(catalog: Catalog, name: str = "0" * 32) -> Path:
    """A shard that no commit names."""
    path = catalog.path / "weights" / "tensors" / f"{name}.arrow"
    path.write_bytes(b"x")
    return path


def let_time_pass() -> None:
    """A collector spares what is as young as its own lease, and clocks of file systems tick in milliseconds."""
    time.sleep(0.05)


def test_what_a_living_writer_made_is_spared(filled: Catalog) -> None:
    before = orphan(filled, "1" * 32)
    os.utime(before, (0, 0))
    with lease(filled.path) as folder:
        assert folder.is_dir()
        assert oldest_writer(filled.path) is not None
        (folder / "half.arrow").write_bytes(b"x")
        made = orphan(filled)
        staged = filled.path / "tables" / "metrics" / "staged.parquet"
        staged.write_bytes(b"x")
        removed = [r.path for r in open_catalog(filled.path).gc(grace_seconds=0)]
        assert [p for p in (made, staged, folder / "half.arrow") if not p.exists()] == []
        # utime makes a change of its own, so even this one counts as young.
        assert removed == []
    assert oldest_writer(filled.path) is None
    assert not folder.exists()
    assert len(open_catalog(filled.path).gc(grace_seconds=0)) == 3
    assert_tidy(filled)


def test_a_writer_that_is_slower_than_the_collector_takes_another_folder(
    filled: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector comes between making the folder, making the lease and locking it."""
    for moment in ("lease-folder", "lease-unlocked"):
        stolen = []

        def steal(step: str, moment: str = moment, stolen: list[str] = stolen) -> None:
            if step == moment and not stolen:
                stolen.append(step)
                (folder,) = (filled.path / "tmp").iterdir()
                monkeypatch.undo()
                assert open_catalog(filled.path).gc(grace_seconds=-10) == []
                assert not folder.exists()

        monkeypatch.setattr(leases, "reached", steal)
        with lease(filled.path) as folder:
            assert stolen
            assert (folder / "lease").exists()
            assert oldest_writer(filled.path) is not None
        monkeypatch.undo()
    assert list((filled.path / "tmp").iterdir()) == []


def test_a_folder_that_another_collector_holds_is_left_to_it(filled: Catalog) -> None:
    folder = filled.path / "tmp" / "dead"
    folder.mkdir()
    (folder / "lease").touch()
    (folder / "half.arrow").write_bytes(b"x")
    handle = os.open(folder / "lease", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert filled.gc(grace_seconds=-10) == []
    os.close(handle)
    let_time_pass()
    (removed,) = filled.gc(grace_seconds=-10)
    assert removed.path == "tmp/dead/half.arrow"
    assert not folder.exists()


def test_dry_runs_say_the_same_and_change_nothing(filled: Catalog) -> None:
    orphan(filled)
    filled.append(population(0, 1), zoo="z")
    filled.compact()
    (filled.path / "tables" / "metrics" / "lost.parquet").write_bytes(b"x")
    let_time_pass()
    before = leftovers(filled)
    dry = filled.gc(grace_seconds=-10, dry_run=True)
    assert len(dry) > 5
    assert leftovers(filled) == before
    assert filled.gc(grace_seconds=-10) == dry
    assert leftovers(filled) == []


def test_rows_of_a_commit_that_never_came_are_dropped_from_the_log(
    filled: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other engines, which know nothing of commits, do not see them any more either."""
    import deltalake

    class Stopped(BaseException):
        pass

    def stop(step: str) -> None:
        if step == "commit-staged":
            raise Stopped

    monkeypatch.setattr("zooplatform.catalog.commits.reached", stop)
    with pytest.raises(Stopped):
        filled.append(population(0, 1), zoo="z")
    monkeypatch.undo()

    def seen_by_others() -> int:
        return len(deltalake.DeltaTable(str(filled.path / "tables" / "checkpoints")).file_uris())

    assert seen_by_others() == 2
    assert filled.gc(grace_seconds=60) == []
    reasons = {r.reason for r in filled.gc(grace_seconds=-10)}
    assert reasons == {"rows of a commit that never came", "weight file of no commit"}
    assert seen_by_others() == 1
    filled.append(population(0, 1), zoo="z")
    assert filled.sql("select * from checkpoints").num_rows == 6
    assert_tidy(filled)


def test_artifacts_of_no_commit_go_when_they_are_old(filled: Catalog) -> None:
    folder = filled.path / "artifacts" / "abandoned"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "weights.safetensors").write_bytes(b"x")
    assert filled.gc() == []
    let_time_pass()
    (removed,) = filled.gc(grace_seconds=-10)
    assert removed.path == "artifacts/abandoned/inner/weights.safetensors"
    assert not folder.exists()


def test_empty_folders_may_be_missing(filled: Catalog) -> None:
    """Copies and version control leave them out."""
    for name in ("tmp", "artifacts"):
        (filled.path / name).rmdir()
    assert filled.gc(grace_seconds=0) == []
    (filled.path / "tmp").rmdir()
    filled.append(population(0, 2), zoo="z")
    assert_tidy(filled)
