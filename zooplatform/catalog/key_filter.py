"""Bloom filters over the keys of table files: the log alone then tells which files cannot hold a key."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KeyFilter", "key_filter"]

# Three keys of a thousand that a file does not hold are looked for in it all the same.
_BITS_PER_KEY = 12
_PROBES = 7
# In fewer bits the places of a key, an arithmetic sequence, are those of another key too often.
_LEAST_BITS = 128
# A table has few files that are larger, and the filter is part of a log entry that every reader parses.
_MAX_KEYS = 65_536


def key_filter(keys: Sequence[str]) -> str | None:
    """The filter as text for a log entry; None for more keys than are worth it."""
    if not 0 < len(keys) <= _MAX_KEYS:
        return None
    digests = map(_digest, keys)
    hashes = np.fromiter(digests, dtype=np.uint64, count=len(keys))
    bits = max(_LEAST_BITS, -(-_BITS_PER_KEY * len(keys) // 8) * 8)
    first = hashes & np.uint64(0xFFFFFFFF)
    step = hashes >> np.uint64(32) | np.uint64(1)
    flags = np.zeros(bits, dtype=np.bool_)
    for probe in range(_PROBES):
        flags[(first + np.uint64(probe) * step) % np.uint64(bits)] = True
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()


def _digest(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode())


class KeyFilter:
    """Says of a key that it is surely not there, or that it may be."""

    __slots__ = ("_bits", "_text")

    def __init__(self, text: str) -> None:
        self._text: str | None = text
        self._bits = b""

    def __contains__(self, key: str) -> bool:
        if self._text is not None:  # most are never asked
            self._bits, self._text = base64.b64decode(self._text), None
        digest = _digest(key)
        first, step, bits = digest & 0xFFFFFFFF, digest >> 32 | 1, len(self._bits) * 8
        for probe in range(_PROBES):
            at = (first + probe * step) % bits
            if not self._bits[at >> 3] >> (at & 7) & 1:
                return False
        return True
