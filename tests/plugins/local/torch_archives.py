"""torch archives with something else in them than torch wrote."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["rewrite", "with_pickle"]


def rewrite(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], bytes | None],
    *,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Copy a torch archive, giving every member (its name behind the prefix, its bytes) to `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = change(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def with_pickle(plain: Path, data: bytes) -> Path:
    """The archive `plain` with another pickle in it."""
    return rewrite(
        plain, plain.parent / "evil.pt", lambda name, old: data if name == "data.pkl" else old
    )
