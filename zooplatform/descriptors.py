"""The kinds of descriptor that hooks return, and what a valid descriptor looks like."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from zooplatform.interfaces import (
    ArchitectureAdapter,
    ArchitectureSpec,
    BackendSpec,
    CommandSpec,
    Generator,
    GeneratorSpec,
    PopulationSource,
    Predictor,
    PredictorSpec,
    PropertySpec,
    Source,
    SourceSpec,
    SqlFunction,
    SqlView,
    Tokenizer,
    TokenizerSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KINDS", "Kind", "check_descriptor", "missing_methods"]

_BACKEND_NAME = re.compile(r"[a-z][a-z0-9-]*")
_METRIC_NAME = re.compile(r"[a-z][a-z0-9_-]*")  # a property becomes a metric, so a column too
_SQL_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_DOTTED_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_IMPORT_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Kind(NamedTuple):
    """One registration hook: `name` is the singular word that messages use.

    `interface` gives the protocol that an instance must follow, or None where any callable does.
    """

    name: str
    hook: str
    types: tuple[type, ...]
    pattern: re.Pattern[str]
    interface: Callable[[Any], type | None]


def _no_interface(spec: Any) -> None:
    return None


KINDS: tuple[Kind, ...] = (
    Kind(
        "source",
        "zoo_register_sources",
        (SourceSpec,),
        _BACKEND_NAME,
        lambda spec: PopulationSource if spec.population else Source,
    ),
    Kind(
        "architecture",
        "zoo_register_architectures",
        (ArchitectureSpec,),
        _BACKEND_NAME,
        lambda spec: ArchitectureAdapter,
    ),
    Kind(
        "tokenizer",
        "zoo_register_tokenizers",
        (TokenizerSpec,),
        _BACKEND_NAME,
        lambda spec: Tokenizer,
    ),
    Kind(
        "predictor",
        "zoo_register_predictors",
        (PredictorSpec,),
        _BACKEND_NAME,
        lambda spec: Predictor,
    ),
    Kind(
        "generator",
        "zoo_register_generators",
        (GeneratorSpec,),
        _BACKEND_NAME,
        lambda spec: Generator,
    ),
    Kind("property", "zoo_register_properties", (PropertySpec,), _METRIC_NAME, _no_interface),
    Kind("sql", "zoo_register_sql", (SqlFunction, SqlView), _SQL_NAME, _no_interface),
    Kind("command", "zoo_register_commands", (CommandSpec,), _BACKEND_NAME, _no_interface),
)


def check_descriptor(kind: Kind, descriptor: object) -> None:
    """Refuse a descriptor that could not be used later.

    Raises:
        ValueError: says which field of which descriptor is wrong and what it must be.
    """
    if not isinstance(descriptor, kind.types):
        wanted = " or ".join(item.__name__ for item in kind.types)
        found = descriptor.__name__ if isinstance(descriptor, type) else type(descriptor).__name__
        what = f"the class {found}" if isinstance(descriptor, type) else f"a {found}"
        raise ValueError(f"{kind.hook} gave {what} ({descriptor!r:.60}); it must give {wanted}")
    spec: Any = descriptor
    _match(kind, spec, "name", spec.name, kind.pattern)
    if not isinstance(spec.summary, str) or not spec.summary.strip() or "\n" in spec.summary:
        raise ValueError(_wrong(kind, spec, "summary", spec.summary, "one line of text"))
    if isinstance(descriptor, BackendSpec):
        _match(kind, spec, "factory", spec.factory, _DOTTED_PATH)
        if not isinstance(spec.requires, tuple):
            raise ValueError(_wrong(kind, spec, "requires", spec.requires, "a tuple of names"))
        for name in spec.requires:
            _match(kind, spec, "requires", name, _IMPORT_NAME)
    if isinstance(spec, SourceSpec):
        _match(kind, spec, "scheme", spec.scheme, _SCHEME)
    if isinstance(spec, CommandSpec):
        _match(kind, spec, "target", spec.target, _DOTTED_PATH)
    if isinstance(spec, SqlFunction):
        for name in spec.parameters:
            _match(kind, spec, "parameters", name, _SQL_NAME)


def missing_methods(interface: type, instance: object) -> list[str]:
    """Names of the methods of a protocol that `instance` lacks."""
    wanted = [n for n, v in vars(interface).items() if callable(v) and not n.startswith("_")]
    return [name for name in wanted if not callable(getattr(instance, name, None))]


def _match(kind: Kind, spec: Any, field: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(_wrong(kind, spec, field, value, f"of the form {pattern.pattern}"))


def _wrong(kind: Kind, spec: Any, field: str, value: object, wanted: str) -> str:
    return f"{kind.name} {spec.name!r}: {field} is {value!r}; it must be {wanted}"
