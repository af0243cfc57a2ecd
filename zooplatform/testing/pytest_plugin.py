"""Fixtures for plugin authors, found by pytest through an entry point.

pytest loads this module in every run of the environment, so nothing heavy is imported before a
fixture is used, and every name starts with `zoo_`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import PopulationBatch
    from zooplatform.plugins import Registry
    from zooplatform.testing.installs import PluginInstaller

# An editable install does not tell pytest which modules belong to this plugin.
pytest.register_assert_rewrite(
    *(f"zooplatform.testing.{name}" for name in ("architectures", "properties", "sources", "sql"))
)

__all__ = ["zoo_catalog", "zoo_cli", "zoo_population", "zoo_registry", "zoo_site"]


@pytest.fixture
def zoo_registry() -> Registry:
    """The installed plugins, loaded afresh; one that does not load is an error."""
    from zooplatform.plugins import load_plugins

    return load_plugins(strict=True)


@pytest.fixture
def zoo_catalog(tmp_path: Path, zoo_registry: Registry) -> Iterator[Catalog]:
    """A new, empty catalog with the installed plugins."""
    from zooplatform.catalog import open_catalog

    with open_catalog(tmp_path / "catalog", create=True, registry=zoo_registry) as catalog:
        yield catalog


@pytest.fixture
def zoo_population() -> PopulationBatch:
    """Eight small networks of one architecture, the same in every run."""
    from zooplatform.testing.samples import sample_population

    return sample_population()


@pytest.fixture
def zoo_cli() -> Callable[..., Result]:
    """`zoo_cli("plugins", "--json")` runs `zoo plugins --json` in this process.

    The result has `exit_code`, `stdout` and `stderr`. An unforeseen exception is raised.
    """
    from click.testing import CliRunner

    from zooplatform.cli import main

    def run(*arguments: object, input: str | None = None) -> Result:
        words = [str(item) for item in arguments]
        return CliRunner().invoke(main, words, input=input, catch_exceptions=False)

    return run


@pytest.fixture
def zoo_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginInstaller]:
    """Installs plugins from source text for the length of the test."""
    from zooplatform.testing.installs import PluginInstaller

    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    installer = PluginInstaller(folder)
    yield installer
    installer.forget()
