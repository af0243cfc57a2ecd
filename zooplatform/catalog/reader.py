"""Finds the tensors of checkpoints in a snapshot and maps them."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from zooplatform.catalog.gather import gatherers
from zooplatform.catalog.places import PLACE_COLUMNS, Places
from zooplatform.catalog.population import (
    LooseRows,
    MappedShard,
    Population,
    map_matrix,
    require_bytes,
    require_rows,
    split_vector,
)
from zooplatform.catalog.snapshot import RETIRED
from zooplatform.catalog.writer import content_hashes
from zooplatform.dtypes import from_buffer
from zooplatform.errors import CatalogError, IntegrityError, UnknownIdError
from zooplatform.layout import POPULATION_DTYPES, VectorLayout
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

# Checkpoints of which the rows of `tensors` are remembered; one has some hundred.
_KEPT_CHECKPOINTS = 16


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
        info = self.shard(shard)
        require_bytes(info["path"], start, start + tensor["size_bytes"], info["size_bytes"])
        if self.snapshot.mirror is not None:
            return self.snapshot.mirror.read(str(info["path"]), start, tensor["size_bytes"])
        if shard not in maps:
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
        require_rows(info["path"], at, info["num_rows"])
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
        places = self._places
        at = None if ids is None else places.find(ids)
        if at is None:
            # As the shards hold them, so that the matrix is a view and not a copy; most tables are so already.
            at = places.as_stored()
        shard_of = places.shard_of if at is None else places.shard_of[at]
        row_of = places.row_of if at is None else places.row_of[at]
        loose = np.flatnonzero(shard_of < 0)
        used = np.flatnonzero(np.bincount(shard_of + 1, minlength=len(places.shards) + 1)[1:])
        infos = [self.shard(places.shards[shard]) for shard in used.tolist()]
        architectures = {info["architecture_id"] for info in infos}
        rows = self._rows_of(loose if at is None else at[loose]) if len(loose) else None
        if rows is not None:
            architectures.update(rows.column("architecture_id").unique().to_pylist())
        if len(architectures) != 1:
            raise _mixed(len(shard_of), sorted(architectures))
        (architecture,) = architectures
        vector = self.vector(architecture)
        shards: list[MappedShard | LooseRows] = [self._map(info, vector) for info in infos]
        _require_rows(infos, used, shard_of, row_of)
        if len(used) < len(places.shards) or rows is not None:
            shard_of = np.searchsorted(used, shard_of)
        if rows is not None:
            _require_numbers(vector, rows)
            row_of = row_of.copy()
            shard_of[loose], row_of[loose] = len(shards), np.arange(len(loose))
            shards.append(LooseRows(gatherers(self, rows)[architecture]))
        population = Population(
            tuple(ids) if ids is not None else places.ids if at is None else places.ids.take(at),
            vector,
            shards,
            shard_of,
            row_of,
        )
        if verify:
            hashes = self.snapshot.table("checkpoints", ["content_hash"]).column(0)
            everything = np.arange(len(population))
            _verify(
                vector,
                architecture,
                population.read(everything),
                population.read_aside(everything) if vector.aside_bytes else None,
                population.ids,
                (hashes if at is None else hashes.take(at)).to_pylist(),
            )
        return population

    def _rows_of(self, at: npt.NDArray[np.int64]) -> pa.Table:
        """What a gatherer asks of the checkpoints at these places."""
        return self.snapshot.table(
            "checkpoints", [*PLACE_COLUMNS, "architecture_id", "state"]
        ).take(at)

    @cached_property
    def _places(self) -> Places:
        return Places.of(self.snapshot)

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


def _require_rows(
    infos: Sequence[dict[str, Any]],
    used: npt.NDArray[np.int64],
    shard_of: npt.NDArray[np.int64],
    row_of: npt.NDArray[np.int64],
) -> None:
    """`require_rows` for checkpoints of many shards, those stored tensor by tensor (-1) left out."""
    limits = np.zeros(int(used.max(initial=-1)) + 2, np.int64)  # -1 picks the last
    limits[used] = [info["num_rows"] for info in infos]
    wrong = np.flatnonzero((shard_of >= 0) & ((row_of < 0) | (row_of >= limits[shard_of])))
    for at in wrong[:1].tolist():
        info = infos[int(np.searchsorted(used, shard_of[at]))]
        require_rows(info["path"], row_of[at], info["num_rows"])


def _no_tensor(checkpoint_id: str, name: str, names: Iterable[str]) -> UnknownIdError:
    known = list(names)
    return UnknownIdError(
        "tensor",
        name,
        remedy=f"Checkpoint {checkpoint_id} has {len(known)}: {', '.join(known[:20])}"
        + (", …" if len(known) > 20 else "."),
    )


def _mixed(count: int, architectures: Sequence[str]) -> CatalogError:
    return CatalogError(
        f"A population has one architecture, these {count} checkpoints have {len(architectures)}"
        + (f" ({', '.join(architectures[:5])})" if architectures else "")
        + ". Add `where architecture_id = ...` to the query."
    )


def _require_numbers(vector: VectorLayout, rows: pa.Table) -> None:
    """Refuse checkpoints that cannot be rows of a matrix of numbers."""
    headers = rows.filter(pc.not_equal(rows.column("state"), "stored"))
    if headers.num_rows:
        raise CatalogError(
            f"Checkpoint {headers.column('checkpoint_id')[0]}: only its header was ingested, the weights are not in "
            "the catalog. Add `where state = 'stored'` to the query, or ingest its reference again without "
            "--header-only."
        )
    if vector.dtype not in POPULATION_DTYPES:
        raise CatalogError(
            f"A population holds {', '.join(POPULATION_DTYPES)} weights, these are {vector.dtype}. Read them with "
            "`Catalog.state_dict` or `Catalog.dataset`."
        )


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
