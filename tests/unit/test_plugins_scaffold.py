"""`zoo plugins new`: the project that it writes works, and its tests pass and can fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from zooplatform.descriptors import KINDS
from zooplatform.errors import ConfigError, PluginConflictError
from zooplatform.plugin_scaffold import PROJECT_KINDS, write_project

if TYPE_CHECKING:
    from pathlib import Path


def run_tests(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(project / "tests")],
        cwd=project.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_every_kind_of_descriptor_has_a_project() -> None:
    assert set(PROJECT_KINDS) == {kind.name for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROJECT_KINDS)
def test_the_tests_of_a_new_plugin_pass(kind: str, tmp_path: Path) -> None:
    write_project(kind, "my-first", tmp_path / "my-first")
    result = run_tests(tmp_path / "my-first")
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"\d+ passed", result.stdout)
    assert "skipped" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("source", "self._arrays[name].tobytes()", "self._arrays[name].tobytes()[1:]"),
        ("architecture", '"linear", tuple(pair)', '"linear", tuple(pair[:1])'),
        ("generator", "torch.Generator().manual_seed(seed)", "torch.Generator()"),
        ("property", "finite.abs().max()", "finite.max()"),
        ("sql", "1.0 / num_classes) /", "1.0 / num_classes) *"),
    ],
)
def test_the_tests_of_a_new_plugin_find_a_mistake(
    kind: str, right: str, wrong: str, tmp_path: Path
) -> None:
    write_project(kind, "my-first", tmp_path / "my-first")
    code = tmp_path / "my-first" / "zooplatform_my_first" / f"{kind}.py"
    text = code.read_text()
    assert right in text
    code.write_text(text.replace(right, wrong))
    assert run_tests(tmp_path / "my-first").returncode == 1


def test_the_project_declares_its_plugin(tmp_path: Path) -> None:
    files = write_project("tokenizer", "my-rows", tmp_path / "my-rows")
    project = tomllib.loads((tmp_path / "my-rows" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "zooplatform-my-rows"
    assert project["project"]["entry-points"]["zooplatform"] == {"my-rows": "zooplatform_my_rows"}
    assert [str(file.relative_to(tmp_path / "my-rows")) for file in files] == [
        "README.md",
        "pyproject.toml",
        "tests/conftest.py",
        "tests/test_zooplatform_my_rows.py",
        "zooplatform_my_rows/__init__.py",
        "zooplatform_my_rows/tokenizer.py",
    ]
    for file in files:
        assert not re.search(r"\$\{?[A-Za-z]", file.read_text()), f"{file} has a gap"


@pytest.mark.parametrize("name", ["", "My-Rows", "my_rows", "1st", "-x", "a--b", "../up", "a/b"])
def test_a_name_that_cannot_be_used_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a plugin"):
        write_project("source", name, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_an_unknown_kind_a_taken_name_and_a_present_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plugin kind 'sources'"):
        write_project("sources", "x", tmp_path / "x")
    with pytest.raises(PluginConflictError, match="'local' is installed"):
        write_project("source", "local", tmp_path / "local", taken={"local"})
    with pytest.raises(ConfigError, match="exists already"):
        write_project("source", "x", tmp_path)
