"""Leases: how writers that are alive are told from what dead ones left behind.

A writer holds a locked file `tmp/<id>/lease` for as long as it writes. The kernel frees the lock when the process ends,
however it ends, so a lease that can be locked belongs to nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zooplatform.catalog.files import new_id, reached
from zooplatform.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Abandoned", "abandoned", "lease", "oldest_writer"]

_LEASE = "lease"
_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


@contextmanager
def lease(catalog: Path) -> Iterator[Path]:
    """A private folder under `tmp/` for files in the making.

    While it is held, `zoo gc` removes nothing that is younger than the lease.

    Raises:
        CatalogError: the catalog could not be written, then or while the lease was held.
    """
    try:
        folder, handle = _acquire(catalog / "tmp")
        reached("leased")
        with _released(folder, handle):
            yield folder
    except OSError as exc:
        # A source that is read meanwhile may fail, too, and that is not for us to explain.
        ours = exc.filename is not None and Path(os.fsdecode(exc.filename)).is_relative_to(catalog)
        if not ours and exc.errno not in _CANNOT_WRITE:
            raise
        raise CatalogError(
            f"{catalog}: the catalog could not be written ({exc.strerror or exc}); nothing was committed. "
            "Free space or mend the permissions, then repeat the command."
        ) from exc


@contextmanager
def _released(folder: Path, handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        # The lease goes last: a folder without one holds nothing. What cannot be removed is left to `zoo gc`.
        with suppress(OSError):
            for left in folder.iterdir():
                if left.name != _LEASE:
                    left.unlink()
            (folder / _LEASE).unlink()
            folder.rmdir()
        os.close(handle)


def _acquire(tmp: Path) -> tuple[Path, int]:
    while True:
        folder = tmp / new_id()
        folder.mkdir(parents=True)
        reached("lease-folder")
        try:
            handle = os.open(folder / _LEASE, os.O_CREAT | os.O_RDWR, 0o644)
        except FileNotFoundError:
            continue  # a collector took the folder for an abandoned one before there was a lease in it
        reached("lease-unlocked")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                return folder, handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # a collector locked it first and removed it


def _folders(tmp: Path) -> list[Path]:
    try:
        return sorted(p for p in tmp.iterdir() if p.is_dir())
    except FileNotFoundError:
        return []  # copies and version control leave empty folders out


def _lock(folder: Path) -> tuple[int | None, float | None]:
    """A handle that holds the lease of a dead writer, or when the lease of a living one was made, or neither."""
    try:
        handle = os.open(folder / _LEASE, os.O_RDWR)
    except FileNotFoundError:
        return None, None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        born = os.fstat(handle).st_mtime
        os.close(handle)
        return None, born
    return handle, None


def oldest_writer(catalog: Path) -> float | None:
    """When the oldest writer that is alive took its lease, in the time of the file system; None without writers."""
    oldest: float | None = None
    for folder in _folders(catalog / "tmp"):
        handle, born = _lock(folder)
        if handle is not None:
            os.close(handle)
        if born is not None:
            oldest = born if oldest is None else min(oldest, born)
    return oldest


class Abandoned(NamedTuple):
    """A file in the folder of a writer that died."""

    path: Path
    size_bytes: int


def abandoned(catalog: Path, *, before: float, remove: bool) -> Iterator[Abandoned]:
    """Files of writers that died, in folders older than `before`; removed when asked.

    The dead writer's lease is held meanwhile: a new writer that has made its folder but not locked it yet finds the
    lease gone and takes another.
    """
    for folder in _folders(catalog / "tmp"):
        handle, born = _lock(folder)
        if born is not None:
            continue
        try:
            with suppress(FileNotFoundError):
                if folder.stat().st_ctime >= before:
                    continue
                files = sorted(folder.iterdir(), key=lambda p: p.name == _LEASE)
                if handle is None and files:
                    continue  # a lease was just made in it
                for path in files:
                    if path.name != _LEASE:
                        yield Abandoned(path, path.stat().st_size)
                    if remove:
                        path.unlink()
                if remove:
                    with suppress(OSError):  # a new writer was quicker
                        folder.rmdir()
        finally:
            if handle is not None:
                os.close(handle)
