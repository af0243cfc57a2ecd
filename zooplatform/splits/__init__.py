"""Splits: who is in `train`, `val` and `test`, drawn from what networks are and frozen by name."""

from __future__ import annotations

from zooplatform.splits.create import create_split
from zooplatform.splits.protocols import PROTOCOLS, Protocol
from zooplatform.splits.store import (
    ROLES,
    Split,
    SplitMember,
    find_split,
    list_splits,
    split_id_of,
    split_members,
)

__all__ = [
    "PROTOCOLS",
    "ROLES",
    "Protocol",
    "Split",
    "SplitMember",
    "create_split",
    "find_split",
    "list_splits",
    "split_id_of",
    "split_members",
]
