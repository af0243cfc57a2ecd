"""Descriptors: the plain data that hooks return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ArchitectureSpec",
    "BackendSpec",
    "CommandSpec",
    "GeneratorSpec",
    "PredictorSpec",
    "PropertySpec",
    "SourceSpec",
    "SqlFunction",
    "SqlView",
    "TokenizerSpec",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A named implementation behind an interface; `factory` is imported only when it is used.

    Attributes:
        name: `[a-z][a-z0-9-]*`, unique per kind.
        factory: dotted path `package.module:Class`, called without arguments.
        summary: one line for `zoo plugins`.
        requires: import names that must be there; when one is missing the error shows `install`.
        install: the pip line that brings them.
        config_schema: name of the JSON schema of its configuration, or None.
    """

    name: str
    factory: str
    summary: str
    requires: tuple[str, ...] = ()
    install: str = ""
    config_schema: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec(BackendSpec):
    """`scheme` is the text before the colon; `population` says that the factory gives a PopulationSource."""

    scheme: str
    population: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureSpec(BackendSpec):
    """`families` are glob patterns of family names; of several adapters that match, the highest `specificity` wins."""

    families: tuple[str, ...] = ()
    specificity: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec(BackendSpec):
    token_kind: Literal["float", "index"] = "float"  # noqa: S105 - not a password


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorSpec(BackendSpec):
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSpec(BackendSpec):
    tokenizer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertySpec(BackendSpec):
    """A value computed from the weights at ingest and stored as a `measured` metric named `name`.

    The factory gives a callable `compute(state: StateDict, layers: tuple[LayerSpec, ...]) -> float | None`.
    """

    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlFunction:
    """A SQL macro, applied to every connection: `name(parameters) AS sql`.

    `null_handling` says in words what a NULL argument gives; `returns` is the DuckDB type.
    """

    name: str
    parameters: tuple[str, ...]
    sql: str
    returns: str
    summary: str
    null_handling: str = "NULL in, NULL out"


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlView:
    """A view over the catalog's views: `CREATE VIEW name AS sql`."""

    name: str
    sql: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    """A click command at `target` (`package.module:command`), shown as `zoo NAME`; may not replace a built-in."""

    name: str
    target: str
    summary: str
