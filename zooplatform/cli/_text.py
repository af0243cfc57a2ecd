"""Values as text: short and harmless to a terminal in tables, complete in JSON and CSV."""

from __future__ import annotations

import datetime as dt
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

__all__ = [
    "cell",
    "csv_value",
    "display_width",
    "human_bytes",
    "human_count",
    "jsonable",
    "shorten",
    "to_json",
]

# A list longer than this is shown by its ends and its length in a table, never in full.
_LIST_ENDS = 3
_LIST_SHOWN = 2 * _LIST_ENDS + 2

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def display_width(text: str) -> int:
    """Terminal columns that `text` takes: wide East Asian characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` columns, an ellipsis marking what was cut."""
    if display_width(text) <= width:
        return text
    kept, used = [], 1
    for character in text:
        used += display_width(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _harmless(text: str) -> str:
    """Control characters as escapes: a model's name must not move the cursor or set colours."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def cell(value: Any, *, null: str = "") -> str:
    """`value` in a table: one line, long lists by their ends."""
    if value is None:
        return null
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dt.datetime):
        return _instant(value, " ")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {cell(item, null='NULL')}" for key, item in value.items())
        return _harmless(f"{{{inside}}}")
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) <= _LIST_SHOWN:
            return f"[{', '.join(cell(item, null='NULL') for item in value)}]"
        first, last = (
            ", ".join(cell(item, null="NULL") for item in part)
            for part in (value[:_LIST_ENDS], value[-_LIST_ENDS:])
        )
        return f"[{first}, … {last}; {len(value):,} values]"
    return _harmless(str(value))


def _instant(value: dt.datetime, separator: str) -> str:
    """ISO text to the second where nothing is lost; UTC as Z."""
    text = value.isoformat(sep=separator)
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def jsonable(value: Any) -> Any:
    """`value` in JSON's types, nothing lost.

    Bytes become hexadecimal text, times ISO text. JSON has no NaN and no infinities: they become
    the texts "NaN", "Infinity" and "-Infinity", as protobuf writes them.
    """
    if value is None or (isinstance(value, str | bool | int) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Decimal):
        # DuckDB adds integers up to 128-bit ones, which Arrow hands over as decimals.
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dt.datetime):
        return _instant(value, "T")
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return jsonable(value.value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, Path | dt.timedelta) or value.__class__.__name__ == "UUID":
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of `value`; characters outside ASCII as they are."""
    return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, indent=indent)


def csv_value(value: Any) -> Any:
    """`value` for the csv module: NULL as nothing, lists and structs as JSON."""
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return jsonable(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    plain = jsonable(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else plain


def human_bytes(size: int) -> str:
    """`size` bytes with a decimal unit: 90,900,000 is 90.9 MB."""
    if size < 1000:
        return f"{size} B"
    power = min((len(str(size)) - 1) // 3, len(_UNITS))
    return f"{size / 1000**power:.1f} {_UNITS[power - 1]}"


def human_count(number: int, noun: str, plural: str = "") -> str:
    """`1 model`, `1,152 models`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
