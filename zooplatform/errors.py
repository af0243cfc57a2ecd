"""Every exception that the platform raises on purpose.

A foreseen failure is a `ZooError`; its text says what happened, with which object, and what to do. Anything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "ArchitectureError",
    "ArtifactError",
    "CatalogError",
    "ConfigError",
    "IntegrityError",
    "NotInstalledError",
    "PluginConflictError",
    "PluginError",
    "PluginIncompatibleError",
    "PluginLoadError",
    "QueryError",
    "SchemaError",
    "SourceError",
    "TokenizerError",
    "UnknownBackendError",
    "UnknownIdError",
    "ZooError",
]


class ZooError(Exception):
    """Base of every foreseen failure."""


class ConfigError(ZooError, ValueError):
    """A setting, recipe or argument is not usable."""


class CatalogError(ZooError):
    """A catalog cannot be opened, read or written."""


class IntegrityError(CatalogError):
    """Stored bytes are not what was committed (missing, truncated or changed)."""


class SchemaError(CatalogError, ValueError):
    """Rows do not fit a table of `schemas/`."""


class QueryError(CatalogError, ValueError):
    """User SQL was refused or failed; carries DuckDB's own message."""


class UnknownIdError(CatalogError, LookupError):
    """No model, checkpoint, zoo or artifact has this id."""

    def __init__(
        self, kind: str, given: str, *, remedy: str = "Run `zoo ls` to see what is there."
    ) -> None:
        self.kind, self.given = kind, given
        super().__init__(f"No {kind} {given!r} in this catalog. {remedy}")


class SourceError(ZooError, ValueError):
    """A reference or file is refused; nothing of it was stored.

    Args:
        subject: the file or reference.
        reason: what is wrong with it.
        remedy: what the user can do; where there is nothing better, what helps with most bad files.
    """

    def __init__(
        self,
        subject: object,
        reason: str,
        remedy: str = "Copy or download it again, or leave it out.",
    ) -> None:
        self.subject, self.reason, self.remedy = str(subject), reason, remedy
        super().__init__(f"{subject}: {reason}" + (f" {remedy}" if remedy else ""))


class ArchitectureError(ZooError, ValueError):
    """An architecture cannot be recognised, built or loaded."""


class TokenizerError(ZooError, ValueError):
    """Weights cannot be encoded or decoded."""


class ArtifactError(ZooError, ValueError):
    """A fitted method cannot be stored or loaded."""


class NotInstalledError(ZooError, ImportError):
    """An optional library is missing; the text holds the pip line."""

    def __init__(self, what: str, missing: Sequence[str], install: str) -> None:
        self.what, self.missing, self.install = what, tuple(missing), install
        super().__init__(
            f"{what} needs {', '.join(missing)}, which is not installed. Run: {install}"
        )


class PluginError(ZooError):
    """A plugin failed; names the plugin and its distribution."""


class PluginLoadError(PluginError):
    """A plugin could not be imported or registered."""


class PluginConflictError(PluginError):
    """Two distributions or plugins claim one name."""


class PluginIncompatibleError(PluginError):
    """A plugin was written for another version of the plugin interface."""


class UnknownBackendError(PluginError, LookupError):
    """No plugin provides a backend of this name."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        text = f"Unknown {kind} {name!r}. Known: {', '.join(self.known) or 'none'}."
        close = difflib.get_close_matches(name, self.known, n=1)
        if close:
            text += f" Did you mean {close[0]!r}?"
        super().__init__(f"{text} {hint}".rstrip())
