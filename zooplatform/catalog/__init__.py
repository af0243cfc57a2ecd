"""The catalog: weights in sealed Arrow files, everything else in Delta tables, commits that change both as one."""

from __future__ import annotations

from zooplatform.catalog.catalog import Catalog
from zooplatform.catalog.opening import open_catalog
from zooplatform.catalog.population import Population

__all__ = ["Catalog", "Population", "open_catalog"]
