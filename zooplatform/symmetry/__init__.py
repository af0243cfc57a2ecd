"""Symmetries of networks: hidden units in another order compute the same function."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zooplatform.symmetry.groups import HiddenGroup, hidden_groups, left_alone, permute
    from zooplatform.symmetry.matching import leave_one_out, match, nearest

__all__ = [
    "HiddenGroup",
    "hidden_groups",
    "leave_one_out",
    "left_alone",
    "match",
    "nearest",
    "permute",
]

_HOMES = {
    "HiddenGroup": "zooplatform.symmetry.groups",
    "hidden_groups": "zooplatform.symmetry.groups",
    "leave_one_out": "zooplatform.symmetry.matching",
    "left_alone": "zooplatform.symmetry.groups",
    "match": "zooplatform.symmetry.matching",
    "nearest": "zooplatform.symmetry.matching",
    "permute": "zooplatform.symmetry.groups",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zooplatform.symmetry' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
