"""Configurations of backends: by name, from a TOML file, with single values replaced.

A backend names configurations in a class attribute `CONFIGS`, a mapping of name to table.
"""

from __future__ import annotations

import difflib
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["configuration"]


def configuration(
    backend: str, instance: object, given: str | None = None, settings: Iterable[str] = ()
) -> dict[str, Any]:
    """What `fit` gets.

    Args:
        backend: name of the backend.
        instance: of it; its `CONFIGS` are the names that there are.
        given: one of the names, or a TOML file whose key `base` may be one; empty by default, which is the backend's
            own default.
        settings: `KEY=VALUE`, replacing values; dots lead into tables, values are written as in TOML.

    Raises:
        ConfigError: there is no configuration of this name, the file cannot be read, or a setting is malformed.
    """
    named: Mapping[str, Mapping[str, Any]] = getattr(instance, "CONFIGS", {})
    table: dict[str, Any] = {}
    if given is not None and given not in named and _is_file(given):
        table = _read(Path(given))
        base = table.pop("base", None)
        if base is not None:
            table = {**_named(backend, named, base), **table}
    elif given is not None:
        table = _named(backend, named, given)
    for setting in settings:
        _set(table, setting)
    return table


def _is_file(given: str) -> bool:
    return given.endswith(".toml") or Path(given).is_file()


def _named(backend: str, named: Mapping[str, Mapping[str, Any]], name: Any) -> dict[str, Any]:
    if name not in named:
        close = difflib.get_close_matches(str(name), named, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"Backend {backend!r} has no configuration {name!r}. Known: {', '.join(named) or 'none'}; or give a TOML "
            f"file.{hint}"
        )
    return deepcopy(dict(named[name]))  # what is set must not reach the backend's own tables


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"{path}: the configuration cannot be read ({exc.strerror}). Give a TOML file."
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not TOML: {exc}.") from exc


def _set(table: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {setting!r}: write KEY=VALUE, for example --set epochs=20.")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {setting!r}: {parent!r} is a value, not a table.")
    try:
        table[leaf] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[leaf] = text  # a word needs no quotes
