"""What one run of `zoo` shares: the plugins, loaded once, and how a catalog is opened."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog
    from zooplatform.plugins import Registry

__all__ = ["Session", "get_session", "open_catalog"]


class Session:
    """The plugins of one process; loading waits until a command needs them."""

    def __init__(self, *, no_plugins: bool = False) -> None:
        self.no_plugins = no_plugins

    @cached_property
    def registry(self) -> Registry:
        from zooplatform.plugins import load_plugins

        # What did not load is logged there, once, and is no reason to stop.
        return load_plugins(allow=()) if self.no_plugins else load_plugins()


def get_session(ctx: click.Context | None = None) -> Session:
    """The session of `ctx` or of the running command.

    Help is printed while the root's arguments are parsed, before `main` could make a session;
    then `--no-plugins` is looked up among what has been parsed so far.
    """
    root = (ctx or click.get_current_context()).find_root()
    if not isinstance(root.obj, Session):
        root.obj = Session(no_plugins=bool(root.params.get("no_plugins")))
    return root.obj


def open_catalog(path: str, *, create: bool = False) -> Catalog:
    """Open the catalog at `path` with the plugins of this run.

    Raises:
        CatalogError: there is none, or it cannot be read.
    """
    from zooplatform.catalog import open_catalog as open_at

    return open_at(path, create=create, registry=get_session().registry)
