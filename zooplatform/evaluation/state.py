"""What a comparison has finished so far: one JSON line per fit, written at once, read again after an interruption."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["FORMAT", "State", "fit_key", "pack", "unpack"]

# Of the state and of the results; it is part of the key of a fit.
FORMAT = 1


def fit_key(**decides: Any) -> str:
    """A name for a fit that depends on everything that decides it, and on nothing else."""
    text = json.dumps(decides, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def pack(values: npt.NDArray[np.float64]) -> str:
    """(N,) float64 as text; `unpack` gives the same bits."""
    return base64.b64encode(zlib.compress(values.astype("<f8").tobytes(), 1)).decode()


def unpack(text: str) -> npt.NDArray[np.float64]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f8").astype(np.float64)


class State:
    """The finished fits of a comparison, by key.

    Args:
        path: file of JSON lines. A last line that an interruption cut off is dropped.

    Raises:
        ConfigError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, newline, rest = content.rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                self._done[record["key"]] = record
            except (ValueError, KeyError, TypeError) as exc:
                raise ConfigError(
                    f"{self.path}: line {number} is no finished fit ({exc}). Remove the line to fit it again, or give "
                    "another --output."
                ) from exc
        if rest:
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + len(newline))

    def find(self, key: str, tests: Iterable[str]) -> Mapping[str, Any] | None:
        """The record of a fit that was asked about all of these test zoos, or None."""
        record = self._done.get(key)
        return record if record is not None and set(tests) <= set(record["tests"]) else None

    def add(self, record: dict[str, Any]) -> None:
        """Keep a finished fit; it is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._done[record["key"]] = record
