"""What every reader refuses: shapes and names that no network has, packed by hand to break a reader."""

from __future__ import annotations

import json
import unicodedata
from math import prod
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MAX_ELEMENTS", "MAX_RANK", "check_shape", "load_json", "name_notes", "shown"]

MAX_RANK = 16
MAX_ELEMENTS = 1 << 48
_MAX_NAME = 1 << 20
_LONG_NAME = 1024
_NO_NETWORK = "No network has such tensors; get the file from its author again."


def shown(text: str, limit: int = 80) -> str:
    """`text` for an error message: quoted, control characters escaped, bounded."""
    return ascii(text) if len(text) <= limit else f"{text[:limit]!a}... ({len(text)} characters)"


def check_shape(shape: Sequence[object], name: str, subject: object) -> tuple[int, ...]:
    """`shape` as a tuple of ints.

    Raises:
        SourceError: more than 16 dimensions, a dimension that is no whole number of at least 0, or more than 2^48
            elements when dimensions of size 0 are set aside.
    """
    if len(shape) > MAX_RANK:
        raise SourceError(
            subject,
            f"Tensor {shown(name)} has {len(shape)} dimensions; at most {MAX_RANK} are taken.",
            _NO_NETWORK,
        )
    dims = tuple(dim for dim in shape if isinstance(dim, int) and not isinstance(dim, bool))
    if len(dims) != len(shape) or any(dim < 0 for dim in dims):
        raise SourceError(
            subject,
            f"Tensor {shown(name)} has a dimension that is not a whole number >= 0.",
            _NO_NETWORK,
        )
    if prod(dim for dim in dims if dim) > MAX_ELEMENTS:
        raise SourceError(
            subject,
            f"Tensor {shown(name)} has a dimension or size beyond 2^48 elements: {dims}.",
            _NO_NETWORK,
        )
    return dims


def load_json(text: bytes, subject: object, what: str) -> Any:
    """Parse JSON strictly: UTF-8, no name twice in one object, bounded nesting.

    Raises:
        SourceError: it is not such JSON; `what` names the text in the message.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise SourceError(
                subject,
                f"{what} names {shown(twice)} twice.",
                "Save the file again with unique names.",
            )
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except SourceError:
        raise
    except (ValueError, RecursionError) as exc:
        raise SourceError(
            subject, f"{what} is not valid JSON: {exc}.", "Copy or download it again."
        ) from exc


def name_notes(names: Iterable[str], subject: object) -> tuple[str, ...]:
    """Notes on odd tensor names, which are kept as they are.

    Raises:
        SourceError: a name is not valid Unicode (it could not be stored) or longer than 1 MB.
    """
    notes: list[str] = []
    odd: dict[str, list[str]] = {"control characters": [], "no character": [], "path parts": []}
    odd["more than 1,024 characters"] = []
    folded: dict[str, str] = {}
    for name in names:
        if not name.isascii():
            try:
                name.encode("utf-8")
            except UnicodeEncodeError as exc:
                raise SourceError(
                    subject, f"The tensor name {shown(name)} is not valid Unicode.", "Rename it."
                ) from exc
            form = unicodedata.normalize("NFC", name)
            if folded.setdefault(form, name) != name:
                notes.append(f"two tensor names look the same: {shown(name)}")
        if len(name) > _MAX_NAME:
            raise SourceError(
                subject,
                f"A tensor name has {len(name)} characters; at most {_MAX_NAME} are taken.",
                "Rename it.",
            )
        if not name:
            odd["no character"].append(name)
        elif not name.isprintable():
            odd["control characters"].append(name)
        if "../" in name or "..\\" in name:
            odd["path parts"].append(name)
        if len(name) > _LONG_NAME:
            odd["more than 1,024 characters"].append(name)
    for what, found in odd.items():
        if found:
            notes.append(
                f"{len(found)} tensor name(s) with {what}, kept as they are: {shown(found[0])}"
            )
    return tuple(notes[:16])
