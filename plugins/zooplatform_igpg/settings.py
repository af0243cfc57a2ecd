"""Settings as they are given, checked: what the configurations of the tokenizer and of the generator share."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["at_least", "checked", "is_whole", "on_base"]


def on_base(
    given: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]], default: str
) -> dict[str, Any]:
    """What is given, over the configuration that its `base` names; `default` is the base of nothing."""
    table = dict(given)
    base = table.pop("base", None if table else default)
    if base is None:
        return table
    if base not in configs:
        raise ConfigError(f"Unknown base {base!r}. Known: {', '.join(configs)}.")
    return {**configs[base], **table}


def checked(
    name: str,
    value: Any,
    defaults: Mapping[str, Any],
    choices: Mapping[str, tuple[str, ...]],
    others: Iterable[str] = (),
) -> Any:
    """`value`, of the type of the default of this name, and one of its choices if it has such.

    Raises:
        ConfigError: it is not; or there is no such name, and the text lists these and `others`.
    """
    if name not in defaults:
        close = difflib.get_close_matches(name, list(defaults), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(sorted([*defaults, *others]))
        raise ConfigError(f"Unknown key {name!r}. Known: {known}.{hint}")
    if name in choices and value not in choices[name]:
        raise ConfigError(f"{name} is {value!r}; use one of {', '.join(choices[name])}.")
    default = defaults[name]
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, wanted = is_whole(value), "a whole number, not negative"
    elif isinstance(default, float):
        fits = is_whole(value) or (isinstance(value, float) and math.isfinite(value) and value >= 0)
        wanted = "a number, not negative"
        value = float(value) if fits else value
    elif isinstance(default, tuple):
        fits = isinstance(value, list | tuple) and all(type(item) is int for item in value)
        wanted = "a list of whole numbers"
        value = tuple(value) if fits else value
    else:
        fits, wanted = isinstance(value, str), "a word"
    if not fits:
        raise ConfigError(f"{name} is {value!r}; use {wanted}.")
    return value


def is_whole(value: object) -> bool:
    """Whether it is a whole number, and not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def at_least(name: str, value: int, least: int) -> None:
    """Raises ConfigError when the value of a name is less."""
    if value < least:
        raise ConfigError(f"{name} is {value}; use a whole number from {least} on.")
