"""Weights of many checkpoints of one architecture, gathered from the mapped files.

Unlike a `Population` this holds checkpoints however they are stored, and can be pickled: another process maps the files
itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import as_strided

from zooplatform.catalog.population import map_matrix, require_bytes, require_rows
from zooplatform.dtypes import from_buffer, item_size
from zooplatform.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from zooplatform.catalog.reader import Reader
    from zooplatform.layout import VectorLayout

__all__ = ["Gatherer", "gatherers"]


class _Matrix(NamedTuple):
    """Rows of a population shard; `aside` is where its bytes aside begin."""

    path: Path
    offset: int
    num_rows: int
    aside: int


class _Piece(NamedTuple):
    """Bytes of one tensor in a tensor shard."""

    path: Path
    size: int
    offset: int
    stop: int


class Gatherer:
    """N networks of one architecture, each a vector of the P values that are of its main dtype.

    Args:
        vector: the layout.
        matrices: population shards that hold some of the networks.
        matrix_of: (N,) which of them holds a network; -1 where it is stored tensor by tensor.
        row_of: (N,) row in the matrix, or place in `pieces`.
        pieces: for every network that is stored tensor by tensor, its tensors in the order of the vector.
        aside: for every such network, its tensors that are kept aside, in their order.
    """

    def __init__(
        self,
        vector: VectorLayout,
        matrices: Sequence[_Matrix],
        matrix_of: npt.NDArray[np.int64],
        row_of: npt.NDArray[np.int64],
        pieces: Sequence[Sequence[_Piece]],
        aside: Sequence[Sequence[_Piece]],
    ) -> None:
        self.vector = vector
        self._matrices, self._pieces = tuple(matrices), tuple(tuple(p) for p in pieces)
        self._aside = tuple(tuple(p) for p in aside)
        self._matrix_of, self._row_of = matrix_of, row_of
        self._rows: _MappedRows | None = None
        self._mapped_pieces: dict[Path, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def __getstate__(self) -> dict[str, Any]:
        # numpy would pickle the contents of a map.
        return {**self.__dict__, "_rows": None, "_mapped_pieces": {}}

    def take(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """(len(rows), P) in fresh memory, of the dtype in which they are stored.

        Raises:
            IntegrityError: a file is missing or truncated.
        """
        return from_buffer(self.take_bytes(rows), self.vector.dtype, (len(rows), self.vector.width))

    def take_bytes(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The same as (len(rows), bytes of P values)."""
        if self._rows is None:
            self._check()
            self._rows = _MappedRows([self._map(matrix) for matrix in self._matrices])
        owners, places = self._matrix_of[rows], self._row_of[rows]
        if not self._pieces:
            return self._rows.take(owners, places)
        mapped, parts = self._rows.matrices, list[npt.NDArray[np.uint8]]()
        for matrix, row in zip(owners.tolist(), places.tolist(), strict=True):
            own = [mapped[matrix][row]] if matrix >= 0 else map(self._piece, self._pieces[row])
            parts.extend(own)
        joined = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        return joined.reshape(len(rows), -1)

    def take_aside(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """(len(rows), E) the bytes of the tensors of other dtypes, in fresh memory.

        Raises:
            IntegrityError: a file is missing or truncated.
        """
        out = np.empty((len(rows), self.vector.aside_bytes), np.uint8)
        if not out.size:
            return out
        places = zip(self._matrix_of[rows].tolist(), self._row_of[rows].tolist(), strict=True)
        for at, (matrix, row) in enumerate(places):
            if matrix >= 0:
                path, _, num_rows, start = self._matrices[matrix]
                out[at] = map_matrix(path, start, (num_rows, out.shape[1]), "uint8")[row]
            else:
                out[at] = np.concatenate([self._piece(piece) for piece in self._aside[row]])
        return out

    @property
    def _row_bytes(self) -> int:
        return self.vector.width * (item_size(self.vector.dtype) or 1)

    def _check(self) -> None:
        """Once, that every row is one that its file has: nothing else keeps `_MappedRows` within mapped memory."""
        for index in np.unique(self._matrix_of[self._matrix_of >= 0]).tolist():
            matrix = self._matrices[index]
            require_rows(matrix.path, self._row_of[self._matrix_of == index], matrix.num_rows)

    def _map(self, matrix: _Matrix) -> npt.NDArray[Any]:
        """Rows as bytes, so that all dtypes go one way. As a plain array: np.memmap is slow to slice."""
        shape = (matrix.num_rows, self._row_bytes)
        return np.asarray(map_matrix(matrix.path, matrix.offset, shape, "uint8"))

    def _piece(self, piece: _Piece) -> npt.NDArray[np.uint8]:
        require_bytes(piece.path, piece.offset, piece.stop, piece.size)
        mapped = self._mapped_pieces.get(piece.path)
        if mapped is None:
            mapped = np.asarray(map_matrix(piece.path, 0, (1, piece.size), "uint8"))[0]
            self._mapped_pieces[piece.path] = mapped
        return mapped[piece.offset : piece.stop]


class _MappedRows:
    """Rows of several mapped matrices of bytes, as wide as each other, in one gather.

    numpy gathers from one array. Joining what it takes from each file costs as much again as the gather, and a slice
    for every row more than that. Mapped files lie in one address space, though: seen from the first of them, with a
    row beginning at every byte, a row of any of them is a row of a single array, its number the distance of their
    addresses. What lies between the files is never looked at.
    """

    def __init__(self, matrices: Sequence[npt.NDArray[np.uint8]]) -> None:
        self.matrices = matrices  # they keep what they map as long as the view is used
        begin = [int(matrix.__array_interface__["data"][0]) for matrix in matrices]
        first = int(np.argmin(begin)) if begin else 0
        self._begin = np.array(begin, np.int64) - (begin[first] if begin else 0)
        self._width = matrices[0].shape[1] if matrices else 0
        self._view: npt.NDArray[np.uint8] | None = None
        if self._width:
            last = max(a + m.size for a, m in zip(self._begin.tolist(), matrices, strict=True))
            self._view = as_strided(
                matrices[first],
                shape=(last - self._width + 1, self._width),
                strides=(1, 1),
                writeable=False,
            )

    def take(
        self, owners: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        """(n, width) in fresh memory: row `rows[i]` of matrix `owners[i]`."""
        if self._view is None:
            return np.empty((len(rows), 0), np.uint8)
        taken: npt.NDArray[np.uint8] = self._view[self._begin[owners] + rows * self._width]
        return taken


def gatherers(reader: Reader, rows: pa.Table) -> dict[str, Gatherer]:
    """A gatherer for every architecture of some checkpoints, by architecture id; the order of rows is kept.

    Args:
        reader: of the snapshot that the rows are from.
        rows: `checkpoint_id`, `architecture_id`, `shard_id`, `shard_row` of checkpoints whose weights are stored.

    Raises:
        CatalogError: the weights of an architecture are of a type that has no numbers.
    """
    single = rows.filter(rows.column("shard_id").is_null()).column("checkpoint_id").to_pylist()
    tensors = _tensors_of(reader, single)
    found = {}
    for architecture in sorted(rows.column("architecture_id").unique().to_pylist()):
        part = rows.filter(pc.equal(rows.column("architecture_id"), architecture))
        vector = reader.vector(architecture)
        if item_size(vector.dtype) is None:
            raise CatalogError(
                f"The weights of architecture {architecture} are stored as {vector.dtype}, which are blocks of bytes "
                "and no numbers. Leave it out of the query, or read its checkpoints with `Catalog.state_dict`."
            )
        found[architecture] = _gatherer(reader, vector, part, tensors)
    return found


def _gatherer(
    reader: Reader,
    vector: VectorLayout,
    part: pa.Table,
    tensors: dict[str, dict[str, _Piece]],
) -> Gatherer:
    names, beside = (
        [field.spec.name for field in vector.fields if field.aside == aside]
        for aside in (False, True)
    )
    shards: dict[str, int] = {}
    matrices: list[_Matrix] = []
    pieces: list[list[_Piece]] = []
    asides: list[list[_Piece]] = []
    matrix_of = np.full(part.num_rows, -1, np.int64)
    row_of = np.empty(part.num_rows, np.int64)
    columns = (part.column(c).to_pylist() for c in ("checkpoint_id", "shard_id", "shard_row"))
    for at, (checkpoint, shard, row) in enumerate(zip(*columns, strict=True)):
        if shard is None:
            row_of[at] = len(pieces)
            own = tensors[checkpoint]
            for kept, chosen in ((pieces, names), (asides, beside)):
                kept.append([own[name] for name in chosen if own[name].stop > own[name].offset])
            continue
        if shard not in shards:
            info = reader.shard(shard)
            shards[shard] = len(matrices)
            path = reader.snapshot.weight_file(info["path"])
            start = info["aside_offset"] or 0
            matrices.append(_Matrix(path, info["value_offset"], info["num_rows"], start))
        matrix_of[at], row_of[at] = shards[shard], row
    return Gatherer(vector, matrices, matrix_of, row_of, pieces, asides)


def _tensors_of(reader: Reader, checkpoints: Sequence[str]) -> dict[str, dict[str, _Piece]]:
    """Where the tensors of checkpoints are that are stored tensor by tensor: by checkpoint and name."""
    if not checkpoints:
        return {}
    columns = ["checkpoint_id", "name", "size_bytes", "shard_id", "shard_offset"]
    table = reader.snapshot.table("tensors", columns)
    wanted = pc.is_in(table.column("checkpoint_id"), value_set=pa.array(checkpoints))
    found: dict[str, dict[str, _Piece]] = {checkpoint: {} for checkpoint in checkpoints}
    shards: dict[str, tuple[Path, int]] = {}
    for checkpoint, name, size, shard, offset in zip(
        *(table.filter(wanted).column(c).to_pylist() for c in columns), strict=True
    ):
        if shard not in shards:
            info = reader.shard(shard)
            shards[shard] = (reader.snapshot.weight_file(info["path"]), info["size_bytes"])
        found[checkpoint][name] = _Piece(*shards[shard], offset, offset + size)
    return found
