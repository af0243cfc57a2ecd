"""Weight files: uncompressed Arrow IPC files, sealed once and memory-mapped ever after.

Values start at multiples of 64 bytes in the file, which Arrow itself does not promise (it aligns to 8): metadata is
padded until they do, so that a mapped value is as well aligned as an allocated one.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from zooplatform.catalog.files import publish, reached
from zooplatform.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "ALIGNMENT",
    "MAX_POPULATION_BYTES",
    "Placed",
    "SealedShard",
    "TensorShardWriter",
    "seal_population",
    "tensor_batches",
]

ALIGNMENT = 64
MAX_POPULATION_BYTES = 256 * 2**20
# Small tensors are gathered into record batches of about this size; a larger tensor is a batch of its own.
BATCH_BYTES = 32 * 2**20

_FILE_MAGIC = 8  # "ARROW1" and two bytes of padding

_TENSOR_SCHEMA = pa.schema(
    [
        pa.field("tensor_hash", pa.binary(16), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.field("item", pa.int64(), nullable=False)), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
    ]
)

_ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}


@dataclass(frozen=True, slots=True)
class SealedShard:
    """A finished weight file and what the `shards` table says of it."""

    path: Path
    num_rows: int
    size_bytes: int
    checksum: str
    value_offset: int | None = None
    row_bytes: int | None = None
    aside_offset: int | None = None
    aside_row_bytes: int | None = None


class _HashingSink(io.RawIOBase):
    """A file that hashes what is written, so that sealing needs no second pass over the bytes."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._hash = xxhash.xxh3_128()
        self.written = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        done = 0
        while done < len(view):
            done += os.write(self._handle, view[done : done + (1 << 30)])
        self.written += len(view)
        return len(view)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.written

    def sync(self) -> str:
        """Makes the bytes durable; returns their xxh3-128."""
        os.fsync(self._handle)
        return self._hash.hexdigest()

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


# --- population shards -----------------------------------------------------------------------------------------------


def _population_batch(
    ids: Sequence[str], weights: npt.NDArray[Any], aside: npt.NDArray[np.uint8] | None, pad: int
) -> pa.RecordBatch:
    type_ = _ARROW_TYPES[str(weights.dtype)]
    width = weights.shape[1]
    values = pa.Array.from_buffers(
        type_, weights.size, [None, pa.py_buffer(weights.reshape(-1).view(np.uint8))]
    )
    item = pa.field("item", type_, nullable=False)
    columns: list[pa.Array] = [
        pa.array(ids, type=pa.string()),
        pa.FixedSizeListArray.from_arrays(values, type=pa.list_(item, width)),
    ]
    fields = [
        pa.field("checkpoint_id", pa.string(), nullable=False),
        pa.field("weights", pa.list_(item, width), nullable=False),
    ]
    if aside is not None:
        type_aside = pa.binary(aside.shape[1])
        columns.append(
            pa.Array.from_buffers(type_aside, len(ids), [None, pa.py_buffer(aside.reshape(-1))])
        )
        fields.append(pa.field("aside", type_aside, nullable=False))
    schema = pa.schema(fields, metadata={"zooplatform": "population", "pad": "." * pad})
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _padded(size: int, to: int = 8) -> int:
    return -(-size // to) * to


def _value_offset(batch: pa.RecordBatch, data: pa.Buffer | pa.MemoryMappedFile, base: int) -> int:
    return int(batch.column("weights").values.buffers()[1].address) - base


def _population_pad(
    ids: Sequence[str], weights: npt.NDArray[Any], aside: npt.NDArray[np.uint8] | None
) -> int:
    """Padding of the metadata that brings the weight matrix to an aligned offset.

    Found on a file of one row in memory: the same metadata, only the lengths in front of the matrix differ.
    """
    sink = pa.BufferOutputStream()
    one = _population_batch([""], weights[:1], None if aside is None else aside[:1], 0)
    with pa.ipc.new_file(sink, one.schema) as writer:
        writer.write_batch(one)
    buffer = sink.getvalue()
    small = _value_offset(pa.ipc.open_file(buffer).get_batch(0), buffer, buffer.address)
    text_bytes = sum(len(i.encode()) for i in ids)
    before = _padded(4 * (len(ids) + 1)) + _padded(text_bytes)
    offset = small - _padded(4 * 2) + before
    return -offset % ALIGNMENT


def seal_population(
    temporary: Path,
    final: Path,
    ids: Sequence[str],
    weights: npt.NDArray[Any],
    aside: npt.NDArray[np.uint8] | None = None,
) -> SealedShard:
    """Write N networks of one architecture as one record batch, durably, and give the file its final name.

    Args:
        temporary: where to write first, on the same file system.
        final: where the sealed file goes.
        ids: N checkpoint ids.
        weights: (N, P) float16, float32 or float64, C-contiguous.
        aside: (N, E) bytes of tensors of other dtypes.
    """
    if not weights.flags.c_contiguous or str(weights.dtype) not in _ARROW_TYPES:
        raise CatalogError(
            "Population weights must be a C-contiguous float16, float32 or float64 matrix."
        )
    batch = _population_batch(ids, weights, aside, _population_pad(ids, weights, aside))
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with _HashingSink(temporary) as sink:
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        digest = sink.sync()
    with pa.memory_map(str(temporary)) as mapped:
        base = int(mapped.read_buffer(1).address)
        mapped.seek(0)
        sealed = pa.ipc.open_file(mapped).get_batch(0)
        offset = _value_offset(sealed, mapped, base)
        aside_offset = None
        if aside is not None:
            aside_offset = int(sealed.column("aside").buffers()[1].address) - base
        del sealed
    reached("shard-durable")
    publish(temporary, final)
    reached("shard-published")
    return SealedShard(
        final,
        len(ids),
        final.stat().st_size,
        digest,
        value_offset=offset,
        row_bytes=weights.shape[1] * weights.itemsize,
        aside_offset=aside_offset,
        aside_row_bytes=None if aside is None else aside.shape[1],
    )


# --- tensor shards ---------------------------------------------------------------------------------------------------


class Placed(NamedTuple):
    """Where a tensor lies in its shard: row, and byte offset of the value."""

    row: int
    offset: int


class TensorShardWriter:
    """Writes distinct tensors one after another in bounded memory (one batch of 32 MB, or one larger tensor).

    The file exists only once the first tensor is added, so that an ingest that finds everything stored already leaves
    nothing behind.
    """

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary
        self._sink: _HashingSink | None = None
        self._writer: Any = None
        self._rows = 0
        self._start = _FILE_MAGIC + _TENSOR_SCHEMA.serialize().size
        self._pending: list[tuple[bytes, str, tuple[int, ...], int]] = []
        self._staging: npt.NDArray[np.uint8] | None = None
        self._staged = 0

    @property
    def num_rows(self) -> int:
        return self._rows + len(self._pending)

    def add(
        self, digest: bytes, dtype: str, shape: tuple[int, ...], data: memoryview
    ) -> list[Placed]:
        """Add a tensor; returns the places of tensors that were written by this call, in order of adding."""
        written: list[Placed] = []
        size = len(data)
        if size >= BATCH_BYTES:
            written += self.flush()
            padded = _padded(size, ALIGNMENT)
            if padded != size:
                owned = bytearray(padded)
                owned[:size] = data
                data = memoryview(owned)
            return written + self._write(
                [(digest, dtype, shape, size)], pa.py_buffer(data), [padded]
            )
        padded = _padded(size, ALIGNMENT)
        if self._staged + padded > BATCH_BYTES:
            written += self.flush()
        if self._staging is None:
            # One buffer for all batches: fresh memory for each would cost more than the copying.
            self._staging = np.empty(BATCH_BYTES, dtype=np.uint8)
        end = self._staged + size
        self._staging[self._staged : end] = np.frombuffer(data, dtype=np.uint8)
        self._staging[end : self._staged + padded] = 0
        self._staged += padded
        self._pending.append((digest, dtype, shape, size))
        return written

    def flush(self) -> list[Placed]:
        """Write what is gathered; returns its places."""
        if not self._pending:
            return []
        sizes = [_padded(size, ALIGNMENT) for *_, size in self._pending]
        assert self._staging is not None
        places = self._write(self._pending, pa.py_buffer(self._staging[: self._staged]), sizes)
        self._pending, self._staged = [], 0
        return places

    def _write(
        self, rows: list[tuple[bytes, str, tuple[int, ...], int]], data: pa.Buffer, sizes: list[int]
    ) -> list[Placed]:
        if self._sink is None:
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._sink = _HashingSink(self._temporary)
            self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), _TENSOR_SCHEMA)
        start = self._sink.written or self._start
        pad, first = _batch_pad(rows, start)
        batch = _tensor_batch(rows, data, sizes)
        self._writer.write_batch(batch, custom_metadata={"pad": "." * pad})
        places = []
        at = start + first
        for row, size in enumerate(sizes, start=self._rows):
            places.append(Placed(row, at))
            at += size
        self._rows += len(rows)
        return places

    def seal(self, final: Path) -> tuple[SealedShard | None, list[Placed]]:
        """Finish the file, durably; None when no tensor was added. Also the places of the last tensors."""
        places = self.flush()
        if self._sink is None:
            return None, places
        self._writer.close()
        digest = self._sink.sync()
        size = self._sink.written
        self._sink.close()
        reached("shard-durable")
        publish(self._temporary, final)
        reached("shard-published")
        return SealedShard(final, self._rows, size, digest), places

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        if self._sink is not None:
            self._sink.close()
            self._temporary.unlink(missing_ok=True)


def _tensor_batch(
    rows: list[tuple[bytes, str, tuple[int, ...], int]], data: pa.Buffer | None, sizes: list[int]
) -> pa.RecordBatch:
    offsets: npt.NDArray[np.int64] = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    values = pa.Array.from_buffers(
        pa.large_binary(), len(rows), [None, pa.py_buffer(offsets), data]
    )
    columns = [
        pa.array([r[0] for r in rows], type=pa.binary(16)),
        pa.array([r[1] for r in rows], type=pa.string()),
        pa.array([list(r[2]) for r in rows], type=_TENSOR_SCHEMA.field("shape").type),
        pa.array([r[3] for r in rows], type=pa.int64()),
        values,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_TENSOR_SCHEMA)


def _batch_pad(rows: list[tuple[bytes, str, tuple[int, ...], int]], start: int) -> tuple[int, int]:
    """Padding that aligns the data of a batch starting at `start`, and the data's offset from there.

    The rows are serialised once per try with eight bytes of data: all that lies before the data stays the same.
    """
    sizes = [8] + [0] * (len(rows) - 1)
    dry = _tensor_batch(rows, pa.py_buffer(b"\0" * 8), sizes)
    schema_bytes = _TENSOR_SCHEMA.serialize().size
    for pad in range(8, 8 + 2 * ALIGNMENT, 8):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, _TENSOR_SCHEMA) as writer:
            writer.write_batch(dry, custom_metadata={"pad": "." * pad})
        buffer = sink.getvalue()
        read = next(iter(pa.ipc.open_stream(buffer)))
        first = int(read.column("data").buffers()[2].address) - int(buffer.address) - schema_bytes
        if (start + first) % ALIGNMENT == 0:
            return pad, first
    raise CatalogError("No padding aligns this batch; this is a bug in the shard writer.")


def tensor_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Record batches of a tensor shard, mapped."""
    with pa.memory_map(str(path)) as mapped:
        file = pa.ipc.open_file(mapped)
        for index in range(file.num_record_batches):
            yield file.get_batch(index)
