"""The beginning of a plugin: a project folder that works, with tests that pass.

The files come from `zooplatform/templates`: `common/` for every kind, and a folder per kind with the
module of the backend, the descriptor and the tests. `$name` and its like are filled in.
"""

from __future__ import annotations

import re
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from zooplatform.errors import ConfigError, PluginConflictError
from zooplatform.hookspecs import ZOO_API

if TYPE_CHECKING:
    from collections.abc import Collection
    from importlib.resources.abc import Traversable
    from pathlib import Path

__all__ = ["PROJECT_KINDS", "write_project"]

PROJECT_KINDS = (
    "source",
    "architecture",
    "tokenizer",
    "predictor",
    "generator",
    "property",
    "sql",
    "command",
)

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write_project(
    kind: str, name: str, folder: Path, *, taken: Collection[str] = ()
) -> tuple[Path, ...]:
    """Write the project of a new plugin.

    Args:
        kind: one of `PROJECT_KINDS`.
        name: of the plugin and of what it provides: lower-case words joined by hyphens.
        folder: made by this call.
        taken: names of installed plugins.

    Returns:
        The files, in the order of their paths.

    Raises:
        ConfigError: the name or the kind is not usable, or the folder exists.
        PluginConflictError: a plugin of this name is installed.
    """
    if kind not in PROJECT_KINDS:
        raise ConfigError(f"There is no plugin kind {kind!r}. Known: {', '.join(PROJECT_KINDS)}.")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a plugin. Write lower-case words joined by hyphens: my-{kind}."
        )
    if name in taken:
        raise PluginConflictError(
            f"A plugin {name!r} is installed; two cannot share a name. Take another one."
        )
    if folder.exists():
        raise ConfigError(f"{folder} exists already. Take another name or remove it.")
    module = f"zooplatform_{name.replace('-', '_')}"
    values = {
        "api": ZOO_API,
        "kind": kind,
        "name": name,
        "distribution": f"zooplatform-{name}",
        "module": module,
        "identifier": name.replace("-", "_"),
        "Class": "".join(word.capitalize() for word in name.split("-")),
    }
    places = {
        "pyproject.toml": folder / "pyproject.toml",
        "README.md": folder / "README.md",
        "conftest.py": folder / "tests" / "conftest.py",
        "hooks.py": folder / module / "__init__.py",
        "backend.py": folder / module / f"{kind}.py",
        "test_plugin.py": folder / "tests" / f"test_{module}.py",
    }
    templates = files("zooplatform") / "templates"
    written = []
    for source in (*_files(templates / "common"), *_files(templates / kind)):
        place = places[source.name.removesuffix(".txt")]
        place.parent.mkdir(parents=True, exist_ok=True)
        text = Template(source.read_text(encoding="utf-8")).substitute(values)
        place.write_text(text, encoding="utf-8")
        written.append(place)
    return tuple(sorted(written))


def _files(folder: Traversable) -> list[Traversable]:
    return sorted((item for item in folder.iterdir() if item.is_file()), key=lambda f: f.name)
