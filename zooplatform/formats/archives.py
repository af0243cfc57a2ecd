"""Zip archives that may be hostile: names given twice, wrong checksums, members that inflate without end."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats.limits import shown

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ARCHIVE_ERRORS", "MAX_RATIO", "check_archive", "check_crc"]

# numpy's compressed archives of weights stay below 10; deflate itself reaches 1,000.
MAX_RATIO = 100
_FREE_BYTES = 1 << 20
_AGAIN = "Copy or download it again."
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


def check_archive(path: Path, *, stored_only: bool) -> zipfile.ZipFile:
    """Open the archive at `path` after checking its directory; the caller closes it.

    Args:
        path: the archive.
        stored_only: refuse compressed members (torch never writes them).

    Raises:
        SourceError: it is broken, encrypted, names a member twice, or would inflate to far more than the file holds.
    """
    try:
        archive = zipfile.ZipFile(path)
    except ARCHIVE_ERRORS as exc:
        raise SourceError(path, f"Its zip archive is broken: {exc}.", _AGAIN) from exc
    try:
        _check_directory(archive, path, stored_only=stored_only)
    except SourceError:
        archive.close()
        raise
    return archive


def _check_directory(archive: zipfile.ZipFile, path: Path, *, stored_only: bool) -> None:
    seen: set[str] = set()
    size = path.stat().st_size
    inflated = 0
    for info in archive.infolist():
        if info.filename in seen:
            raise SourceError(
                path, f"Its archive holds {shown(info.filename)} twice.", "Save it again."
            )
        seen.add(info.filename)
        if info.flag_bits & 0x1:
            raise SourceError(
                path, f"Its member {shown(info.filename)} is encrypted.", "Decrypt it first."
            )
        if stored_only and info.compress_type != zipfile.ZIP_STORED:
            raise SourceError(
                path,
                f"Its member {shown(info.filename)} is compressed, which torch never does.",
                "Save it again with torch.save.",
            )
        inflated += info.file_size
    if inflated > MAX_RATIO * size + _FREE_BYTES:
        raise SourceError(
            path,
            f"It would inflate from {size:,} to {inflated:,} bytes, more than {MAX_RATIO} times.",
            "Save it again uncompressed if it is meant.",
        )


def check_crc(path: Path) -> None:
    """Read every member of the archive at `path` and compare its checksum.

    Raises:
        SourceError: a member is damaged; the text names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except ARCHIVE_ERRORS as exc:
        raise SourceError(path, f"Its zip archive is broken: {exc}.", _AGAIN) from exc
    if bad is not None:
        raise SourceError(path, f"The checksum of its member {shown(bad)} is wrong.", _AGAIN)
