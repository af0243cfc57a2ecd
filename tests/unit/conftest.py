"""Lets unit tests share modules of their folder, and zoos to compare predictors on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog
    from zooplatform.testing import PluginInstaller

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def zoos_to_compare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zooplatform.catalog import open_catalog
    from zooplatform.testing.comparisons import sample_zoos

    path = tmp_path_factory.mktemp("compared") / "zoo"
    with open_catalog(path, create=True) as catalog:
        sample_zoos(catalog)
    return path


@pytest.fixture
def compared(zoos_to_compare: Path, tmp_path: Path, zoo_site: PluginInstaller) -> Iterator[Catalog]:
    """A copy of the zoos, with the predictors of the tests."""
    from zooplatform.catalog import open_catalog
    from zooplatform.plugins import load_plugins
    from zooplatform.testing.comparisons import SAMPLE_PREDICTORS

    zoo_site.install("compared", SAMPLE_PREDICTORS)
    with open_catalog(
        shutil.copytree(zoos_to_compare, tmp_path / "zoo"), registry=load_plugins(strict=True)
    ) as catalog:
        yield catalog
