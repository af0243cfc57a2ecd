"""The command-line page of the docs, made from the commands themselves."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click

from zooplatform.cli import COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cli_markdown", "walk_commands"]

_INTRODUCTION = """\
# Command line

`zoo` is a thin skin over the Python API; `python -m zooplatform` is the same. Results go to stdout;
notes, progress and errors go to stderr. Every command that prints data takes `--json`. JSON has no
NaN and no infinities: they are written as the texts `"NaN"`, `"Infinity"` and `"-Infinity"`.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed for a foreseen reason, which is on stderr; of several references at least one failed |
| 2 | wrong usage |
| 130 | interrupted |

| variable | effect |
| --- | --- |
| `ZOO_CATALOG` | folder of the catalog when `-c` is not given |
| `ZOO_DEBUG=1` | show the traceback of foreseen failures too |
| `NO_COLOR=1` | no colours on a terminal |
| `COLUMNS` | width of tables, where it is not that of the terminal |
| `ZOO_PLUGINS`, `ZOO_DISABLE_PLUGINS` | names of the only plugins to load, of plugins not to load |

Plugins add commands of their own; `zoo --help` lists them.
"""


def walk_commands() -> Iterator[tuple[str, click.Command]]:
    """Every built-in command and sub-command with its words, `zoo` first; imports them all."""
    yield "zoo", main
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        if command is not None:
            yield from _walk(f"zoo {name}", command)


def _walk(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            if inner is not None:
                yield from _walk(f"{words} {name}", inner)


def cli_markdown() -> str:
    """The whole page as Markdown; the same on every machine and terminal."""
    pages = [_page(words, command) for words, command in walk_commands() if words != "zoo"]
    return "\n".join([_INTRODUCTION, *pages])


def _page(words: str, command: click.Command) -> str:
    """One command: usage, what its help says, its examples, its options."""
    context = click.Context(command, info_name=words, help_option_names=["-h", "--help"])
    usage = " ".join([words, *command.collect_usage_pieces(context)])
    prose, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    parts = [f"## {words}", f"`{usage}`", prose.strip()]
    if examples:
        parts.append(f"```console\n{examples.strip()}\n```")
    if isinstance(command, click.Group):
        return "\n\n".join(parts) + "\n"
    # A command keeps the help option of whoever asked first, with the names that it had there: one of our own is asked.
    own = click.Command(None, params=command.params)
    options = [p for p in own.get_params(context) if isinstance(p, click.Option)]
    records = filter(None, (option.get_help_record(context) for option in options))
    rows = [
        f"| `{names}` | {text} |".replace(names, names.replace("|", "\\|"))
        for names, text in records
    ]
    return "\n\n".join([*parts, "\n".join(["| option | meaning |", "| --- | --- |", *rows])]) + "\n"
