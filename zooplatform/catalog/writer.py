"""Writes checkpoints: many of one architecture into population shards, single ones tensor by tensor."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from zooplatform.catalog.files import new_id
from zooplatform.catalog.population import split_vector
from zooplatform.catalog.shards import MAX_POPULATION_BYTES, SealedShard, seal_population
from zooplatform.catalog.stats import population_stats
from zooplatform.errors import SchemaError
from zooplatform.layout import VectorLayout, architecture_id, checkpoint_id, model_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from zooplatform.catalog.commits import Snapshot
    from zooplatform.interfaces import LayerSpec, MetricRecord, ModelInfo, PopulationBatch
    from zooplatform.properties import Properties

__all__ = ["Draft", "ZooRecord", "check_batch", "population_draft"]

STATS = ("mean", "std", "min", "max", "l1", "l2", "q05", "q25", "q50", "q75", "q95")
COUNTS = ("num_zero", "num_nan", "num_inf")


@dataclass(frozen=True, slots=True)
class ZooRecord:
    """The population that models are put in."""

    zoo_id: str
    source: str | None = None
    license: str | None = None
    citation: str | None = None


@dataclass
class Draft:
    """Rows of a commit in the making, by table; `checkpoint_ids` are all that it is about, stored before or now."""

    rows: dict[str, list[Any]] = field(default_factory=dict)
    checkpoint_ids: list[str] = field(default_factory=list)
    model_ids: list[str] = field(default_factory=list)
    known: int = 0
    bytes_stored: int = 0
    edges: set[tuple[str, str, str]] = field(default_factory=set)

    def add(self, table: str, *rows: dict[str, Any]) -> None:
        self.rows.setdefault(table, []).extend(rows)

    def tables(self) -> dict[str, Any]:
        return {
            name: rows[0] if isinstance(rows[0], pa.Table) else rows
            for name, rows in self.rows.items()
            if rows
        }


def existing(snapshot: Snapshot, table: str, column: str, values: Sequence[str]) -> set[str]:
    """Which of `values` the column of a table holds already."""
    stored = snapshot.table(table, [column], keep=True).column(column)
    asked = pa.array(values, type=pa.string())
    return set(asked.filter(pc.is_in(asked, value_set=stored.combine_chunks())).to_pylist())


def describe_zoo(draft: Draft, snapshot: Snapshot, zoo: ZooRecord | None) -> None:
    """Add the zoo's row unless the catalog has it."""
    if zoo is None or existing(snapshot, "zoos", "zoo_id", [zoo.zoo_id]):
        return
    draft.add(
        "zoos",
        {
            "zoo_id": zoo.zoo_id,
            "name": zoo.zoo_id,
            "source": zoo.source,
            "license": zoo.license,
            "citation": zoo.citation,
            "created_at": datetime.now(UTC),
        },
    )


def describe_architecture(
    draft: Draft,
    snapshot: Snapshot,
    vector: VectorLayout,
    *,
    adapter: str | None,
    family: str | None,
    name: str | None,
    config: Mapping[str, Any],
) -> tuple[str, str | None]:
    """Add the architecture's row unless the catalog has it.

    Returns the architecture id and, as JSON, `adapter` and `config` of this network where they are not what the
    catalog holds for the layout. Networks of one layout may differ in what leaves no trace there, an activation for
    example: one of which nothing is known must not be built as another.
    """
    arch = architecture_id(vector.layout)
    stored = snapshot.table("architectures", ["architecture_id", "adapter", "config"], keep=True)
    found = stored.filter(pc.equal(stored.column("architecture_id"), arch)).to_pylist()
    if found:
        base = json.loads(found[-1]["config"]) if found[-1]["config"] else {}
        if (found[-1]["adapter"], base) == (adapter, _plain(config)):
            return arch, None
        return arch, to_json({"adapter": adapter, "config": config})
    draft.add(
        "architectures",
        {
            "architecture_id": arch,
            "adapter": adapter,
            "family": family,
            "name": name,
            "config": to_json(config) if config else None,
            "num_parameters": vector.num_parameters,
            "num_tensors": len(vector.fields),
            "dtype": vector.dtype,
            "layout": vector.rows(),
        },
    )
    return arch, None


def to_json(value: Any) -> str:
    """JSON with sorted keys; what JSON does not know becomes text."""
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return json.loads(to_json(value))


def model_row(
    info: ModelInfo, model: str, architecture: str, zoo: ZooRecord | None, build_config: str | None
) -> dict[str, Any]:
    """The row of `models`."""
    return {
        "model_id": model,
        "zoo_id": zoo.zoo_id if zoo else None,
        "architecture_id": architecture,
        "name": info.name,
        "source": info.source,
        "source_key": info.key,
        "revision": info.revision or None,
        "license": info.license,
        "base_model": info.base_model,
        "seed": info.seed,
        "config": to_json(info.config) if info.config else None,
        "build_config": build_config,
        "metadata": to_json(info.metadata) if info.metadata else None,
        "created_at": datetime.now(UTC),
    }


def content_hashes(
    vector: VectorLayout, arch: str, weights: npt.NDArray[Any], aside: npt.NDArray[np.uint8] | None
) -> list[str]:
    """The content hash of every row: a hash over the hashes of its tensors in layout order.

    The same network has the same hash whether it is stored in a population or tensor by tensor.
    """
    base = xxhash.xxh3_128(arch.encode())
    raw = weights.view(np.uint8).reshape(len(weights), -1)
    spans = [
        (
            aside if f.aside else raw,
            f.offset * (1 if f.aside else weights.itemsize),
            f.spec.size_bytes,
        )
        for f in vector.fields
    ]
    result = []
    for index in range(len(raw)):
        hasher = base.copy()
        for source, start, size in spans:
            assert source is not None
            hasher.update(xxhash.xxh3_128_digest(source[index, start : start + size].data))
        result.append(hasher.hexdigest())
    return result


def population_draft(
    folder: Path,
    catalog: Path,
    snapshot: Snapshot,
    batch: PopulationBatch,
    layers: Sequence[LayerSpec],
    zoo: ZooRecord | None,
    properties: Properties | None = None,
) -> Draft:
    """Seal the weights of a batch and make the rows of its commit; rows that are stored already are left out.

    Raises:
        SchemaError: two rows are one checkpoint.
    """
    vector = VectorLayout(batch.layout, layers)
    draft = Draft()
    models = [model_id(r.model.key, r.model.revision) for r in batch.rows]
    ids = [checkpoint_id(m, r.step, r.epoch) for m, r in zip(models, batch.rows, strict=True)]
    if len(set(ids)) != len(ids):
        twice = next(i for i, c in enumerate(ids) if c in ids[:i])
        raise SchemaError(
            f"Two rows of the batch are the same checkpoint (model {batch.rows[twice].model.key!r}, "
            f"step {batch.rows[twice].step}). Give them different steps or keys."
        )
    stored = existing(snapshot, "checkpoints", "checkpoint_id", ids)
    draft.checkpoint_ids, draft.model_ids, draft.known = (
        ids,
        list(dict.fromkeys(models)),
        len(stored),
    )
    fresh = [i for i, c in enumerate(ids) if c not in stored]
    if not fresh:
        return draft
    describe_zoo(draft, snapshot, zoo)
    arch, build_config = describe_architecture(
        draft,
        snapshot,
        vector,
        adapter=batch.family or None,
        family=batch.family or None,
        name=batch.name or None,
        config=batch.config,
    )
    _add_models(draft, snapshot, batch, models, fresh, arch, zoo, build_config)
    everything = len(fresh) == len(ids)
    weights = batch.weights if everything else batch.weights[fresh]
    aside = batch.aside if everything or batch.aside is None else batch.aside[fresh]
    hashes = content_hashes(vector, arch, weights, aside)
    per_shard = max(1, MAX_POPULATION_BYTES // max(1, vector.size_bytes))
    with _discarded_on_failure(draft, catalog):
        for start in range(0, len(fresh), per_shard):
            part = slice(start, min(start + per_shard, len(fresh)))
            shard_id = new_id()
            sealed = seal_population(
                folder / f"{shard_id}.arrow",
                catalog / "weights" / "population" / arch / f"{shard_id}.arrow",
                [ids[i] for i in fresh[part]],
                weights[part],
                None if aside is None else aside[part],
            )
            draft.bytes_stored += sealed.size_bytes
            draft.add(
                "shards", shard_row(catalog, shard_id, "population", sealed, arch, vector.dtype)
            )
            for row, i in enumerate(fresh[part]):
                record = batch.rows[i]
                draft.add(
                    "checkpoints",
                    {
                        "checkpoint_id": ids[i],
                        "model_id": models[i],
                        "architecture_id": arch,
                        "step": record.step,
                        "epoch": record.epoch,
                        "dtype": vector.dtype,
                        "num_parameters": vector.num_parameters,
                        "size_bytes": vector.size_bytes,
                        "content_hash": hashes[start + row],
                        "shard_id": shard_id,
                        "shard_row": row,
                        "state": "stored",
                    },
                )
        for row, i in enumerate(fresh):
            measured: Sequence[MetricRecord] = ()
            if properties:
                state = split_vector(
                    vector, np.array(weights[row]), None if aside is None else aside[row]
                )
                measured = properties.measure(state, layers)
            add_metrics(draft, ids[i], (*measured, *batch.rows[i].metrics))
            for edge in (*batch.rows[i].lineage, *batch.rows[i].model.lineage):
                add_edge(draft, models[i], edge.parent, edge.relation, edge.detail)
        draft.rows["tensor_stats"] = [stats_table(vector, [ids[i] for i in fresh], weights, aside)]
    return draft


@contextmanager
def _discarded_on_failure(draft: Draft, catalog: Path) -> Iterator[None]:
    """Remove the weight files of a draft that is given up before anything refers to them."""
    try:
        yield
    except BaseException:
        for row in draft.rows.get("shards", []):
            (catalog / row["path"]).unlink(missing_ok=True)
        raise


def check_batch(batch: PopulationBatch) -> None:
    """Compare shapes and dtypes of a batch with its layout.

    Raises:
        SchemaError: they do not fit.
    """
    vector = VectorLayout(batch.layout)
    rows = len(batch.rows)
    if batch.weights.shape != (rows, vector.width) or str(batch.weights.dtype) != vector.dtype:
        raise SchemaError(
            f"Weights of {batch.weights.shape} {batch.weights.dtype} do not fit {rows} rows of a layout with "
            f"{vector.width} {vector.dtype} values."
        )
    if (batch.aside is None) != (vector.aside_bytes == 0) or (
        batch.aside is not None and batch.aside.shape != (rows, vector.aside_bytes)
    ):
        raise SchemaError(
            f"The layout keeps {vector.aside_bytes} bytes per network aside; the batch brings others."
        )
    names = [t.name for t in batch.layout]
    if len(set(names)) != len(names):
        raise SchemaError("Two tensors of the layout have the same name.")


def _add_models(
    draft: Draft,
    snapshot: Snapshot,
    batch: PopulationBatch,
    models: Sequence[str],
    fresh: Sequence[int],
    arch: str,
    zoo: ZooRecord | None,
    build_config: str | None,
) -> None:
    seen = existing(snapshot, "models", "model_id", [models[i] for i in fresh])
    for i in fresh:
        if models[i] not in seen:
            seen.add(models[i])
            draft.add("models", model_row(batch.rows[i].model, models[i], arch, zoo, build_config))


def add_metrics(draft: Draft, checkpoint: str, metrics: Sequence[Any]) -> None:
    """Add metric rows; of equal keys the last given counts."""
    latest = {(m.dataset, m.split, m.name, m.origin): m for m in metrics}
    draft.add(
        "metrics",
        *(
            {
                "checkpoint_id": checkpoint,
                "dataset": m.dataset,
                "split": m.split,
                "name": m.name,
                "value": m.value,
                "origin": m.origin,
            }
            for m in latest.values()
        ),
    )


def add_edge(
    draft: Draft, child: str, parent: str, relation: str, detail: Mapping[str, Any]
) -> None:
    """Add a lineage row unless the draft has this edge."""
    if (child, parent, relation) not in draft.edges:
        draft.edges.add((child, parent, relation))
        row = {"child_id": child, "parent_id": parent, "relation": relation}
        draft.add("lineage", row | {"detail": to_json(detail) if detail else None})


def shard_row(
    catalog: Path,
    shard_id: str,
    kind: str,
    sealed: SealedShard,
    arch: str | None,
    dtype: str | None,
) -> dict[str, Any]:
    """The row of `shards`."""
    return {
        "shard_id": shard_id,
        "kind": kind,
        "architecture_id": arch,
        "dtype": dtype,
        "path": sealed.path.relative_to(catalog).as_posix(),
        "num_rows": sealed.num_rows,
        "value_offset": sealed.value_offset,
        "row_bytes": sealed.row_bytes,
        "aside_offset": sealed.aside_offset,
        "aside_row_bytes": sealed.aside_row_bytes,
        "size_bytes": sealed.size_bytes,
        "checksum": sealed.checksum,
    }


def stats_table(
    vector: VectorLayout,
    ids: Sequence[str],
    weights: npt.NDArray[Any],
    aside: npt.NDArray[np.uint8] | None,
) -> pa.Table:
    """Rows of `tensor_stats` for N networks, tensor by tensor."""
    count = len(ids)
    parts = []
    id_column = pa.array(ids, type=pa.string())
    for index, f in enumerate(vector.fields):
        if f.aside:
            assert aside is not None
            raw = np.ascontiguousarray(aside[:, f.offset : f.offset + f.spec.size_bytes])
            if f.spec.dtype not in (
                "int64",
                "int32",
                "float64",
                "float32",
                "float16",
                "uint8",
                "bool",
            ):
                continue
            columns = raw.view(np.dtype(f.spec.dtype))
        else:
            columns = weights[:, f.offset : f.offset + f.spec.num_elements]
        stats = population_stats(columns)
        parts.append(
            pa.table(
                {
                    "checkpoint_id": id_column,
                    "tensor_index": pa.array(np.full(count, index, dtype=np.int64)),
                    "name": pa.array([f.spec.name] * count, type=pa.string()),
                    **{name: pa.array(stats[name], from_pandas=True) for name in STATS},
                    **{name: pa.array(stats[name]) for name in COUNTS},
                }
            )
        )
    return pa.concat_tables(parts)
