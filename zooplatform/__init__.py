"""A database of trained neural networks: weights as Arrow, questions as SQL, methods as plugins."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zooplatform.hookspecs import ZOO_API, hookimpl

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog, open_catalog
    from zooplatform.catalog.population import Population
    from zooplatform.errors import ZooError
    from zooplatform.ingest import IngestReport
    from zooplatform.plugins import Registry, load_plugins

__all__ = [
    "ZOO_API",
    "Catalog",
    "IngestReport",
    "Population",
    "Registry",
    "ZooError",
    "__version__",
    "hookimpl",
    "load_plugins",
    "open_catalog",
]

__version__ = "0.1.0"

# Public names are imported when they are first used: `import zooplatform` must not import torch or pyarrow.
_HOMES = {
    "Catalog": "zooplatform.catalog",
    "IngestReport": "zooplatform.ingest",
    "Population": "zooplatform.catalog.population",
    "Registry": "zooplatform.plugins",
    "ZooError": "zooplatform.errors",
    "load_plugins": "zooplatform.plugins",
    "open_catalog": "zooplatform.catalog",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zooplatform' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
