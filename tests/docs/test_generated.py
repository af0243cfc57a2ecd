"""The reference pages say what the code says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest

from zooplatform import docsgen, hookspecs
from zooplatform.cli._docs import cli_markdown, walk_commands

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("page", docsgen.PAGES)
def test_the_page_is_up_to_date(page: str, checkout: Path) -> None:
    stale = docsgen.stale_pages(checkout / "docs")
    assert page not in stale, "run `python -m zooplatform.docsgen`"


def test_a_stale_page_is_noticed_and_written(tmp_path: Path) -> None:
    assert docsgen.main(["--check", str(tmp_path)]) == 1
    assert docsgen.main([str(tmp_path)]) == 0
    assert docsgen.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "hooks.md").write_text("old")
    assert docsgen.stale_pages(tmp_path) == ["hooks.md"]


def test_the_page_does_not_depend_on_who_asked_for_help_before() -> None:
    page = cli_markdown()
    for _, command in walk_commands():
        command._help_option = None
        command.get_help(click.Context(command))  # here its only name is --help
    assert cli_markdown() == page


def test_every_hook_is_documented_in_full() -> None:
    page = docsgen.hooks_markdown()
    hooks = [name for name in vars(hookspecs) if name.startswith("zoo_")]
    sections = page.split("\n## ")
    for hook in hooks:
        (section,) = [text for text in sections if text.startswith(f"{hook}\n")]
        assert "**Called when**" in section
        assert "**Example**" in section
