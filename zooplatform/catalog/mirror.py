"""Catalogs on an object store or web server: tables are mirrored to a local cache, weights are read by range.

Every file of a catalog is written once and never changed, so what was fetched stays true, and a mirror is brought up to
date by fetching the files that are new.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.schema import table_names, table_schema

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Mirror", "is_remote"]


def is_remote(text: str) -> bool:
    """Whether a path is the URL of something that is not a local file."""
    return "://" in text and not text.startswith(("file://", "local://"))


class Mirror:
    """Read-only access to a catalog behind an fsspec URL.

    Attributes:
        folder: the local cache, laid out like the catalog itself.
    """

    def __init__(self, url: str, cache: Path | None = None) -> None:
        import fsspec

        try:
            self._remote, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as exc:
            raise CatalogError(f"{url}: {exc}") from exc
        self.url = url
        self.folder = (cache or _cache()) / hashlib.sha256(url.encode()).hexdigest()[:24]

    def open(self) -> None:
        """Fetch the marker of the catalog.

        Raises:
            CatalogError: there is no catalog, or it cannot be reached.
        """
        try:
            self._fetch("FORMAT", again=True)
        except CatalogError as exc:
            raise CatalogError(
                f"{self.url} is not a catalog that can be reached ({exc.__cause__})."
            ) from exc

    def refresh(self) -> None:
        """Fetch what was committed since the last time: one listing when nothing was."""
        if not self._new("commits", "_delta_log"):
            return
        # `commits` is listed before the other tables and fetched after them, so that every commit that the mirror knows
        # has all of its rows there; by a process that reads the mirror at this moment, too.
        entries = self._new("commits", "_delta_log")
        for name in table_names():
            if name != "commits":
                log = self._new(name, "_delta_log")
                self._fetch_all([*self._new(name), *log])
        self._fetch_all([*self._new("commits"), *entries])

    def _new(self, table: str, inside: str = "") -> list[str]:
        """Files of a table's folder, or of its log, that are not here yet."""
        folder = f"tables/{table}/{inside}".rstrip("/")
        suffix = ".json" if inside else ".parquet"
        try:
            self._remote.invalidate_cache(f"{self._root}/{folder}")
            listed = self._remote.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError as exc:
            if table_schema(table).added_later:
                return []
            raise CatalogError(f"{self.url}: {folder} is missing. Restore it from a copy.") from exc
        except (OSError, RuntimeError) as exc:
            raise CatalogError(
                f"{self.url}: {folder} cannot be listed ({exc}). Try again."
            ) from exc
        names = sorted(str(path).rstrip("/").rpartition("/")[2] for path in listed)
        here = self.folder / folder
        return [f"{folder}/{n}" for n in names if n.endswith(suffix) and not (here / n).exists()]

    def _fetch_all(self, paths: list[str]) -> None:
        for path in paths:
            self._fetch(path)

    def _fetch(self, path: str, *, again: bool = False) -> Path:
        """The local copy of a file, whole or not at all."""
        target = self.folder / path
        if target.exists() and not again:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            self._remote.get_file(f"{self._root}/{path}", str(temporary))
            temporary.replace(target)
        except (OSError, RuntimeError) as exc:
            raise CatalogError(f"{self.url}: {path} cannot be fetched ({exc}). Try again.") from exc
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def weight_file(self, path: str) -> Path:
        """A whole weight file, fetched once and kept: for populations, and for SQL that looks into weights."""
        return self._fetch(path)

    def read(self, path: str, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Part of a weight file, with one ranged request where the file is not here.

        Raises:
            IntegrityError: the file is missing or shorter than committed.
        """
        if (self.folder / path).exists():
            return np.fromfile(self.folder / path, dtype=np.uint8, count=size, offset=offset)
        if not size:
            return np.empty(0, dtype=np.uint8)
        try:
            data: Any = self._remote.cat_file(
                f"{self._root}/{path}", start=offset, end=offset + size
            )
        except FileNotFoundError as exc:
            raise IntegrityError(
                f"{self.url}: weight file {path} is missing. Restore it from a copy."
            ) from exc
        except (OSError, RuntimeError) as exc:
            raise CatalogError(f"{self.url}: {path} cannot be read ({exc}). Try again.") from exc
        if len(data) != size:
            raise IntegrityError(
                f"{self.url}: weight file {path} is shorter than committed. Restore it from a copy."
            )
        return np.frombuffer(bytearray(data), dtype=np.uint8)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zooplatform" / "catalogs"
