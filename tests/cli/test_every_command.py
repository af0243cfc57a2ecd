"""What holds for every command: help, an example, a page of docs, shared options, `--json` tested."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
import pytest

from zooplatform.cli._docs import cli_markdown, walk_commands

if TYPE_CHECKING:
    from pathlib import Path

EVERY = dict(walk_commands())
LEAVES = {
    words: command
    for words, command in EVERY.items()
    if not isinstance(command, click.Group) and words != "zoo"
}


@pytest.mark.parametrize("words", EVERY)
def test_help_says_what_it_does(words: str) -> None:
    text = EVERY[words].help
    assert text
    first = text.splitlines()[0]
    assert len(first) < 70
    assert first.endswith(".")


@pytest.mark.parametrize("words", LEAVES)
def test_help_has_an_example(words: str) -> None:
    _, found, examples = (LEAVES[words].help or "").partition("\b")
    assert found, "examples stand after \\b"
    assert all(line.strip().startswith(words) for line in examples.strip().splitlines())


@pytest.mark.parametrize("words", EVERY)
def test_every_option_says_what_it_is_and_its_default(words: str) -> None:
    for parameter in EVERY[words].params:
        if not isinstance(parameter, click.Option) or parameter.name in ("help", "version"):
            continue
        assert parameter.help, parameter.opts
        assert re.fullmatch(r"-\w|--[a-z][a-z0-9-]*", parameter.opts[-1])
        stated = parameter.show_default or "[default: " in parameter.help
        assert stated or parameter.required, f"{words} {parameter.opts}: say its default"


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_prints_json(words: str) -> None:
    options = {name for parameter in LEAVES[words].params for name in parameter.opts}
    assert "--json" in options


@pytest.mark.parametrize("words", LEAVES)
def test_the_json_of_every_command_is_tested(words: str, checkout: Path) -> None:
    """Looks for a call such as `cli("ls", ..., "--json")` in the tests."""
    called = r",\s*".join(f'"{word}"' for word in words.split()[1:])
    pattern = re.compile(rf'\(\s*{called},[^()]*"--json"')
    tests = (checkout / "tests").rglob("test_*.py")
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in tests)


def test_the_docs_page_is_up_to_date(checkout: Path) -> None:
    page = (checkout / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == cli_markdown(), "run `python -m zooplatform.docsgen`"
