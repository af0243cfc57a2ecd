"""Configurations of backends: by name, from a TOML file, with single values replaced.

A backend names configurations in a class attribute `CONFIGS`, a mapping of name to table.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["configuration", "written_out"]


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
    read = given is not None and given not in named and _is_file(given)
    table = written_out(backend, named, _read(Path(given)) if given and read else given)
    for setting in settings:
        _set(table, setting)
    return table


def written_out(
    backend: str,
    named: Mapping[str, Mapping[str, Any]],
    given: str | Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A configuration with nothing left to names; the caller's to change.

    Args:
        backend: name of the backend.
        named: the configurations that it gives names to.
        given: a name, a table, or a table whose key `base` is a name; None for the backend's own default.

    Raises:
        ConfigError: there is no configuration of this name.
    """
    own: Mapping[str, Any] = given if isinstance(given, Mapping) else {"base": given}
    table = deepcopy(dict(own))
    base = table.pop("base", None)
    return table if base is None else {**_named(backend, named, base), **table}


def _is_file(given: str) -> bool:
    return given.endswith(".toml") or Path(given).is_file()


def _named(backend: str, named: Mapping[str, Mapping[str, Any]], name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in named:
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
