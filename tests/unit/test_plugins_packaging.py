"""Folders, project file, installed metadata, README and import contracts tell the same story."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.backends import missing_requirements
from zooplatform.interfaces import BackendSpec
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from pathlib import Path

AGAIN = "run `pip install -e .` again"


@pytest.fixture(scope="module")
def project(checkout: Path) -> dict[str, Any]:
    return tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(checkout: Path) -> set[str]:
    return {item.parent.name for item in (checkout / "plugins").glob("*/__init__.py")}


def test_every_plugin_folder_is_an_entry_point(project: dict[str, Any], folders: set[str]) -> None:
    declared = project["project"]["entry-points"]["zooplatform"]
    assert set(declared.values()) == folders
    assert all(module == f"zooplatform_{name}" for name, module in declared.items())


def test_the_installed_metadata_is_that_of_the_project(project: dict[str, Any]) -> None:
    for group in ("zooplatform", "pytest11"):
        installed = {
            point.name: point.value
            for point in entry_points(group=group)
            if point.dist is not None and point.dist.name == "zooplatform"
        }
        assert installed == project["project"]["entry-points"][group], AGAIN


def test_every_package_is_declared(project: dict[str, Any], checkout: Path) -> None:
    """A package that is not declared works in a checkout and is missing from the wheel."""
    core = checkout / "zooplatform"
    found = {
        ".".join(item.parent.relative_to(checkout).parts) for item in core.rglob("__init__.py")
    }
    plugins = checkout / "plugins"
    found |= {
        ".".join(item.parent.relative_to(plugins).parts) for item in plugins.rglob("__init__.py")
    }
    found |= {"zooplatform.catalogs", "zooplatform.schemas"}
    setuptools = project["tool"]["setuptools"]
    assert set(setuptools["packages"]) == found
    places = setuptools["package-dir"]
    expected = {n: f"plugins/{n.replace('.', '/')}" for n in found if n.startswith("zooplatform_")}
    expected |= {"zooplatform.catalogs": "catalogs", "zooplatform.schemas": "schemas"}
    assert places == expected


def test_every_built_in_plugin_loads() -> None:
    for plugin in load_plugins(strict=True).plugins:
        assert plugin.status == "loaded"
        assert plugin.hooks, f"plugin {plugin.name!r} implements no hook"


def test_plugin_modules_are_short(checkout: Path, folders: set[str]) -> None:
    """They hold hook implementations that return descriptors, and nothing else."""
    for folder in folders:
        text = (checkout / "plugins" / folder / "__init__.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 90, folder


def test_the_readme_lists_what_the_plugins_provide(checkout: Path) -> None:
    """One row per plugin: hooks, names, heavy requirements."""
    text = (checkout / "plugins" / "README.md").read_text(encoding="utf-8")
    rows = {
        cells[0]: cells[1:]
        for line in text.splitlines()
        if line.startswith("| [`") and (cells := _cells(line))
    }
    registry = load_plugins(strict=True)
    expected = {}
    for plugin in registry.plugins:
        if plugin.distribution != "zooplatform":
            continue
        provided = registry.provided_by(plugin.name)
        requires = {r for _, s in provided if isinstance(s, BackendSpec) for r in s.requires}
        hooks = ", ".join(f"`{hook.removeprefix('zoo_')}`" for hook in plugin.hooks)
        names = ", ".join(f"`{name.partition(':')[2]}`" for name in plugin.provides)
        needs = ", ".join(f"`{name}`" for name in sorted(requires)) or "-"
        expected[f"[`{plugin.name}`]({plugin.entry_point})"] = [hooks, names, needs]
    assert rows == expected, "bring the table of plugins/README.md up to date"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| \n").split(" | ")]


def test_every_requirement_of_a_built_in_plugin_can_be_installed(project: dict[str, Any]) -> None:
    """Each is a dependency of the project or of one of its extras, or the spec names a pip line."""
    lists = [project["project"]["dependencies"]]
    lists += project["project"]["optional-dependencies"].values()
    names = {re.split(r"[<>=!~\[; ]", item)[0].replace("-", "_") for part in lists for item in part}
    registry = load_plugins(strict=True)
    for plugin in registry.plugins:
        for _, spec in registry.provided_by(plugin.name):
            if isinstance(spec, BackendSpec) and plugin.distribution == "zooplatform":
                assert set(spec.requires) <= names, spec
                if set(missing_requirements(spec)):
                    assert spec.install.startswith("pip install "), spec


# --- import contracts ------------------------------------------------------------------------------------------------


def test_the_import_contracts_hold(checkout: Path) -> None:
    command = (
        "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    result = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout


def test_the_contracts_cover_every_plugin(project: dict[str, Any], folders: set[str]) -> None:
    linter = project["tool"]["importlinter"]
    assert set(linter["root_packages"]) == {"zooplatform"} | folders
    contracts = {contract["name"]: contract for contract in linter["contracts"]}
    assert set(contracts["The core imports no plugin"]["forbidden_modules"]) == folders
    public = contracts["Plugins import only public names of the core"]
    assert set(public["source_modules"]) == folders
    assert set(contracts["Plugins do not import each other"]["modules"]) == folders
    command_line = contracts["The command line leaves torch and plugins to the core"]
    assert folders <= set(command_line["forbidden_modules"])


PUBLIC = {
    *(
        "activations",
        "catalog",
        "datasets",
        "errors",
        "fit_state",
        "fitting",
        "formats",
        "hookspecs",
        "interfaces",
    ),
    *("layout", "symmetry", "testing"),
}


def test_every_module_of_the_core_is_public_or_kept_from_plugins(
    project: dict[str, Any], checkout: Path
) -> None:
    core = checkout / "zooplatform"
    modules = {item.stem for item in core.glob("[a-z]*.py")}
    modules |= {item.parent.name for item in core.glob("*/__init__.py")}
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = [item for item in contracts if item["name"].startswith("Plugins import only")]
    kept = {name.split(".")[1] for name in contract["forbidden_modules"]}
    assert kept - {"catalog", "interfaces"} == modules - PUBLIC, (
        "name new modules of the core in the contract, or here if plugins may use them"
    )
