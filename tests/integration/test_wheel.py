"""What is shipped is what was tested: the wheel, installed elsewhere, has every plugin and file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# What a build reads; a build in the checkout itself would leave files behind.
SOURCES = (
    "zooplatform",
    "plugins",
    "schemas",
    "catalogs",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    project = tmp_path_factory.mktemp("project")
    for name in SOURCES:
        source = checkout / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, project / name, ignore=ignored)
        else:
            shutil.copy(source, project / name)
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(project)],
        check=True,
        timeout=110,
    )
    return target


def run(site: Path, folder: Path, *arguments: str) -> str:
    """Run Python with the installed wheel before everything else on the path."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_lists_every_plugin(site: Path, tmp_path: Path, checkout: Path) -> None:
    home = run(site, tmp_path, "-c", "import zooplatform; print(zooplatform.__file__)")
    assert home.startswith(str(site)), "the checkout was used in place of the wheel"
    plugins = json.loads(run(site, tmp_path, "-m", "zooplatform", "plugins", "--json"))
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    declared = set(project["project"]["entry-points"]["zooplatform"])
    loaded = {p["name"] for p in plugins if p["distribution"] == "zooplatform"}
    assert loaded == declared
    assert {p["status"] for p in plugins} == {"loaded"}


def test_the_wheel_holds_every_file_that_is_read_at_run_time(site: Path, checkout: Path) -> None:
    def below(folder: Path, pattern: str) -> set[str]:
        found = folder.rglob(pattern)
        return {str(f.relative_to(folder)) for f in found if "__pycache__" not in f.parts}

    core = site / "zooplatform"
    assert (core / "py.typed").is_file()
    assert below(core / "schemas", "*.json") == below(checkout / "schemas", "*.json") != set()
    templates = below(checkout / "zooplatform" / "templates", "*.txt")
    assert below(core / "templates", "*.txt") == templates != set()
    assert below(core, "*.py") >= below(checkout / "zooplatform", "*.py")
    for folder in (checkout / "plugins").glob("zooplatform_*"):
        assert below(site / folder.name, "*.py") == below(folder, "*.py")


def test_a_plugin_can_be_begun_from_the_wheel(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path, "-m", "zooplatform", "plugins", "new", "sql", "my-sql")
    assert (tmp_path / "my-sql" / "zooplatform_my_sql" / "sql.py").is_file()
