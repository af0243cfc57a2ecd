"""A disk without space, a file size limit, a folder that may not be written: one clear error, and nothing half done."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from catalog_invariants import assert_no_half_commit, assert_stored, assert_tidy
from catalog_processes import population, tensor_file, write_one

from zooplatform.catalog import open_catalog
from zooplatform.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Pool

    from zooplatform.catalog import Catalog

pytestmark = pytest.mark.integration

FULL = r"the catalog could not be written \(No space left on device\); nothing was committed\. Free space"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk up to `leave` bytes."""
    ballast = disk / "ballast"
    info = os.statvfs(disk)
    size = info.f_bavail * info.f_frsize - leave
    with ballast.open("wb") as handle:
        handle.write(bytes(max(size, 0)))
    return ballast


def state(catalog: Catalog) -> tuple[set[str], list[str]]:
    """What readers see, and all files of weights."""
    files = sorted(str(p) for p in (catalog.path / "weights").rglob("*.arrow"))
    return assert_no_half_commit(catalog), files


@pytest.mark.parametrize("kind", ["population", "tensors"])
def test_a_full_disk(small_disk: Path, tmp_path: Path, kind: str) -> None:
    """Whatever is left of the disk, the write is refused whole; with space again it goes through."""
    path = small_disk / "catalog"
    catalog = open_catalog(path, create=True)
    done = [(kind, 0, 0, write_one(catalog, tmp_path, kind, 0, 0))]
    before = state(catalog)
    messages = []
    for leave in range(0, 96 * 1024, 4096):
        ballast = fill(small_disk, leave)
        try:
            ids = write_one(catalog, tmp_path, kind, 1, leave)
        except CatalogError as exc:
            messages.append(str(exc))
            assert state(catalog) == before, "something of the refused write is there"
            assert_stored(open_catalog(path), done)
        else:
            done.append((kind, 1, leave, ids))
            before = state(catalog)
        ballast.unlink()
    assert len(messages) > 3
    assert all(re.search(FULL, message) for message in messages), messages
    assert len(done) > 2
    done.append((kind, 2, 0, write_one(catalog, tmp_path, kind, 2, 0)))
    assert_tidy(catalog)
    assert_stored(open_catalog(path), done)


def test_a_full_disk_while_compacting(small_disk: Path, tmp_path: Path) -> None:
    path = small_disk / "catalog"
    catalog = open_catalog(path, create=True)
    done = [
        (kind, 0, n, write_one(catalog, tmp_path, kind, 0, n))
        for n, kind in enumerate(["population", "tensors"] * 4)
    ]
    ballast = fill(small_disk, 4096)
    with pytest.raises(CatalogError, match=FULL):
        catalog.compact()
    assert_stored(open_catalog(path), done)
    ballast.unlink()
    assert catalog.compact()
    assert_tidy(catalog)
    assert_stored(open_catalog(path), done)


def test_a_file_size_limit(pool: Pool, tmp_path: Path) -> None:
    """Files end in the middle of being written."""
    path, log = tmp_path / "catalog", tmp_path / "acknowledged"
    catalog = open_catalog(path, create=True)
    arguments = {"path": path, "writer": 0, "count": 1, "acknowledge": log}
    for number, limit in enumerate([0, 100, 1000, 1500, 2000, 3000]):
        for kind in ("population", "tensors"):
            tensor_file(tmp_path, 0, number)
            process = pool.start("write", file_limit=limit, kind=kind, start=number, **arguments)
            assert process.wait() == 1
            assert "CatalogError" in process.error()
            assert "could not be written (File too large); nothing was committed" in process.error()
            assert assert_no_half_commit(catalog) == set()
    pool.start("write", kind="both", start=0, **(arguments | {"count": 6})).succeed()
    assert_tidy(catalog)


_WRITE = """
import sys
sys.path.insert(0, sys.argv[1])
from catalog_processes import population
from zooplatform.catalog import open_catalog
catalog = open_catalog(sys.argv[2])
print(catalog.sql("select count(*) as n from checkpoints").to_pylist())
print(catalog.state_dict(sys.argv[3], verify=True).keys())
print(catalog.check(deep=True))
for work in (lambda: catalog.append(population(5, 5), zoo="z"), catalog.compact, catalog.gc):
    try:
        work()
    except Exception as exc:
        print(type(exc).__name__, exc)
"""

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1


def _without_override() -> None:
    """Make permissions count for root, too."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    """It can be read; every way to write says what is wrong."""
    path = tmp_path / "catalog"
    with open_catalog(path, create=True) as catalog:
        ids = catalog.append(population(0, 0), zoo="z")
        catalog.append(population(0, 1), zoo="z")
        before = state(catalog)
    folders = [path, *(p for p in path.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    here = str(Path(__file__).parent)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _WRITE, here, str(path), ids[0]],
            capture_output=True,
            text=True,
            preexec_fn=_without_override,
            check=True,
        )
    finally:
        for folder in folders:
            folder.chmod(0o755)
    rows, keys, problems, *errors = done.stdout.splitlines()
    assert rows == "[{'n': 6}]"
    assert "layers.0.weight" in keys
    assert problems == "[]"
    assert len(errors) == 3, done.stdout
    for error in errors:
        assert error.startswith(
            f"CatalogError {path}: the catalog could not be written (Permission denied); nothing was committed."
        )
    with open_catalog(path) as catalog:
        assert state(catalog) == before
        np.testing.assert_array_equal(
            catalog.population(list(ids), verify=True).weights.numpy(), population(0, 0).weights
        )
