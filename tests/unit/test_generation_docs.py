"""docs/generators.md is true: its commands, its SQL and its Python run on the built catalog."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
import torch

from zooplatform.catalog import open_catalog
from zooplatform.cli.generator import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "generators.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    built = Path(str(resources.files("zooplatform.catalogs"))) / "digits"
    return shutil.copytree(built, tmp_path / "digits")


def test_the_page_runs(
    digits: Path, zoo_cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CATALOG", str(digits))
    printed = []
    for block in blocks("console"):
        for line in block.splitlines():
            zoo, *words = shlex.split(line)
            assert zoo == "zoo"
            if words[:2] == ["generator", "evaluate"]:
                # The report card has a page and tests of its own; here it is enough that there is such a command.
                assert "evaluate" in generator.list_commands(click.Context(generator))
                continue
            done = zoo_cli(*words)
            assert done.exit_code == 0, done.stderr
            printed.append(done.stdout)
    first, again = printed[1].splitlines()[2:], json.loads(printed[-1])
    assert again["checkpoint_ids"] == first
    assert (len(first), again["new"]) == (8, 0)
    with open_catalog(digits) as catalog:
        for query in blocks("sql"):
            rows = catalog.sql(query).to_pylist()
            assert len(rows) == 8
            assert {row["instruction"] for row in rows} == {"digits, gelu"}
            assert {row["license"] for row in rows} == {"CC0-1.0"}
        query = "select checkpoint_id from wide where zoo = 'digits' and epoch >= 20"
        names: dict[str, object] = {"catalog": catalog, "query": query}
        for block in blocks("python"):
            exec(block, names)
        assert names["network"].training is False
        assert 0 <= float(names["accuracy"]) <= 1
