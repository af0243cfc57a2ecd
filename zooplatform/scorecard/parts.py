"""Finished parts of a report card: kept in memory, and in a file where one is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zooplatform import __version__
from zooplatform.evaluation.state import State, fit_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Parts"]


class Parts:
    """Finds and keeps records by everything that decides them.

    Args:
        path: file of JSON lines, or None for memory alone.
        common: what decides every part.

    Attributes:
        reused: records of an earlier call that were found.
    """

    def __init__(self, path: Path | None, common: Mapping[str, Any]) -> None:
        self._state = None if path is None else State(path)
        self._common = dict(common)
        self.reused = 0

    def find(self, part: str, label: str, decides: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The record of a part, or None."""
        if self._state is None:
            return None
        found = self._state.find(self._key(part, label, decides), [part])
        self.reused += found is not None
        return found

    def keep(
        self, part: str, label: str, decides: Mapping[str, Any], record: Mapping[str, Any]
    ) -> None:
        """It is on the disk when this returns, where there is a file."""
        if self._state is not None:
            key = self._key(part, label, decides)
            self._state.add({"key": key, "method": label, "tests": [part], **record})

    def _key(self, part: str, label: str, decides: Mapping[str, Any]) -> str:
        return fit_key(
            version=__version__, part=part, label=label, decides=dict(decides), **self._common
        )
