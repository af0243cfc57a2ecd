"""Finds the tensors of checkpoints in a snapshot and maps them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from zooplatform.catalog.population import MappedShard, Population, map_matrix, split_vector
from zooplatform.catalog.snapshot import RETIRED
from zooplatform.catalog.writer import content_hashes
from zooplatform.dtypes import from_buffer
from zooplatform.errors import CatalogError, IntegrityError, UnknownIdError
from zooplatform.layout import VectorLayout
from zooplatform.schema import table_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import torch

    from zooplatform.catalog.commits import Snapshot
    from zooplatform.interfaces import StateDict

__all__ = ["CHECKPOINT_COLUMNS", "Description", "Reader"]

CHECKPOINT_COLUMNS = [
    "checkpoint_id",
    "model_id",
    "architecture_id",
    "shard_id",
    "shard_row",
    "state",
    "content_hash",
    "commit_id",
]

_PLACES = ["checkpoint_id", "shard_id", "shard_row"]
# Checkpoints of which the rows of `tensors` are remembered; one has some hundred.
_KEPT_CHECKPOINTS = 16
# Up to so many checkpoints their ids are kept as a dictionary, some 100 bytes each, once several are asked for.
_INDEXED_IDS = 1 << 18


class Description(NamedTuple):
    """What is needed to build a checkpoint."""

    architecture_id: str
    adapter: str | None
    config: dict[str, Any]


class Reader:
    """Reads one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._vectors: dict[str, VectorLayout] = {}
        self._rows: dict[str, int] | None = None
        self._shards: dict[str, dict[str, Any]] = {}
        self._mapped: dict[str, MappedShard] = {}
        self._tensor_rows: dict[str, list[dict[str, Any]]] = {}

    # --- index --------------------------------------------------------------------------------------------------------

    def checkpoint_row(self, checkpoint_id: str) -> dict[str, Any]:
        """Index columns of one checkpoint."""
        row = self.snapshot.row("checkpoints", checkpoint_id, CHECKPOINT_COLUMNS)
        if row is None:
            raise UnknownIdError("checkpoint", checkpoint_id)
        return row

    def vector(self, architecture_id: str) -> VectorLayout:
        """The layout of an architecture."""
        known = self._vectors.get(architecture_id)
        if known is None:
            row = self.snapshot.row("architectures", architecture_id, ["layout"])
            if row is None:
                raise UnknownIdError("architecture", architecture_id)
            known = self._vectors[architecture_id] = VectorLayout.from_rows(row["layout"])
        return known

    def description(self, checkpoint_id: str) -> Description:
        """Adapter and configuration of a checkpoint."""
        row = self.checkpoint_row(checkpoint_id)
        arch = self.snapshot.row("architectures", row["architecture_id"], ["adapter", "config"])
        model = self.snapshot.row("models", row["model_id"], ["build_config"])
        if arch is None or model is None:
            raise IntegrityError(
                f"Checkpoint {checkpoint_id}: its model or architecture is not in the catalog. Run `zoo check`."
            )
        own = model["build_config"]
        adapter, config = arch["adapter"], json.loads(arch["config"]) if arch["config"] else {}
        if own:
            given = json.loads(own)
            if given.keys() == {"adapter", "config"}:
                adapter, config = given["adapter"], given["config"]
            else:  # a configuration alone is meant for the adapter of the architecture
                config = given
        return Description(row["architecture_id"], adapter, config)

    # --- tensors ------------------------------------------------------------------------------------------------------

    def state_dict(self, checkpoint_id: str, *, verify: bool = False) -> StateDict:
        """See `Catalog.state_dict`."""
        row = self.checkpoint_row(checkpoint_id)
        if row["shard_id"] is not None:
            return self._population_state(row, verify=verify)
        if row["state"] != "stored":
            raise CatalogError(
                f"Checkpoint {checkpoint_id}: only its header was ingested, the weights are not in the catalog. Ingest "
                "its reference again without --header-only."
            )
        return self._tensor_state(row, verify=verify)

    def tensor(self, checkpoint_id: str, name: str, *, verify: bool = False) -> torch.Tensor:
        """See `Catalog.tensor`."""
        row = self.checkpoint_row(checkpoint_id)
        if row["shard_id"] is not None or row["state"] != "stored" or verify:
            state = self.state_dict(checkpoint_id, verify=verify)
            if name not in state:
                raise _no_tensor(checkpoint_id, name, state)
            return state[name]
        rows = {tensor["name"]: tensor for tensor in self.tensor_rows(row)}
        if name not in rows:
            raise _no_tensor(checkpoint_id, name, rows)
        tensor = rows[rows[name]["tied_to"] or name]
        return from_buffer(self.tensor_bytes(tensor, {}), tensor["dtype"], tuple(tensor["shape"]))

    def tensor_rows(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of `tensors` of a checkpoint, in state-dict order."""
        checkpoint = row["checkpoint_id"]
        rows = self._tensor_rows.get(checkpoint)
        if rows is None:
            rows = self.snapshot.rows_of("tensors", checkpoint, row["commit_id"])
            rows.sort(key=lambda r: r["tensor_index"])
            if len(self._tensor_rows) >= _KEPT_CHECKPOINTS:
                self._tensor_rows.pop(next(iter(self._tensor_rows)))
            self._tensor_rows[checkpoint] = rows
        return rows

    def _tensor_state(self, row: dict[str, Any], *, verify: bool) -> StateDict:
        maps: dict[str, npt.NDArray[np.uint8]] = {}
        state: StateDict = {}
        given: set[tuple[str, int]] = set()
        for tensor in self.tensor_rows(row):
            if tensor["tied_to"] is not None:
                state[tensor["name"]] = state[tensor["tied_to"]]
                continue
            data = self.tensor_bytes(tensor, maps)
            if verify and xxhash.xxh3_128_hexdigest(data.data) != tensor["tensor_hash"]:
                raise IntegrityError(
                    f"Tensor {tensor['name']!r} of checkpoint {row['checkpoint_id']} is not what was committed: its "
                    f"bytes in shard {tensor['shard_id']} changed. Restore the shard from a copy, or ingest the source "
                    "again into a new catalog."
                )
            place = (tensor["shard_id"], tensor["shard_offset"])
            if place in given:
                # Tensors that merely have equal values are stored once; writing to one must not change the other.
                data = data.copy()
            given.add(place)
            state[tensor["name"]] = from_buffer(data, tensor["dtype"], tuple(tensor["shape"]))
        return state

    def tensor_bytes(
        self, tensor: dict[str, Any], maps: dict[str, npt.NDArray[np.uint8]]
    ) -> npt.NDArray[np.uint8]:
        """The bytes of a stored tensor, mapped copy-on-write; `maps` keeps one mapping per shard."""
        shard, start = tensor["shard_id"], tensor["shard_offset"]
        if self.snapshot.mirror is not None:
            path = str(self.shard(shard)["path"])
            return self.snapshot.mirror.read(path, start, tensor["size_bytes"])
        if shard not in maps:
            info = self.shard(shard)
            maps[shard] = np.asarray(
                map_matrix(self._path(info), 0, (1, info["size_bytes"]), "uint8")
            )[0]
        return maps[shard][start : start + tensor["size_bytes"]]

    def shard(self, shard_id: str) -> dict[str, Any]:
        """The row of a shard."""
        row = self._shards.get(shard_id)
        if row is not None:
            return row
        row = self.snapshot.row("shards", shard_id, table_schema("shards").arrow.names)
        if row is None or row["kind"] == RETIRED:
            raise IntegrityError(
                f"Shard {shard_id} is not in the table of shards. Run `zoo check`."
            )
        self._shards[shard_id] = row
        return row

    def _path(self, shard: dict[str, Any]) -> Path:
        return self.snapshot.weight_file(str(shard["path"]))

    def _row(self, shard: dict[str, Any], offset: int, width: int, dtype: str) -> npt.NDArray[Any]:
        """`width` values of a shard from a byte offset on, as (1, width)."""
        if self.snapshot.mirror is not None:
            raw = self.snapshot.mirror.read(shard["path"], offset, width * np.dtype(dtype).itemsize)
            values: npt.NDArray[Any] = raw.view(dtype).reshape(1, width)
            return values
        return map_matrix(self._path(shard), offset, (1, width), dtype)

    def _population_state(self, row: dict[str, Any], *, verify: bool) -> StateDict:
        vector = self.vector(row["architecture_id"])
        info = self.shard(row["shard_id"])
        at = row["shard_row"]
        offset = info["value_offset"] + at * info["row_bytes"]
        weights = self._row(info, offset, vector.width, vector.dtype)
        aside = None
        if vector.aside_bytes:
            offset = info["aside_offset"] + at * info["aside_row_bytes"]
            aside = self._row(info, offset, vector.aside_bytes, "uint8")
        if verify:
            _verify(
                vector,
                row["architecture_id"],
                weights,
                aside,
                [row["checkpoint_id"]],
                [row["content_hash"]],
            )
        return split_vector(
            vector, np.asarray(weights)[0], None if aside is None else np.asarray(aside)[0]
        )

    # --- populations --------------------------------------------------------------------------------------------------

    def population(self, ids: Sequence[str] | None, *, verify: bool = False) -> Population:
        """See `Catalog.population`."""
        columns = [*_PLACES, "content_hash"] if verify else _PLACES
        table = self.snapshot.table("checkpoints", columns, keep=True)
        if ids is not None:
            table = table.take(self._positions(ids, table.column("checkpoint_id")))
        encoded = table.column("shard_id").combine_chunks().dictionary_encode()
        if encoded.null_count or not table.num_rows:
            raise self._no_population(table)
        if ids is None:
            # As the shards hold them, so that the matrix is a view and not a copy; most tables are so already.
            order = _as_stored(encoded, table.column("shard_row").to_numpy())
            if order is not None:
                table, encoded = table.take(order), encoded.take(order)
        infos = [self.shard(shard) for shard in encoded.dictionary.to_pylist()]
        architectures = dict.fromkeys(info["architecture_id"] for info in infos)
        if len(architectures) > 1:
            raise self._no_population(table)
        (architecture,) = architectures
        vector = self.vector(architecture)
        shards = [self._map(info, vector) for info in infos]
        population = Population(
            table.column("checkpoint_id"),
            vector,
            shards,
            encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            table.column("shard_row").to_numpy().astype(np.int64),
        )
        if verify:
            hashes = table.column("content_hash").to_pylist()
            rows = np.arange(len(population))
            aside = population.read_aside(rows) if vector.aside_bytes else None
            _verify(vector, architecture, population.read(rows), aside, population.ids, hashes)
        return population

    def _positions(self, ids: Sequence[str], stored: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """Where `ids` are in the column of all ids.

        Raises:
            UnknownIdError: one is not.
        """
        if len(stored) <= _INDEXED_IDS:
            if self._rows is None:
                self._rows = {c: row for row, c in enumerate(stored.to_pylist())}
            try:
                return np.fromiter(map(self._rows.__getitem__, ids), np.int64, len(ids))
            except KeyError as exc:
                raise UnknownIdError("checkpoint", str(exc.args[0])) from None
        at = pc.index_in(pa.array(ids, type=pa.string()), value_set=stored.combine_chunks())
        if at.null_count:
            missing = next(i for i, found in zip(ids, at.to_pylist(), strict=True) if found is None)
            raise UnknownIdError("checkpoint", missing)
        found: npt.NDArray[np.int64] = at.to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    def _no_population(self, table: pa.Table) -> CatalogError:
        """Why these checkpoints are none."""
        all_ = self.snapshot.table("checkpoints", ["checkpoint_id", "architecture_id"], keep=True)
        mine = pc.is_in(
            all_.column("checkpoint_id"), value_set=table.column("checkpoint_id").combine_chunks()
        )
        architectures = all_.filter(mine).column("architecture_id").unique().to_pylist()
        if len(architectures) != 1:
            return CatalogError(
                f"A population has one architecture, these {table.num_rows} checkpoints have {len(architectures)}"
                + (f" ({', '.join(architectures[:5])})" if architectures else "")
                + ". Add `where architecture_id = ...` to the query."
            )
        return CatalogError(
            "Some of these checkpoints are stored tensor by tensor, not in a population; read them with "
            "`Catalog.state_dict`, or add `where shard_id is not null` to the query."
        )

    def _map(self, info: dict[str, Any], vector: VectorLayout) -> MappedShard:
        """A shard, mapped once for as long as this reader lives: what was touched stays at hand."""
        shard = self._mapped.get(info["shard_id"])
        if shard is None:
            shard = MappedShard(
                self._path(info),
                info["value_offset"],
                (info["num_rows"], vector.width),
                vector.dtype,
                (info["aside_offset"], vector.aside_bytes) if vector.aside_bytes else None,
            )
            self._mapped[info["shard_id"]] = shard
        return shard


def _no_tensor(checkpoint_id: str, name: str, names: Iterable[str]) -> UnknownIdError:
    known = list(names)
    return UnknownIdError(
        "tensor",
        name,
        remedy=f"Checkpoint {checkpoint_id} has {len(known)}: {', '.join(known[:20])}"
        + (", …" if len(known) > 20 else "."),
    )


def _as_stored(
    shards: pa.DictionaryArray, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64] | None:
    """The order by shard and row; None for what is in it."""
    if len(shards.dictionary) == 1 and bool((np.diff(rows) > 0).all()):
        return None
    ranks = pc.rank(shards.dictionary).to_numpy()[shards.indices.to_numpy()]
    order = np.lexsort((rows, ranks))
    return None if np.array_equal(order, np.arange(len(order))) else order


def _verify(
    vector: VectorLayout,
    architecture_id: str,
    weights: npt.NDArray[Any],
    aside: npt.NDArray[np.uint8] | None,
    ids: Sequence[str],
    hashes: Sequence[str],
) -> None:
    for given, computed, expected in zip(
        ids,
        content_hashes(vector, architecture_id, np.asarray(weights), aside),
        hashes,
        strict=True,
    ):
        if computed != expected:
            raise IntegrityError(
                f"Checkpoint {given} is not what was committed: its bytes changed. Restore its shard from a copy; "
                "`zoo check --deep` names every shard that is damaged."
            )
