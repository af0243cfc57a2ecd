"""Populations: the checkpoints of one architecture as one matrix, mapped from their shards."""

from __future__ import annotations

import mmap
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zooplatform.dtypes import from_buffer
from zooplatform.errors import IntegrityError, UnknownIdError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from zooplatform.catalog.gather import Gatherer
    from zooplatform.interfaces import Layout, StateDict
    from zooplatform.layout import VectorLayout

__all__ = ["LooseRows", "MappedShard", "Population"]


# From this size on, what was copied out of a mapping is let go piece by piece: it counts as memory of the process once,
# not twice.
_READ_BYTES = 1 << 20
_WINDOW = 4 << 20


class MappedShard:
    """A population shard: its rows, mapped when they are first asked for.

    Args:
        path: the file.
        offset: first byte of the weights in it.
        shape: rows and values of each.
        dtype: of the values.
        aside: first byte and row length of the bytes aside, where there are any.

    Raises:
        IntegrityError: the file is missing or shorter than committed.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        shape: tuple[int, int],
        dtype: str,
        aside: tuple[int, int] | None,
    ) -> None:
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype
        self._aside = aside
        needed = offset + shape[0] * shape[1] * np.dtype(dtype).itemsize
        if aside is not None:
            needed = max(needed, aside[0] + shape[0] * aside[1])
        try:
            size = path.stat().st_size
        except OSError as exc:
            raise _cut(path, exc) from exc
        if size < needed:
            raise _cut(path, f"it has {size} bytes, {needed} were committed")

    @cached_property
    def weights(self) -> npt.NDArray[Any]:
        """(rows, P), read-only."""
        # A plain array over the mapping: rows of np.memmap are ten times slower to take.
        return np.asarray(map_matrix(self.path, self.offset, self.shape, self.dtype, mode="r"))

    @cached_property
    def aside(self) -> npt.NDArray[np.uint8] | None:
        """(rows, E), read-only; None without tensors of other dtypes."""
        if self._aside is None:
            return None
        offset, width = self._aside
        shape = (self.shape[0], width)
        return np.asarray(map_matrix(self.path, offset, shape, "uint8", mode="r"))

    def private(self) -> npt.NDArray[Any]:
        """The weights mapped once more: writing to them changes private memory only, never the file."""
        return np.asarray(map_matrix(self.path, self.offset, self.shape, self.dtype))

    def row(self, row: int) -> npt.NDArray[Any]:
        """One row (P,) in fresh memory."""
        return np.array(self.weights[row])

    def read(
        self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any], where: npt.NDArray[np.int64]
    ) -> None:
        """Put rows into `out[where]`, where `out` is (n, P)."""
        together = out[where[0] : where[-1] + 1] if _contiguous(where) else None
        if together is None:
            out[where] = self.weights.take(rows, axis=0)
        elif together.nbytes >= _READ_BYTES and _contiguous(rows):
            self._read_into(together, int(rows[0]))
        else:
            self.weights.take(rows, axis=0, out=together, mode="clip")

    def read_aside(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8] | None:
        """The bytes aside of rows, in fresh memory; None without tensors of other dtypes."""
        return None if self.aside is None else self.aside[rows]

    def _read_into(self, target: npt.NDArray[Any], row: int) -> None:
        """Fill `target` (n, P), C-contiguous, with the rows from `row` on.

        Raises:
            IntegrityError: the file is shorter than committed.
        """
        view = target.reshape(-1).view(np.uint8)
        start = self.offset + row * target.shape[1] * target.itemsize
        before = start % mmap.ALLOCATIONGRANULARITY
        try:
            with self.path.open("rb") as handle:
                mapped = mmap.mmap(
                    handle.fileno(),
                    before + len(view),
                    access=mmap.ACCESS_READ,
                    offset=start - before,
                )
        except (OSError, ValueError) as exc:
            raise _cut(self.path, exc) from exc
        source = np.frombuffer(mapped, np.uint8)
        for first in range(0, len(source), _WINDOW):
            stop = min(first + _WINDOW, len(source))
            low = max(first, before)
            view[low - before : stop - before] = source[low:stop]
            mapped.madvise(mmap.MADV_DONTNEED, first, stop - first)


class LooseRows:
    """Networks that are stored tensor by tensor, read like rows of a shard: put together when they are asked for."""

    def __init__(self, gatherer: Gatherer) -> None:
        self._gatherer = gatherer

    def row(self, row: int) -> npt.NDArray[Any]:
        """One row (P,) in fresh memory."""
        found: npt.NDArray[Any] = self._take(np.array([row]))[0]
        return found

    def read(
        self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any], where: npt.NDArray[np.int64]
    ) -> None:
        """Put rows into `out[where]`, where `out` is (n, P)."""
        step = max(1, _WINDOW // max(1, out.strides[0]))
        for start in range(0, len(rows), step):
            out[where[start : start + step]] = self._take(rows[start : start + step])

    def read_aside(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8] | None:
        """The bytes aside of rows, in fresh memory; None without tensors of other dtypes."""
        return self._gatherer.take_aside(rows) if self._gatherer.vector.aside_bytes else None

    def _take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return self._gatherer.take_bytes(rows).view(self._gatherer.vector.dtype)


def map_matrix(
    path: Path, offset: int, shape: tuple[int, int], dtype: str, *, mode: Literal["c", "r"] = "c"
) -> npt.NDArray[Any]:
    """Map a matrix of a sealed file, copy-on-write by default: writing to it never changes the file.

    Raises:
        IntegrityError: the file is missing or shorter than committed.
    """
    if shape[0] == 0 or shape[1] == 0:
        return np.zeros(shape, dtype=dtype)
    try:
        return np.memmap(path, mode=mode, dtype=dtype, offset=offset, shape=shape)
    except (OSError, ValueError) as exc:
        raise _cut(path, exc) from exc


def require_rows(path: object, rows: npt.ArrayLike, num_rows: int) -> None:
    """That a shard has these rows: tables can be damaged too, and a row too many would be the bytes of something else.

    Raises:
        IntegrityError: it has not.
    """
    given = np.atleast_1d(np.asarray(rows))
    wrong = given[(given < 0) | (given >= num_rows)]
    if len(wrong):
        raise IntegrityError(
            f"{path}: a checkpoint is said to be row {wrong[0]} of {num_rows}. Restore the catalog from a copy; "
            "`zoo check` lists what is affected."
        )


def require_bytes(path: object, start: int, stop: int, size: int) -> None:
    """The same for the bytes of a tensor: a slice beyond the end would be a shorter one without a word.

    Raises:
        IntegrityError: they are not all within the `size` bytes of the shard.
    """
    if not 0 <= start <= stop <= size:
        raise IntegrityError(
            f"{path}: a tensor is said to be bytes {start} to {stop} of {size}. Restore the catalog from a copy; "
            "`zoo check` lists what is affected."
        )


def _cut(path: Path, why: object) -> IntegrityError:
    return IntegrityError(
        f"{path}: weight file is missing or truncated ({why}). Restore it from a copy; "
        "`zoo check` lists what is affected."
    )


class Population:
    """N checkpoints of one architecture, in the order that was asked for.

    Attributes:
        ids: N checkpoint ids.
        layout: the tensors of one network, in state-dict order.
    """

    def __init__(
        self,
        ids: Sequence[str] | pa.ChunkedArray,
        vector: VectorLayout,
        shards: Sequence[MappedShard | LooseRows],
        shard_of: npt.NDArray[np.int64],
        row_of: npt.NDArray[np.int64],
    ) -> None:
        self._given_ids = ids
        self.vector = vector
        self._shards = tuple(shards)
        self._shard_of, self._row_of = shard_of, row_of

    @cached_property
    def ids(self) -> tuple[str, ...]:
        given = self._given_ids
        return tuple(given.to_pylist() if isinstance(given, pa.ChunkedArray) else given)

    @property
    def layout(self) -> Layout:
        return self.vector.layout

    def __len__(self) -> int:
        return len(self._row_of)

    def __repr__(self) -> str:
        return f"Population({len(self)} networks of {self.vector.width} {self.vector.dtype} values)"

    @cached_property
    def weights(self) -> torch.Tensor:
        """(N, P): every network as one row. A view of the mapped shard where the networks lie there side by side,
        gathered once otherwise. Writing to it changes private memory, never the catalog.
        """
        import torch

        return torch.from_numpy(self._matrix())

    def _matrix(self) -> npt.NDArray[Any]:
        shard = self._shards[0]
        side_by_side = len(self._shards) == 1 and _contiguous(self._row_of)
        if side_by_side and isinstance(shard, MappedShard):
            start = int(self._row_of[0]) if len(self._row_of) else 0
            return shard.private()[start : start + len(self)]
        return self.read(np.arange(len(self)))

    def read(self, rows: npt.NDArray[np.int64] | Sequence[int] | int) -> npt.NDArray[Any]:
        """Copy rows of the catalog into fresh memory: (len(rows), P), or (P,) for one row; touches no other bytes."""
        if isinstance(rows, (int, np.integer)):
            one: npt.NDArray[Any] = self._shards[self._shard_of[rows]].row(self._row_of[rows])
            return one
        picked = np.asarray(rows, dtype=np.int64)
        # numpy's allocator asks for huge pages: filling it takes half the time that torch's would.
        out = np.empty((len(picked), self.vector.width), dtype=self.vector.dtype)
        owners, own = self._shard_of[picked], self._row_of[picked]
        for index in np.unique(owners):
            where = np.flatnonzero(owners == index)
            self._shards[index].read(own[where], out, where)
        return out

    def layer(self, name: str) -> torch.Tensor:
        """(N, *shape): one tensor of all networks, a strided view where `weights` is one.

        `numpy.ascontiguousarray` copies it faster than torch's `contiguous`, into huge pages.

        Raises:
            UnknownIdError: the layout has no such tensor.
        """
        field = self.vector.by_name.get(name)
        if field is None:
            raise UnknownIdError(
                "tensor", name, remedy=f"The layout has {', '.join(t.name for t in self.layout)}."
            )
        if field.aside:
            raw = np.ascontiguousarray(
                self.read_aside(np.arange(len(self)))[
                    :, field.offset : field.offset + field.spec.size_bytes
                ]
            )
            return from_buffer(raw, field.spec.dtype, (len(self), *field.spec.shape))
        stop = field.offset + field.spec.num_elements
        columns = self.weights[:, field.offset : stop]
        strides = [columns.stride(0), *_strides(field.spec.shape)]
        return columns.as_strided((len(self), *field.spec.shape), strides)

    def read_aside(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Copy the bytes aside: (len(rows), E)."""
        out = np.empty((len(rows), self.vector.aside_bytes), dtype=np.uint8)
        owners = self._shard_of[rows]
        for index in np.unique(owners):
            where = np.flatnonzero(owners == index)
            found = self._shards[index].read_aside(self._row_of[rows[where]])
            if found is not None:
                out[where] = found
        return out

    def state_dict(self, index: int) -> StateDict:
        """The state dict of one network, in fresh memory."""
        shard = self._shards[int(self._shard_of[index])]
        row = int(self._row_of[index])
        aside = shard.read_aside(np.array([row]))
        return split_vector(self.vector, shard.row(row), None if aside is None else aside[0])


def split_vector(
    vector: VectorLayout, weights: npt.NDArray[Any], aside: npt.NDArray[np.uint8] | None
) -> StateDict:
    """A vector (P,) and the bytes aside (E,) as named tensors over the same memory."""
    import torch

    flat = torch.from_numpy(weights)
    state: StateDict = {}
    for field in vector.fields:
        spec = field.spec
        if field.aside:
            assert aside is not None
            raw = aside[field.offset : field.offset + spec.size_bytes].copy()
            state[spec.name] = from_buffer(raw, spec.dtype, spec.shape)
        else:
            state[spec.name] = flat[field.offset : field.offset + spec.num_elements].view(
                spec.shape
            )
    return state


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Strides of a contiguous tensor, in elements."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return strides


def _contiguous(rows: npt.NDArray[np.int64]) -> bool:
    return len(rows) < 2 or bool((np.diff(rows) == 1).all())
