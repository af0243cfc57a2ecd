"""Durable file operations: write, rename and link with the fsyncs that make them last through a power cut."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = [
    "fsync_dir",
    "fsync_file",
    "new_id",
    "offered",
    "publish",
    "publish_new",
    "reached",
    "touch",
    "write_durably",
]

_last_millisecond = 0


def new_id(after: str = "") -> str:
    """A time-ordered id: 12 hex digits of milliseconds, then 20 of chance; greater than `after` and all before."""
    global _last_millisecond
    floor = int(after[:12], 16) + 1 if after else 0
    _last_millisecond = max(time.time_ns() // 1_000_000, _last_millisecond + 1, floor)
    return f"{_last_millisecond:012x}{secrets.token_hex(10)}"


def reached(step: str) -> None:
    """Marks a step of the commit protocol. Does nothing; the crash tests replace it to stop the process here."""


def fsync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_dir(path: Path) -> None:
    """Makes the names in a folder durable."""
    fsync_file(path)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and fsync it; the caller makes its name durable."""
    with path.open("xb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def publish(temporary: Path, final: Path) -> None:
    """Give a finished and fsynced file its final name, durably."""
    missing = [p for p in (final.parent, *final.parents) if not p.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(final)
    fsync_dir(final.parent)
    for folder in missing:
        fsync_dir(folder.parent)


@contextmanager
def offered(folder: Path, data: bytes) -> Iterator[Callable[[str], bool]]:
    """Gives `take(name)`: create `folder/name` with exactly `data`, all or nothing; False when the name is taken.

    A hard link, because unlike a rename it never replaces what another writer put there. The data are written once,
    however many names are tried.
    """
    temporary = folder / f".{secrets.token_hex(8)}.tmp"

    def take(name: str) -> bool:
        try:
            os.link(temporary, folder / name)
        except FileExistsError:
            return False
        return True

    try:
        write_durably(temporary, data)
        yield take
    finally:
        with suppress(OSError):  # what stays behind, `zoo gc` removes
            temporary.unlink()


def publish_new(folder: Path, name: str, data: bytes) -> bool:
    """Create `folder/name` with exactly `data`, all or nothing; False when the name is taken."""
    with offered(folder, data) as take:
        return take(name)


def touch(paths: Iterable[Path]) -> None:
    """Make files young, so that `zoo gc` spares them for its whole grace period from now on."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.utime(path)
