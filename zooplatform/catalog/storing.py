"""Populations and single checkpoints into the catalog: recognised, written, committed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zooplatform.catalog.commits import ConflictError
from zooplatform.catalog.leases import lease
from zooplatform.catalog.tensor_writer import checkpoint_draft, follow_moved
from zooplatform.catalog.writer import check_batch, population_draft
from zooplatform.interfaces import CheckpointHeader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.catalog.commits import Tables
    from zooplatform.catalog.tensor_writer import TensorIndex
    from zooplatform.catalog.writer import Draft, ZooRecord
    from zooplatform.interfaces import Checkpoint, PopulationBatch, Progress
    from zooplatform.properties import Properties
    from zooplatform.recognise import Recogniser

__all__ = ["store_checkpoint", "store_population"]


def store_population(
    tables: Tables,
    recogniser: Recogniser,
    properties: Properties,
    *,
    batch: PopulationBatch,
    zoo: ZooRecord | None,
) -> Draft:
    """As `Catalog.write_population`."""
    check_batch(batch)
    header = CheckpointHeader(tensors=batch.layout, format="population", config=batch.config)
    described, layers = recogniser.describe(header, batch.family or None)
    if not batch.family and described.get("adapter"):
        batch = _with_family(batch, described)
    with lease(tables.path) as folder:
        base = tables.snapshot()
        draft = population_draft(folder, tables.path, base, batch, layers, zoo, properties)
        if draft.rows:
            rows = len(draft.rows.get("checkpoints", []))
            tables.commit(f"append {rows} checkpoints", draft.tables(), base=base)
    return draft


def store_checkpoint(
    tables: Tables,
    recogniser: Recogniser,
    properties: Properties,
    index: TensorIndex,
    *,
    checkpoint: Checkpoint,
    zoo: ZooRecord | None,
    header_only: bool,
    described: Mapping[str, Any] | None,
    progress: Progress | None,
) -> Draft:
    """As `Catalog.write_checkpoint`; `index` knows where the catalog's tensors are."""
    if described is None:
        described, layers = recogniser.describe(checkpoint.header)
    else:
        layers = recogniser.adapter(described["adapter"]).layers(checkpoint.header)
    with lease(tables.path) as folder:
        base = tables.snapshot()
        draft, replaces = checkpoint_draft(
            folder,
            tables.path,
            base,
            index,
            checkpoint,
            described,
            layers,
            zoo,
            header_only=header_only,
            progress=progress,
            properties=properties,
        )
        message = f"ingest {checkpoint.info.source}"
        while draft.rows:
            try:
                tables.commit(message, draft.tables(), base=base, replaces=replaces)
                break
            except ConflictError:
                follow_moved(draft, tables.snapshot(), index)
    return draft


def _with_family(batch: PopulationBatch, described: Mapping[str, Any]) -> PopulationBatch:
    return replace(
        batch,
        family=str(described["adapter"]),
        name=batch.name or str(described.get("name") or ""),
        config=batch.config or described.get("config") or {},
    )
