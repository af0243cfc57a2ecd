"""Names and files that the importers share: folders, metric names, hyper-parameters, hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from zooplatform.errors import SourceError

__all__ = [
    "cell",
    "digest",
    "file_digest",
    "flat",
    "folder_of",
    "inside",
    "is_accuracy",
    "metric_name",
    "seed_of",
    "walk",
]

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
_SPLIT_PREFIX = re.compile(r"^(train|training|test|val|valid|validation)[_/](.+)$")
_MEASURES = {
    "acc": "accuracy",
    "accuracy": "accuracy",
    "top1_accuracy": "accuracy",
    "acc1": "accuracy",
}


def folder_of(ref: str, scheme: str) -> Path:
    """The folder that `ref` names.

    Raises:
        SourceError: there is none.
    """
    folder = Path(ref).expanduser()
    if not ref or not folder.is_dir():
        raise SourceError(
            f"{scheme}:{ref}",
            "there is no such folder.",
            f"Give the folder of the zoo: {scheme}:FOLDER.",
        )
    return folder.resolve()


def walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder` in a stable order; linked folders are not entered (they may form loops)."""
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.is_dir():
            if not entry.is_symlink():
                yield from walk(entry)
        elif entry.is_file():
            yield entry


def inside(folder: Path, given: str) -> Path | None:
    """The path `given` in a table of the zoo, or None when it would lead out of `folder`."""
    parts = given.replace("\\", "/").split("/")
    if given.startswith("/") or ".." in parts or "\0" in given or ":" in parts[0]:
        return None
    return folder.joinpath(*parts)


def metric_name(given: str) -> tuple[str, str]:
    """Our name of a metric and its split: `test_acc` and `test/acc` are (`test_accuracy`, `test`)."""
    match = _SPLIT_PREFIX.match(given)
    if match is None:
        return _MEASURES.get(given, given), ""
    split = _SPLITS[match[1]]
    return f"{split}_{_MEASURES.get(match[2], match[2])}", split


def is_accuracy(given: str) -> bool:
    """Whether a metric is an accuracy, which zoos give as fractions or in percent."""
    return metric_name(given)[0].rsplit("_", 1)[-1] == "accuracy"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested hyper-parameters with `::` between the levels, as the flat ones of the field are written."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{key}::"))
        else:
            result[f"{prefix}{key}"] = value
    return result


def seed_of(config: Mapping[str, Any]) -> int | None:
    """The seed of the run, where one hyper-parameter says so."""
    for key in ("seed", "config.random_seed", "random_seed", "model::seed", "training::seed"):
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def cell(text: str) -> Any:
    """The value of a CSV cell: a whole number, a number, true or false, None when empty, else the text."""
    stripped = text.strip()
    if not stripped:
        return None
    for kind in (int, float):
        try:
            return kind(stripped)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(stripped.lower(), text)


def digest(value: object) -> str:
    """SHA-256 of the JSON form of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(*paths: Path) -> str:
    """SHA-256 over the SHA-256 of each file's bytes; remembered while the files do not change."""
    parts = [_one_digest(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return parts[0] if len(parts) == 1 else digest(parts)


@lru_cache(maxsize=64)
def _one_digest(
    path: str, size: int, modified: int
) -> str:  # size and time are part of the cache key
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
