"""Makes the reference pages from the code: `python -m zooplatform.docsgen [--check] [FOLDER]`.

Each page is a function that gives Markdown, the same on every machine. A test compares the pages of
`docs/` with what the functions give now.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooplatform import hookspecs
from zooplatform.descriptors import KINDS
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["PAGES", "hooks_markdown", "main", "stale_pages", "write_pages"]

_HOOKS_INTRODUCTION = """\
# Hooks

Everything that a plugin can do. A plugin is a module (or an object) that an entry point of the
group `zooplatform` names; it implements hooks by functions of these names, marked with
`@zooplatform.hookimpl`.

```toml
[project.entry-points.zooplatform]
my-plugin = "my_plugin"        # the plugin's name = the module with the hook implementations
```

```python
from zooplatform import hookimpl
from zooplatform.interfaces import SqlFunction

ZOO_API = "{api}"  # the version of this contract; a plugin that names none is taken for "1"


@hookimpl
def zoo_register_sql():
    return [
        SqlFunction(
            name="mb", parameters=("n",), sql="n / 1e6", returns="DOUBLE", summary="Bytes to MB."
        )
    ]
```

`zoo plugins new KIND NAME` writes a whole project with tests that pass; `zooplatform.testing` has
the fixtures and the contract suites that its tests build on.

## Life of a plugin

1. Entry points are read and sorted by name. Names that `ZOO_DISABLE_PLUGINS` lists, or that
   `ZOO_PLUGINS` does not, are `disabled`: their module is not imported. If two distributions claim
   one name, neither is loaded (`conflict`).
2. The module is imported. `ZOO_API` must be `"{api}"`, else the plugin is `incompatible`.
3. Its hooks are checked against the signatures below. An argument may be left out, or be added with
   a default for a later version of the contract.
4. The registration hooks are called, once, and every descriptor is checked. Nothing heavy may be
   imported so far: what a `factory` names is imported when the backend is used.
5. The plugin is `loaded`. If anything failed on the way it is `failed`, nothing of it is registered,
   and everything else works; `zoo plugins` shows the cause and the command that repairs it.

| variable | effect |
| --- | --- |
| `ZOO_PLUGINS=a,b` | load only these; empty loads none (`zoo --no-plugins`) |
| `ZOO_DISABLE_PLUGINS=a,b` | do not import these |
| `ZOO_STRICT_PLUGINS=1` | a plugin that does not load is an error; for development and tests |
| `ZOO_TRACE_PLUGINS=1` | write every step and every hook call to stderr |

The same settings can stand in `zooplatform.toml` in the working directory (`plugins`,
`disable_plugins`, `strict_plugins`, `trace_plugins`); the environment wins over the file.

## Names

A name is unique per kind. Where two plugins provide the same, both stay usable as `plugin/name`
(SQL: `plugin_name`, commands: `plugin-name`), and the bare name is an error that says so when it
is used. A command cannot take the name of a built-in one.
"""


def hooks_markdown() -> str:
    """The page about hooks: each with its documentation, its descriptors and who implements it."""
    users = _implementations()
    parts = [_HOOKS_INTRODUCTION.replace("{api}", hookspecs.ZOO_API)]
    names = [name for name in vars(hookspecs) if name.startswith("zoo_")]
    types = {kind.hook: kind.types for kind in KINDS}
    for name in names:
        function = getattr(hookspecs, name)
        parts.append(f"## {name}\n")
        parts.append(f"```python\n{_signature(function)}\n```\n")
        parts.append(_sections(inspect.getdoc(function) or ""))
        for descriptor in types.get(name, ()):
            parts.append(_descriptor(descriptor))
        who = ", ".join(f"`{user}`" for user in users.get(name, ())) or "none"
        parts.append(f"Built-in plugins that implement it: {who}.\n")
    return "\n".join(parts)


def _implementations() -> dict[str, list[str]]:
    """Hook name -> built-in plugins that implement it."""
    users: dict[str, list[str]] = {}
    # Whatever else is installed here does not belong on the page.
    own = [p.name for p in load_plugins((), ()).plugins if p.distribution == hookspecs.HOST]
    for plugin in load_plugins(own, (), strict=True).plugins:
        for hook in plugin.hooks:
            users.setdefault(hook, []).append(plugin.name)
    return users


def _signature(function: Callable[..., Any]) -> str:
    return f"def {function.__name__}{inspect.signature(function)}".replace("'", "")


def _sections(text: str) -> str:
    """A Google docstring as Markdown: its headings become bold, arguments a list."""
    lines = []
    for line in text.splitlines():
        heading = re.fullmatch(r"([A-Z][A-Za-z ]+):", line)
        if heading:
            lines += [f"**{heading[1]}**", ""]
        else:
            argument = re.fullmatch(r"    (\w+): (.*)", line)
            lines.append(f"- `{argument[1]}`: {argument[2]}" if argument else line.strip())
    return "\n".join(lines) + "\n"


def _descriptor(kind: type) -> str:
    """Fields of a descriptor with type, default and meaning."""
    meanings = {k: v for base in reversed(kind.__mro__) for k, v in _attributes(base).items()}
    hints = typing.get_type_hints(kind)
    rows = [f"`{kind.__name__}`: {_summary(kind)}", "", "| field | type | default | meaning |"]
    rows.append("| --- | --- | --- | --- |")
    for item in dataclasses.fields(kind):
        default = "required" if item.default is dataclasses.MISSING else f"`{item.default!r}`"
        hint = hints[item.name]
        name = hint.__name__ if isinstance(hint, type) else str(hint)
        name = str(hint) if typing.get_args(hint) else name
        name = name.replace("typing.", "").replace("|", "\\|")
        rows.append(f"| `{item.name}` | `{name}` | {default} | {meanings.get(item.name, '')} |")
    return "\n".join(rows) + "\n"


def _summary(kind: type) -> str:
    text = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:")[0]
    # A dataclass without a docstring gets its signature for one.
    return "" if text.startswith(f"{kind.__name__}(") else " ".join(text.split())


def _attributes(kind: type) -> dict[str, str]:
    """The `Attributes:` section of a docstring."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    return {
        name: " ".join(meaning.split())
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", text, re.MULTILINE)
    }


def _cli() -> str:
    from zooplatform.cli._docs import cli_markdown

    return cli_markdown()


def _tables() -> str:
    """The page about tables, from their definitions."""
    from zooplatform.schema import table_names, table_schema

    parts = [
        "# Tables\n",
        "Delta tables under `tables/`, one JSON file each in `schemas/`. Of rows with one key, the row of the latest "
        "commit counts. Times are UTC.\n",
    ]
    for name in table_names():
        schema = table_schema(name)
        key = ", ".join(f"`{column}`" for column in schema.key)
        parts.append(f"## {name}\n\n{schema.description} Key: {key}.\n")
        parts.append("| column | type | may be empty | meaning |\n| --- | --- | --- | --- |")
        for column in schema.columns:
            unit = f" Unit: {column.unit}." if column.unit and column.unit != "UTC" else ""
            empty = "yes" if column.nullable else "no"
            type_ = str(column.type).replace("element: ", "").replace(" not null", "")
            parts.append(f"| `{column.name}` | `{type_}` | {empty} | {column.description}{unit} |")
        parts.append("")
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "hooks.md": hooks_markdown,
    "cli.md": _cli,
    "tables.md": _tables,
}


def stale_pages(folder: Path) -> list[str]:
    """Pages in `folder` that are missing or differ from what the code gives."""
    return [name for name, text in _current() if _read(folder / name) != text]


def write_pages(folder: Path) -> list[str]:
    """Write the pages that differ and give their names."""
    stale = stale_pages(folder)
    for name, text in _current():
        if name in stale:
            (folder / name).write_text(text, encoding="utf-8")
    return stale


def _current() -> Iterator[tuple[str, str]]:
    for name, page in PAGES.items():
        yield name, page().rstrip("\n") + "\n"


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(prog="python -m zooplatform.docsgen", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"))
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is stale")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder; run this in the checkout")
    names = stale_pages(options.folder) if options.check else write_pages(options.folder)
    for name in names:
        state = "is stale" if options.check else "written"
        sys.stderr.write(f"{options.folder / name} {state}\n")
    return 1 if options.check and names else 0


if __name__ == "__main__":
    sys.exit(main())
