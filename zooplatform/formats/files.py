"""Files as the readers see them: regular, read at offsets, hashed once, watched for change."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from zooplatform.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from zooplatform.interfaces import Progress

__all__ = ["FileStamp", "OpenFile", "allowed_root", "inside", "sha256_file", "sha256_of_set"]

_INSIDE = "Put its files beside it, as they are, and name them so; nothing else is read."
_HASH_BLOCK = 1 << 19  # stays in the cache between the read and the hash


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What changes when a file is written or replaced."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


class OpenFile:
    """A regular file opened for reading at offsets.

    `pread` and not a mapping: a file that is cut while it is read gives an error, where a mapping gives SIGBUS, and
    what was read does not count as memory of the process.

    Raises:
        SourceError: the file is not there, is no regular file, or may not be read.
    """

    _fd: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Opening a pipe would wait for its writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as exc:
            raise SourceError(path, "There is no such file.", "Check the path.") from exc
        except (OSError, ValueError) as exc:
            raise SourceError(
                path, f"It cannot be opened: {exc}.", "Check the path and its permissions."
            ) from exc
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise SourceError(
                path, "It is not a regular file.", "Give the path of a file of weights."
            )
        self._fd = fd
        self.size = status.st_size
        self.stamp = _stamp(status)

    @property
    def fd(self) -> int:
        if self._fd is None:
            raise SourceError(self.path, "It was closed.", "Open the checkpoint again.")
        return self._fd

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`."""
        if size < 0 or offset < 0 or offset + size > self.size:
            raise self._short(offset, size)
        data = bytearray(size)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target`, a view of bytes, from `offset`."""
        done = 0
        while done < len(target):
            try:
                got = os.preadv(self.fd, [target[done:]], offset + done)
            except OSError as exc:
                raise SourceError(
                    self.path, f"Reading failed at byte {offset + done}: {exc}.", "Check the disk."
                ) from exc
            if got == 0:
                raise self._short(offset, len(target))
            done += got

    def check_unchanged(self) -> None:
        """Raise SourceError when the file was written, replaced or removed since it was opened."""
        try:
            now = _stamp(self.path.stat()), _stamp(os.fstat(self.fd))
        except OSError as exc:
            raise SourceError(
                self.path, f"It went away while it was read: {exc}.", "Try again."
            ) from exc
        if any(stamp != self.stamp for stamp in now):
            raise SourceError(
                self.path,
                "It was changed while it was read.",
                "Wait until nothing writes it and try again.",
            )

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A reader that refuses its file half-way through leaves nobody to close it.
        self.close()

    def _short(self, offset: int, size: int) -> SourceError:
        return SourceError(
            self.path,
            f"It is truncated: bytes {offset} to {offset + size} are needed, it has {self.size}.",
            "Copy or download it again.",
        )


def sha256_file(file: OpenFile, progress: Progress | None = None) -> str:
    """SHA-256 of an open file as hex, in bounded memory (hashlib lets other threads run meanwhile)."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(min(_HASH_BLOCK, max(1, file.size))))
    for offset in range(0, file.size, len(block)):
        part = block[: min(len(block), file.size - offset)]
        file.read_into(part, offset)
        digest.update(part)
        if progress is not None:
            progress(f"hashing {file.path.name}", offset + len(part), file.size)
    return digest.hexdigest()


def sha256_of_set(digests: Iterable[tuple[str, str]]) -> str:
    """One hash for the files of one checkpoint, from their (name, SHA-256) pairs; order does not matter."""
    lines = sorted(f"{sha256}  {name}\n" for name, sha256 in digests)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def allowed_root(folder: Path) -> Path:
    """The folder that files named by a file in `folder` must lie in.

    The folder itself; in a cache of the Hugging Face Hub, whose snapshots are links to blobs of the
    repository or to blobs that repositories share, the whole cache.
    """
    folder = folder.resolve()
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent.parent
    return folder


def inside(folder: Path, name: str, root: Path, subject: object) -> Path:
    """`folder / name`, which must be a plain relative path that ends inside `root`, links followed.

    Raises:
        SourceError: it climbs out of the folder.
    """
    parts = name.replace("\\", "/").split("/")
    if "\0" in name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise SourceError(
            subject,
            f"It names the file {name[:200]!r}, which is not a plain name inside its folder.",
            _INSIDE,
        )
    path = folder / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(
            subject, f"It names the file {name[:200]!r}, which is a link out of {folder}.", _INSIDE
        )
    return path


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
