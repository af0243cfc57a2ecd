"""The two tables of weights that SQL sees, decoded only as far as a query asks.

DuckDB reads them as Arrow datasets and hands over the columns and the filter that it wants. The
filter is applied to ids and names first; only the values of the rows that are left are touched.
Float32 populations are not even copied: the lists of `population_weights` point into the mapped
shard.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.catalog.loose_weights import loose_blocks
from zooplatform.catalog.population import require_rows
from zooplatform.catalog.weight_scan import (
    BATCH_VALUES,
    FLOAT_LIST,
    Block,
    Rows,
    WeightTable,
    float_lists,
)
from zooplatform.dtypes import item_size, torch_dtype
from zooplatform.errors import IntegrityError, ZooError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from zooplatform.catalog.snapshot import Snapshot

__all__ = ["PIECE_VALUES", "WEIGHT_VIEWS", "Weights", "decode_float32"]

# DuckDB's inner products accumulate in float32; up to this length their error stays below 1e-5.
PIECE_VALUES = 65_536
_TENSORS_PER_BLOCK = 4096

WEIGHT_VIEWS: Mapping[str, pa.Schema] = {
    "population_weights": pa.schema(
        [
            pa.field("checkpoint_id", pa.string(), nullable=False),
            pa.field("architecture_id", pa.string(), nullable=False),
            pa.field("weights", FLOAT_LIST, nullable=False),
        ]
    ),
    "tensor_values": pa.schema(
        [
            pa.field("checkpoint_id", pa.string(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("part", pa.int64(), nullable=False),
            pa.field("values", FLOAT_LIST),
        ]
    ),
}

# Values of the 16 codes of float4_e2m1fn; a byte holds two, the first in its low half.
_FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
_FLOAT4 = np.concatenate([_FLOAT4, -_FLOAT4])
_NUMPY_DTYPES = frozenset(
    {
        *("float64", "float32", "float16", "complex64", "complex128", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    }
)


def decode_float32(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Stored bytes of a known dtype as float32: rounded where it has more digits, magnitudes of complex numbers.

    Args:
        raw: contiguous bytes, a whole number of elements.
        dtype: a name that `item_size` knows.
    """
    if dtype == "float32":
        return raw.view(np.float32)
    if dtype == "float4_e2m1fn_x2":
        return _FLOAT4[np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)]
    if dtype in _NUMPY_DTYPES:
        values = raw.view(np.dtype(dtype))
        # A float64 beyond float32 becomes infinite, which is what a cast means; no warning.
        with np.errstate(over="ignore"):
            return (np.abs(values) if values.dtype.kind == "c" else values).astype(np.float32)
    import torch

    tensor = torch.from_numpy(np.array(raw)).view(torch_dtype(dtype))
    decoded: npt.NDArray[np.float32] = (
        tensor.abs().to(torch.float32) if tensor.is_complex() else tensor.to(torch.float32)
    ).numpy()
    return decoded


class _Shard(NamedTuple):
    """A population shard: the ids of its live rows and where they are in the file."""

    shard: Mapping[str, Any]
    ids: pa.Array
    rows: Rows


class Weights:
    """The weights of one snapshot as the two tables of `WEIGHT_VIEWS`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._mapped: dict[str, npt.NDArray[np.uint8]] = {}
        blocks = {"population_weights": self._populations, "tensor_values": self._values}
        self.tables = {
            name: WeightTable(schema, blocks[name]) for name, schema in WEIGHT_VIEWS.items()
        }

    def take_failure(self) -> ZooError | None:
        """The error that ended the last scan, once."""
        for table in self.tables.values():
            if table.failure is not None:
                failure, table.failure = table.failure, None
                return failure
        return None

    # --- what is where ------------------------------------------------------------------------------------------------

    @cached_property
    def _shards(self) -> dict[str, dict[str, Any]]:
        return {row["shard_id"]: row for row in self._snapshot.shards().to_pylist()}

    @cached_property
    def _layouts(self) -> dict[str, list[dict[str, Any]]]:
        table = self._snapshot.table("architectures", ["architecture_id", "layout"])
        return dict(
            zip(
                table.column("architecture_id").to_pylist(),
                table.column("layout").to_pylist(),
                strict=True,
            )
        )

    @cached_property
    def _members(self) -> pa.Table:
        """Checkpoints of populations, ordered by shard and row."""
        table = self._snapshot.table("checkpoints", ["checkpoint_id", "shard_id", "shard_row"])
        table = table.filter(pc.is_valid(table.column("shard_id")))
        if table.num_rows == 0:
            return table
        shard = table.column("shard_id").combine_chunks().dictionary_encode().indices.to_numpy()
        order = np.lexsort((table.column("shard_row").to_numpy(), shard))
        return table if np.array_equal(order, np.arange(len(order))) else table.take(order)

    @cached_property
    def _tensors(self) -> pa.Table:
        columns = ["checkpoint_id", "name", "dtype", "size_bytes", "shard_id", "shard_offset"]
        table = self._snapshot.table("tensors", columns)
        return table.filter(pc.is_valid(table.column("shard_id")))

    def _population_shards(self, known: Mapping[str, Any]) -> Iterator[_Shard]:
        members = _equal(self._members, known, "checkpoint_id")
        if members.num_rows == 0:
            return
        codes = members.column("shard_id").combine_chunks().dictionary_encode()
        indices = codes.indices.to_numpy()
        ids = members.column("checkpoint_id").combine_chunks()
        rows = members.column("shard_row").to_numpy()
        ends = [*(np.flatnonzero(np.diff(indices)) + 1), len(indices)]
        start = 0
        for end in ends:
            shard = self._shard(codes.dictionary[int(indices[start])].as_py())
            if known.get("architecture_id", shard["architecture_id"]) == shard["architecture_id"]:
                require_rows(shard["path"], rows[start:end], shard["num_rows"])
                yield _Shard(shard, ids.slice(start, end - start), rows[start:end])
            start = end

    def _shard(self, shard_id: str) -> dict[str, Any]:
        try:
            return self._shards[shard_id]
        except KeyError:
            raise IntegrityError(
                f"{self._snapshot.path}: weight shard {shard_id} is not in the table `shards`. "
                "Restore the catalog from a copy; `zoo check` lists what is affected."
            ) from None

    def _bytes(self, shard: Mapping[str, Any], offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Part of a sealed file, mapped.

        Raises:
            IntegrityError: the file is missing or shorter than committed.
        """
        path = self._snapshot.weight_file(shard["path"])
        mapped = self._mapped.get(shard["shard_id"])
        if mapped is None:
            try:
                mapped = np.memmap(path, mode="r", dtype=np.uint8)
            except (OSError, ValueError) as exc:
                raise IntegrityError(
                    f"{path}: weight file is missing or empty ({exc}). Restore it from a copy; "
                    "`zoo check` lists what is affected."
                ) from exc
            self._mapped[shard["shard_id"]] = mapped
        if offset < 0 or offset + size > len(mapped):
            raise _short(path, len(mapped), offset, size)
        return mapped[offset : offset + size]

    def _read(self, shard: Mapping[str, Any], offset: int, size: int) -> npt.NDArray[np.uint8]:
        """As `_bytes`, but copied: a scan of a checkpoint larger than memory then passes through little of it."""
        path = self._snapshot.weight_file(shard["path"])
        try:
            data = np.fromfile(path, dtype=np.uint8, count=size, offset=offset)
        except OSError as exc:
            raise IntegrityError(
                f"{path}: weight file is missing or unreadable ({exc}). Restore it from a copy; "
                "`zoo check` lists what is affected."
            ) from exc
        if len(data) != size:
            raise _short(path, path.stat().st_size, offset, size)
        return data

    def _matrix(self, shard: Mapping[str, Any]) -> npt.NDArray[Any]:
        """The weights of a population shard, (rows in the file, P), in its own dtype."""
        raw = self._bytes(shard, shard["value_offset"], shard["num_rows"] * shard["row_bytes"])
        matrix: npt.NDArray[Any] = raw.view(np.dtype(shard["dtype"]))
        return matrix.reshape(shard["num_rows"], -1)

    # --- population_weights -------------------------------------------------------------------------------------------

    def _populations(self, known: Mapping[str, Any]) -> Iterator[Block]:
        for shard, ids, rows in self._population_shards(known):
            matrix = self._matrix(shard)
            index = pa.table(
                {
                    "checkpoint_id": ids,
                    "architecture_id": pa.repeat(
                        pa.scalar(shard["architecture_id"], pa.string()), len(ids)
                    ),
                }
            )
            sizes = np.full(len(ids), matrix.shape[1], dtype=np.int64)
            starts = np.zeros(len(ids), dtype=np.int64)
            yield Block(index, sizes, _slices(matrix, rows, starts, sizes))
        yield from loose_blocks(self._snapshot, known, decode_float32)

    # --- tensor_values ------------------------------------------------------------------------------------------------

    def _values(self, known: Mapping[str, Any]) -> Iterator[Block]:
        tensors = _equal(_equal(self._tensors, known, "checkpoint_id"), known, "name")
        for start in range(0, tensors.num_rows, _TENSORS_PER_BLOCK):
            yield self._single(tensors.slice(start, _TENSORS_PER_BLOCK))
        for shard, ids, rows in self._population_shards(known):
            layout = self._layouts[shard["architecture_id"]]
            if "name" in known:
                layout = [tensor for tensor in layout if tensor["name"] == known["name"]]
            inside = [tensor for tensor in layout if not tensor["aside"]]
            if inside:
                yield from _sliced(self._matrix(shard), ids, rows, inside)
            for tensor in layout:
                if tensor["aside"]:
                    yield self._aside(shard, ids, rows, tensor)

    def _single(self, tensors: pa.Table) -> Block:
        """Tensors stored one by one, of any dtype."""
        dtypes = tensors.column("dtype").to_pylist()
        shard_ids = tensors.column("shard_id").to_pylist()
        offsets = tensors.column("shard_offset").to_numpy()
        # Types that are not one number per element or two per byte are bytes only: NULL to SQL.
        items = np.array([item_size(dtype) or 0 for dtype in dtypes], dtype=np.int64)
        per_item = np.array([2 if d == "float4_e2m1fn_x2" else 1 for d in dtypes], dtype=np.int64)
        sizes = tensors.column("size_bytes").to_numpy()
        counts = np.where(items > 0, sizes // np.maximum(items, 1) * per_item, 0)
        which, part, number = _pieces(counts)
        missing = items[which] == 0
        index = pa.table(
            {
                "checkpoint_id": tensors.column("checkpoint_id").take(which),
                "name": tensors.column("name").take(which),
                "part": part,
            }
        )

        def decode(rows: Rows) -> pa.Array:
            found = []
            for row in rows:
                tensor = which[row]
                if number[row] == 0:
                    continue
                scale = int(items[tensor])
                start = int(part[row]) * PIECE_VALUES // int(per_item[tensor]) * scale
                size = int(number[row]) // int(per_item[tensor]) * scale
                shard = self._shard(shard_ids[tensor])
                raw = self._read(shard, int(offsets[tensor]) + start, size)
                found.append(decode_float32(raw, dtypes[tensor]))
            flat = np.concatenate(found) if found else np.empty(0, dtype=np.float32)
            ends = np.cumsum(number[rows])
            return float_lists(flat, ends - number[rows], number[rows], missing[rows])

        return Block(index, number, decode, missing)

    def _aside(
        self, shard: Mapping[str, Any], ids: pa.Array, rows: Rows, tensor: Mapping[str, Any]
    ) -> Block:
        """A tensor whose dtype is not the population's (a counter, a mask), kept beside the matrix."""
        width = shard["aside_row_bytes"]
        raw = self._bytes(shard, shard["aside_offset"], shard["num_rows"] * width)
        start, stop = tensor["offset"], tensor["offset"] + tensor["size_bytes"]
        column = raw.reshape(shard["num_rows"], width)[:, start:stop]
        count = len(decode_float32(np.zeros(stop - start, dtype=np.uint8), tensor["dtype"]))
        index, which, starts, number = _cross(ids, [(tensor["name"], 0, count)])

        def decode(chosen: Rows) -> pa.Array:
            flat = decode_float32(np.ascontiguousarray(column[rows]).reshape(-1), tensor["dtype"])
            return float_lists(flat, which[chosen] * count + starts[chosen], number[chosen])

        return Block(index, number, decode)


def _short(path: Path, length: int, offset: int, size: int) -> IntegrityError:
    return IntegrityError(
        f"{path}: weight file has {length} bytes; bytes {offset} to {offset + size} "
        "were committed. Restore it from a copy; `zoo check` lists what is affected."
    )


def _equal(table: pa.Table, known: Mapping[str, Any], column: str) -> pa.Table:
    if column not in known:
        return table
    return table.filter(pc.equal(table.column(column), pa.scalar(known[column], pa.string())))


def _pieces(counts: Rows) -> tuple[Rows, Rows, Rows]:
    """Cuts arrays of `counts` values into pieces, at least one each.

    Returns:
        For every piece the array it belongs to, its number there and its number of values.
    """
    parts = np.maximum(1, -(-counts // PIECE_VALUES))
    which = np.repeat(np.arange(len(counts), dtype=np.int64), parts)
    part = np.arange(len(which), dtype=np.int64) - np.repeat(np.cumsum(parts) - parts, parts)
    return which, part, np.minimum(PIECE_VALUES, counts[which] - part * PIECE_VALUES)


def _cross(
    ids: pa.Array, tensors: Sequence[tuple[str, int, int]]
) -> tuple[pa.Table, Rows, Rows, Rows]:
    """Every piece of `tensors` (name, first value, number of values) for every id.

    Returns:
        The index, and for each of its rows which id it belongs to, its first value and its number of values.
    """
    tensor, part, number = _pieces(np.array([t[2] for t in tensors], dtype=np.int64))
    first = np.array([t[1] for t in tensors], dtype=np.int64)[tensor] + part * PIECE_VALUES
    names = pa.array([t[0] for t in tensors], pa.string()).take(tensor)
    networks, pieces = len(ids), len(tensor)
    which = np.repeat(np.arange(networks, dtype=np.int64), pieces)
    piece = np.tile(np.arange(pieces, dtype=np.int64), networks)
    index = pa.table(
        {"checkpoint_id": ids.take(which), "name": names.take(piece), "part": part[piece]}
    )
    return index, which, first[piece], number[piece]


def _sliced(
    matrix: npt.NDArray[Any], ids: pa.Array, rows: Rows, layout: Sequence[Mapping[str, Any]]
) -> Iterator[Block]:
    """Tensors of a population: slices of the rows of its matrix, some thousand networks at a time."""
    tensors = [(t["name"], t["offset"], t["numel"]) for t in layout]
    step = max(1, BATCH_VALUES // max(1, sum(t[2] for t in tensors)))
    step = min(step, max(1, BATCH_VALUES // 16 // len(tensors)))
    for begin in range(0, len(ids), step):
        index, which, starts, number = _cross(ids.slice(begin, step), tensors)
        yield Block(
            index, number, _slices(matrix, rows[begin : begin + step][which], starts, number)
        )


def _slices(
    matrix: npt.NDArray[Any], rows: Rows, starts: Rows, sizes: Rows
) -> Callable[[Rows], pa.Array]:
    """A decoder of `matrix[rows[i], starts[i] : starts[i] + sizes[i]]`; other types than
    float32 are cast."""
    width = matrix.shape[1]

    def decode(chosen: Rows) -> pa.Array:
        row, start, size = rows[chosen], starts[chosen], sizes[chosen]
        if matrix.dtype == np.float32:
            return float_lists(matrix.reshape(-1), row * width + start, size)
        needed, place = np.unique(row, return_inverse=True)
        with np.errstate(over="ignore"):
            flat = matrix[needed].astype(np.float32).reshape(-1)
        return float_lists(flat, place * width + start, size)

    return decode
