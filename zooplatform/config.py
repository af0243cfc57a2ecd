"""Settings: what an argument says beats the environment, which beats `zooplatform.toml`.

A value that is falsy but given (an empty allow-list, `0`) counts as given.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zooplatform.errors import ConfigError

__all__ = ["CONFIG_FILE", "Settings", "load_settings", "parse_bool"]

CONFIG_FILE = "zooplatform.toml"

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting; the environment variable of `x` is `ZOO_X`.

    Attributes:
        catalog: the catalog that commands use when none is named.
        data_folder: where relative paths of image sources start; empty is the working directory.
        plugins: names of the only plugins to load; None loads all, empty loads none.
        disable_plugins: names of plugins that are not imported.
        strict_plugins: a plugin that does not load is an error instead of a status.
        trace_plugins: write every step of loading and every hook call to stderr.
        debug: show the traceback of foreseen failures too.
    """

    catalog: str = "zoo"
    data_folder: str = ""
    plugins: tuple[str, ...] | None = None
    disable_plugins: tuple[str, ...] = ()
    strict_plugins: bool = False
    trace_plugins: bool = False
    debug: bool = False


_NAMES = tuple(item.name for item in fields(Settings))
_LISTS = frozenset({"plugins", "disable_plugins"})


def load_settings(*, environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
    """Read the settings that hold now.

    Args:
        environ: the environment, `os.environ` by default. `ZOO_CONFIG` in it names the file to
            read in place of `zooplatform.toml` in the working directory.
        arguments: settings by name; None means "not given".

    Raises:
        ConfigError: a file that is not TOML, an unknown name or a value of the wrong type; the
            text names where it stands.
    """
    environ = os.environ if environ is None else environ
    values = _from_file(environ.get("ZOO_CONFIG"))
    for name in _NAMES:
        variable = f"ZOO_{name.upper()}"
        if variable in environ:
            values[name] = _from_text(name, environ[variable], where=variable)
    for name, value in arguments.items():
        if value is not None:
            values[name] = _checked(name, value, where=f"argument {name!r}")
    return Settings(**values)


def parse_bool(text: str, *, where: str) -> bool:
    """`1 true yes on` or `0 false no off` (or nothing), in any case; all else is refused."""
    value = text.strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ConfigError(f"{where} is {text!r}, which is neither true nor false. Write 1 or 0.")


def _from_file(given: str | None) -> dict[str, Any]:
    path = Path(given or CONFIG_FILE)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not given:
            return {}
        raise ConfigError(
            f"{path}: there is no such file. ZOO_CONFIG names it; correct or unset it."
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}.") from error
    return {name: _checked(name, value, where=f"{path}: {name}") for name, value in content.items()}


def _from_text(name: str, text: str, *, where: str) -> Any:
    if name in _LISTS:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(getattr(Settings(), name), bool):
        return parse_bool(text, where=where)
    return text or getattr(Settings(), name)


def _checked(name: str, value: Any, *, where: str) -> Any:
    """`value` as the type of setting `name`; TOML lists become tuples."""
    if name not in _NAMES:
        close = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{where}: unknown setting. Known: {', '.join(_NAMES)}.{hint}")
    if name in _LISTS:
        # A bare string is iterable too; taking it would allow the plugins "i", "g", "p", "g".
        items = None if isinstance(value, str | bytes | Mapping) else _tuple(value)
        if items is None or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"{where} is {value!r}; it must be a list of plugin names.")
        return items
    kind = type(getattr(Settings(), name))
    if not isinstance(value, kind):
        raise ConfigError(f"{where} is {value!r}; it must be of type {kind.__name__}.")
    return value


def _tuple(value: Any) -> tuple[Any, ...] | None:
    try:
        return tuple(value)
    except TypeError:
        return None
