"""Libraries that only some formats need, each behind an extra of the distribution."""

from __future__ import annotations

import importlib
from typing import Any

from zooplatform.errors import NotInstalledError

__all__ = ["need"]


def need(library: str, extra: str, what: str) -> Any:
    """Import `library`.

    Args:
        library: import name.
        extra: the extra that brings it.
        what: what needs it, for the error text.

    Raises:
        NotInstalledError: it is not there; the text holds the pip line.
    """
    try:
        return importlib.import_module(library)
    except ImportError as exc:
        raise NotInstalledError(what, [library], f"pip install 'zooplatform[{extra}]'") from exc
