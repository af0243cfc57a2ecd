"""`zoo report` on a real catalog."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from click.testing import Result

    Cli = Callable[..., Result]


def test_it_prints_where_the_page_is(cli: Cli, mlp_path: Path, tmp_path: Path) -> None:
    result = cli("report", "mlps", "--output", tmp_path / "page", "-c", mlp_path)
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'page' / 'index.html'}\n"
    assert "4 models, 4 figures, " in result.stderr


def test_json_says_what_is_on_the_page(
    cli: Cli, mlp_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("report", "mlps", "-c", mlp_path, "--json")
    written = json.loads(result.stdout)
    assert written["path"] == "report-mlps/index.html"
    assert (written["zoo"], written["metric"], written["num_checkpoints"]) == (
        "mlps",
        "test_accuracy",
        8,
    )
    assert written["figures"][0] == "test_accuracy by epoch"
    assert (tmp_path / "report-mlps" / "index.html").stat().st_size == written["size_bytes"]


def test_an_unknown_zoo_fails(cli: Cli, mlp_path: Path, tmp_path: Path) -> None:
    result = cli("report", "nets", "--output", tmp_path, "-c", mlp_path)
    assert result.exit_code == 1
    assert "No zoo 'nets' in this catalog" in result.stderr
    assert list(tmp_path.iterdir()) == []
