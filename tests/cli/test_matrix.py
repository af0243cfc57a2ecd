"""`zoo predictor matrix` and `zoo predictor render` on real zoos."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog
from zooplatform.testing.comparisons import SAMPLE_PREDICTORS, sample_zoos

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from zooplatform.testing import PluginInstaller

    Cli = Callable[..., Result]

PROTOCOL = """
name = "two"
draws = 50

[split]
name = "s"
by = "stack"

[targets]
test_accuracy = "test_accuracy"

[zoos]
mlp-a = { dataset = "a", architecture = "mlp" }
mlp-b = { dataset = "b", architecture = "mlp" }

[methods.line]
backend = "spread"
baseline = true

[methods.flat]
backend = "flat"
CONFIG

[[cells]]
kind = "in-distribution"
"""


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "zoo"
    with open_catalog(path, create=True) as catalog:
        sample_zoos(catalog)
    return path


@pytest.fixture
def path(
    zoos: Path, tmp_path: Path, zoo_site: PluginInstaller, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of the zoos and the protocol, in the working directory."""
    zoo_site.install("compared", SAMPLE_PREDICTORS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.toml").write_text(PROTOCOL.replace("CONFIG", ""))
    return shutil.copytree(zoos, tmp_path / "zoo")


def test_a_comparison_is_run_repeated_and_shown(cli: Cli, path: Path, tmp_path: Path) -> None:
    result = cli("predictor", "matrix", "two.toml", "-c", path, "--only", "line", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["fitted"], said["reused"], said["missing"], said["failed"]) == (2, 0, 0, [])
    assert said["complete"]
    assert "2 fits done" in result.stderr
    result = cli(
        *("predictor", "matrix", "two.toml", "-c", path, "-o", "two.json", "--pages", "pages"),
        *("--predictions", "two.npz"),
    )
    assert result.exit_code == 0, result.stderr
    assert "2 fits done, 2 from before" in result.stderr
    assert result.stdout.splitlines()[0].split()[:5] == [
        "target",
        "kind",
        "fraction",
        "subset",
        "method",
    ]
    assert sum("in-distribution" in line for line in result.stdout.splitlines()) == 4
    assert (tmp_path / "two.npz").exists()
    page = (tmp_path / "pages" / "two.md").read_text()
    shutil.rmtree(tmp_path / "pages")
    shown = cli("predictor", "render", "two.json", "--output", "pages", "--no-figures", "--json")
    assert json.loads(shown.stdout) == {"files": ["pages/two.md"]}
    shown = cli("predictor", "render", "two.json", "--output", "pages")
    assert shown.stdout.split() == ["pages/two.md", "pages/two-test_accuracy.svg"]
    assert (tmp_path / "pages" / "two.md").read_text() == page


def test_what_is_left_is_said(cli: Cli, path: Path) -> None:
    result = cli("predictor", "matrix", "two.toml", "-c", path, "--max-minutes", 0)
    assert result.exit_code == 0
    assert "4 fits to be done; repeat the command" in result.stderr


def test_failures_end_with_one_line(cli: Cli, path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(PROTOCOL.replace("CONFIG", "config = { ridg = 1 }"))
    result = cli("predictor", "matrix", "bad.toml", "-c", path)
    assert result.exit_code == 1
    assert "2 fits failed, first flat on mlp-a, test_accuracy, seed 0" in result.stderr
    assert "unknown keys ['ridg']" in result.stderr
    assert json.loads((tmp_path / "two.json").read_text())["complete"] is False
    for arguments, text in [
        (("matrix", "none.toml", "-c", path), "cannot be read"),
        (("matrix", "nothing", "-c", path), "no protocol 'nothing'"),
        (("matrix", "two.toml", "-c", path, "--only", "lines"), "--only names 'lines'"),
        (("matrix", "two.toml", "-c", path, "--final"), "keeps no networks"),
        (("render", "none.json"), "cannot be read"),
    ]:
        result = cli("predictor", *arguments)
        assert (result.exit_code, text in result.stderr) == (1, True), result.stderr
