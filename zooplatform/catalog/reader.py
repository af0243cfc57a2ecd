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
from zooplatform.catalog.writer import content_hashes
from zooplatform.dtypes import from_buffer
from zooplatform.errors import CatalogError, IntegrityError, UnknownIdError
from zooplatform.layout import VectorLayout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from zooplatform.catalog.commits import Snapshot
    from zooplatform.interfaces import StateDict

__all__ = ["Description", "Reader"]

_INDEX = [
    "checkpoint_id",
    "model_id",
    "architecture_id",
    "shard_id",
    "shard_row",
    "state",
    "content_hash",
    "commit_id",
]


class Description(NamedTuple):
    """What is needed to build a checkpoint."""

    architecture_id: str
    adapter: str | None
    config: dict[str, Any]


class Reader:
    """Reads one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    # --- index --------------------------------------------------------------------------------------------------------

    def _checkpoints(self) -> pa.Table:
        return self.snapshot.table("checkpoints", _INDEX, keep=True)

    def checkpoint_row(self, checkpoint_id: str) -> dict[str, Any]:
        """Index columns of one checkpoint."""
        table = self._checkpoints()
        at = pc.index(table.column("checkpoint_id"), checkpoint_id).as_py()
        if at < 0:
            raise UnknownIdError("checkpoint", checkpoint_id)
        return dict(table.slice(at, 1).to_pylist()[0])

    def vector(self, architecture_id: str) -> VectorLayout:
        """The layout of an architecture."""
        table = self.snapshot.table("architectures", ["architecture_id", "layout"], keep=True)
        at = pc.index(table.column("architecture_id"), architecture_id).as_py()
        if at < 0:
            raise UnknownIdError("architecture", architecture_id)
        return VectorLayout.from_rows(table.column("layout")[at].as_py())

    def description(self, checkpoint_id: str) -> Description:
        """Adapter and configuration of a checkpoint."""
        row = self.checkpoint_row(checkpoint_id)
        archs = self.snapshot.table(
            "architectures", ["architecture_id", "adapter", "config"], keep=True
        )
        arch = archs.slice(
            pc.index(archs.column("architecture_id"), row["architecture_id"]).as_py(), 1
        ).to_pylist()[0]
        models = self.snapshot.table("models", ["model_id", "build_config"], keep=True)
        own = models.column("build_config")[
            pc.index(models.column("model_id"), row["model_id"]).as_py()
        ].as_py()
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

    def tensor_rows(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of `tensors` of a checkpoint, in state-dict order."""
        rows = self.snapshot.rows_of("tensors", row["checkpoint_id"], row["commit_id"])
        return sorted(rows, key=lambda r: r["tensor_index"])

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
        rows = self.snapshot.shard_rows
        at = pc.index(rows.column("shard_id"), shard_id).as_py()
        if at < 0:
            raise IntegrityError(
                f"Shard {shard_id} is not in the table of shards. Run `zoo check`."
            )
        return dict(rows.slice(at, 1).to_pylist()[0])

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
        table = self._checkpoints()
        if ids is not None:
            at = pc.index_in(
                pa.array(ids, type=pa.string()),
                value_set=table.column("checkpoint_id").combine_chunks(),
            )
            if at.null_count:
                missing = next(
                    i for i, found in zip(ids, at.to_pylist(), strict=True) if found is None
                )
                raise UnknownIdError("checkpoint", missing)
            table = table.take(at)
        else:
            # As the shards hold them, so that the matrix is a view and not a copy.
            table = table.sort_by([("shard_id", "ascending"), ("shard_row", "ascending")])
        architectures = table.column("architecture_id").unique().to_pylist()
        if len(architectures) != 1:
            raise CatalogError(
                f"A population has one architecture, these {table.num_rows} checkpoints have {len(architectures)}"
                + (f" ({', '.join(architectures[:5])})" if architectures else "")
                + ". Add `where architecture_id = ...` to the query."
            )
        if table.column("shard_id").null_count:
            raise CatalogError(
                "Some of these checkpoints are stored tensor by tensor, not in a population; read them with "
                "`Catalog.state_dict`, or add `where shard_id is not null` to the query."
            )
        vector = self.vector(architectures[0])
        encoded = table.column("shard_id").combine_chunks().dictionary_encode()
        shards = [self._map(self.shard(s), vector) for s in encoded.dictionary.to_pylist()]
        population = Population(
            table.column("checkpoint_id").to_pylist(),
            vector,
            shards,
            encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            table.column("shard_row").to_numpy().astype(np.int64),
        )
        if verify:
            hashes = table.column("content_hash").to_pylist()
            rows = np.arange(len(population))
            aside = population.read_aside(rows) if vector.aside_bytes else None
            _verify(vector, architectures[0], population.read(rows), aside, population.ids, hashes)
        return population

    def _map(self, info: dict[str, Any], vector: VectorLayout) -> MappedShard:
        path, rows = self._path(info), info["num_rows"]
        weights = map_matrix(path, info["value_offset"], (rows, vector.width), vector.dtype)
        aside = None
        if vector.aside_bytes:
            aside = map_matrix(path, info["aside_offset"], (rows, vector.aside_bytes), "uint8")
        return MappedShard(info["shard_id"], weights, aside)


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
