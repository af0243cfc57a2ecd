"""Opens catalogs, and makes new ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zooplatform.catalog.catalog import Catalog
from zooplatform.catalog.commits import Tables
from zooplatform.catalog.files import fsync_dir, publish_new
from zooplatform.catalog.mirror import Mirror, is_remote
from zooplatform.errors import CatalogError

if TYPE_CHECKING:
    from zooplatform.registry import Registry

__all__ = ["FORMAT", "open_catalog"]

FORMAT = 1


def open_catalog(
    path: str | os.PathLike[str], *, create: bool = False, registry: Registry | None = None
) -> Catalog:
    """Open a catalog.

    Args:
        path: its folder, or the fsspec URL of one (`s3://bucket/zoo`, `https://host/zoo`). A remote catalog can only be
            read: its tables are kept in a cache under `XDG_CACHE_HOME`, weights are read by range, one request for a
            population's network or a tensor; populations and SQL over weights fetch the files that they need.
        create: make an empty catalog when there is none.
        registry: plugins to use; all that are installed by default.

    Raises:
        CatalogError: there is no catalog, or it was written by a newer version.
    """
    text = os.fspath(path)
    mirror = Mirror(text) if is_remote(text) else None
    if mirror is not None:
        mirror.open()
        folder = mirror.folder
    else:
        folder = Path(_without_scheme(text)).expanduser().absolute()
    marker = folder / "FORMAT"
    if not marker.exists():
        if not create:
            raise CatalogError(
                f"{folder} is not a catalog. Make one with `zoo ingest REF -c {folder}` or "
                f"`zooplatform.open_catalog({str(folder)!r}, create=True)`."
            )
        _create(folder)
    try:
        version = json.loads(marker.read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CatalogError(
            f"{marker} cannot be read ({exc}). Restore it from a copy of the catalog."
        ) from exc
    if version != FORMAT:
        raise CatalogError(
            f"{folder} has catalog format {version}; this version of zooplatform reads format {FORMAT}. "
            "Run `pip install --upgrade zooplatform`."
        )
    return Catalog(folder, registry=registry, mirror=mirror)


def _without_scheme(text: str) -> str:
    for scheme in ("file://", "local://"):
        if text.startswith(scheme):
            return text.removeprefix(scheme)
    return text


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = ("FORMAT", "tables", "weights", "tmp", "artifacts")
        if any(p.name not in own and p.suffix != ".tmp" for p in folder.iterdir()):
            raise CatalogError(f"{folder} is not empty and not a catalog. Choose another folder.")
        for name in ("weights/population", "weights/tensors", "artifacts", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        Tables.create(folder)
        # FORMAT comes last: a folder without it is not a catalog, so a creation that was cut off is begun again.
        # Another process may be creating it at the same moment: the first to name a file wins, both write the same.
        publish_new(folder, "FORMAT", json.dumps({"format": FORMAT}).encode() + b"\n")
        fsync_dir(folder)
    except OSError as exc:
        raise CatalogError(
            f"{folder}: a catalog cannot be created there ({exc.strerror}). Choose another folder."
        ) from exc
