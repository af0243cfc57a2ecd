"""Whole ids from the beginnings that people type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from zooplatform.catalog.reader import CHECKPOINT_COLUMNS
from zooplatform.errors import UnknownIdError

if TYPE_CHECKING:
    from zooplatform.catalog.commits import Snapshot

__all__ = ["resolve_id"]

_ID_COLUMNS = {
    "zoo": ("zoos", "zoo_id"),
    "model": ("models", "model_id"),
    "checkpoint": ("checkpoints", "checkpoint_id"),
    "artifact": ("artifacts", "artifact_id"),
}


def resolve_id(snapshot: Snapshot, kind: str, given: str) -> str:
    """As `Catalog.resolve`, in one snapshot."""
    table, column = _ID_COLUMNS[kind]
    # The columns that reading a checkpoint needs too, so that its row is looked for once.
    columns = CHECKPOINT_COLUMNS if table == "checkpoints" else [column]
    if snapshot.row(table, given, columns) is not None:
        return given
    ids = snapshot.table(table, [column], keep=True).column(column).combine_chunks()
    found = sorted(set(ids.filter(pc.starts_with(ids, given)).to_pylist())) if given else []
    if len(found) > 1:
        raise UnknownIdError(
            kind,
            given,
            remedy=f"{len(found)} ids begin so: {', '.join(found[:4])}… Give more of it.",
        )
    if not found:
        raise UnknownIdError(kind, given)
    return str(found[0])
