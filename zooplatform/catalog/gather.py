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

from zooplatform.catalog.population import map_matrix
from zooplatform.dtypes import from_buffer, item_size
from zooplatform.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from zooplatform.catalog.reader import Reader
    from zooplatform.layout import VectorLayout

__all__ = ["Gatherer", "gatherers"]

# Rows of several files are joined row by row from this size on; below it, file by file is faster.
_LONG_ROW_BYTES = 4096


class _Matrix(NamedTuple):
    """Rows of a population shard."""

    path: Path
    offset: int
    num_rows: int


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
    """

    def __init__(
        self,
        vector: VectorLayout,
        matrices: Sequence[_Matrix],
        matrix_of: npt.NDArray[np.int64],
        row_of: npt.NDArray[np.int64],
        pieces: Sequence[Sequence[_Piece]],
    ) -> None:
        self.vector = vector
        self._matrices, self._pieces = tuple(matrices), tuple(tuple(p) for p in pieces)
        self._matrix_of, self._row_of = matrix_of, row_of
        self._mapped: list[npt.NDArray[Any]] = []
        self._mapped_pieces: dict[Path, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def __getstate__(self) -> dict[str, Any]:
        # numpy would pickle the contents of a map.
        return {**self.__dict__, "_mapped": [], "_mapped_pieces": {}}

    def take(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """(len(rows), P) in fresh memory, of the dtype in which they are stored.

        Raises:
            IntegrityError: a file is missing or truncated.
        """
        if len(self._mapped) < len(self._matrices):
            self._mapped = [self._map(matrix) for matrix in self._matrices]
        if not self._pieces and len(self._mapped) == 1:
            return self._tensor(self._mapped[0].take(self._row_of[rows], axis=0))
        if not self._pieces and self._row_bytes < _LONG_ROW_BYTES:
            return self._tensor(self._by_file(rows))
        places = zip(self._matrix_of[rows].tolist(), self._row_of[rows].tolist(), strict=True)
        mapped = self._mapped
        if not self._pieces:
            parts = [mapped[matrix][row] for matrix, row in places]
        else:
            parts = []
            for matrix, row in places:
                own = [mapped[matrix][row]] if matrix >= 0 else map(self._piece, self._pieces[row])
                parts.extend(own)
        joined = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        return self._tensor(joined.reshape(len(rows), -1))

    @property
    def _row_bytes(self) -> int:
        return self.vector.width * (item_size(self.vector.dtype) or 1)

    def _tensor(self, rows: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Rows of bytes (B, bytes) as values (B, P)."""
        return from_buffer(rows, self.vector.dtype, (len(rows), self.vector.width))

    def _by_file(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        out = np.empty((len(rows), self._row_bytes), np.uint8)
        owners, places = self._matrix_of[rows], self._row_of[rows]
        for index, mapped in enumerate(self._mapped):
            where = np.flatnonzero(owners == index)
            if len(where):
                out[where] = mapped.take(places[where], axis=0)
        return out

    def _map(self, matrix: _Matrix) -> npt.NDArray[Any]:
        """Rows as bytes, so that all dtypes go one way. As a plain array: np.memmap is slow to slice."""
        shape = (matrix.num_rows, self._row_bytes)
        return np.asarray(map_matrix(matrix.path, matrix.offset, shape, "uint8"))

    def _piece(self, piece: _Piece) -> npt.NDArray[np.uint8]:
        mapped = self._mapped_pieces.get(piece.path)
        if mapped is None:
            mapped = np.asarray(map_matrix(piece.path, 0, (1, piece.size), "uint8"))[0]
            self._mapped_pieces[piece.path] = mapped
        return mapped[piece.offset : piece.stop]


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
    names = [field.spec.name for field in vector.fields if not field.aside]
    shards: dict[str, int] = {}
    matrices: list[_Matrix] = []
    pieces: list[list[_Piece]] = []
    matrix_of = np.full(part.num_rows, -1, np.int64)
    row_of = np.empty(part.num_rows, np.int64)
    columns = (part.column(c).to_pylist() for c in ("checkpoint_id", "shard_id", "shard_row"))
    for at, (checkpoint, shard, row) in enumerate(zip(*columns, strict=True)):
        if shard is None:
            row_of[at] = len(pieces)
            own = tensors[checkpoint]
            pieces.append([own[name] for name in names if own[name].stop > own[name].offset])
            continue
        if shard not in shards:
            info = reader.shard(shard)
            shards[shard] = len(matrices)
            path = reader.snapshot.weight_file(info["path"])
            matrices.append(_Matrix(path, info["value_offset"], info["num_rows"]))
        matrix_of[at], row_of[at] = shards[shard], row
    return Gatherer(vector, matrices, matrix_of, row_of, pieces)


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
