"""Real catalogs for the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def mlp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of one zoo, `mlps`: four models of two checkpoints; for tests that only read."""
    path = tmp_path_factory.mktemp("catalogs") / "mlps"
    with open_catalog(path, create=True) as catalog:
        catalog.append(
            sample_population("mlp"), zoo="mlps", source="made for tests", license="CC0-1.0"
        )
    return path
