"""Arrow datasets that decode their last column only for the rows that DuckDB asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from zooplatform.errors import ZooError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["BATCH_VALUES", "FLOAT_LIST", "Block", "Rows", "WeightTable", "float_lists"]

# Values handed over at a time (4 MB of float32): bounds the memory of a scan.
BATCH_VALUES = 1 << 20
# Not list views, which could point anywhere: DuckDB hands no filter to a table that has them.
FLOAT_LIST = pa.large_list(pa.field("item", pa.float32(), nullable=False))

Rows = npt.NDArray[np.int64]


class Block(NamedTuple):
    """Rows that are filtered and decoded together.

    Attributes:
        index: every column but the values.
        sizes: (rows,) number of values of each.
        decode: from row numbers to their lists.
        missing: (rows,) True where the values are NULL.
    """

    index: pa.Table
    sizes: Rows
    decode: Callable[[Rows], pa.Array]
    missing: npt.NDArray[np.bool_] | None = None


class WeightTable(ds.Dataset):  # type: ignore[misc]
    """What DuckDB sees as a dataset; only `schema` and `scanner` are ever asked for."""

    def __init__(
        self, schema: pa.Schema, blocks: Callable[[Mapping[str, Any]], Iterator[Block]]
    ) -> None:
        self._schema, self._blocks = schema, blocks
        self.failure: ZooError | None = None

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: ds.Expression | None = None,
        **_: object,
    ) -> _Scan:
        names = list(columns) if columns is not None else self._schema.names
        schema = pa.schema([self._schema.field(name) for name in names])
        return _Scan(schema, self._batches(schema, filter))

    def _batches(
        self, schema: pa.Schema, condition: ds.Expression | None
    ) -> Iterator[pa.RecordBatch]:
        # Conditions of the form column = value; they narrow down what is looked at before anything is built.
        known = {} if condition is None else ds.get_partition_keys(condition)
        try:
            for block in self._blocks(known):
                rows = self._matching(block, condition)
                yield from self._decoded(schema, block, rows)
        except ZooError as exc:
            # DuckDB turns it into text of its own; the engine raises this one instead.
            self.failure = exc
            raise

    def _matching(self, block: Block, condition: ds.Expression | None) -> Rows:
        count = block.index.num_rows
        rows = np.arange(count, dtype=np.int64)
        if condition is None:
            return rows
        # DuckDB asks of the values at most whether they are there, so empty lists answer for them.
        stand_in = pa.ListArray.from_arrays(
            pa.array(np.zeros(count + 1, dtype=np.int32)),
            pa.array([], pa.float32()),
            mask=None if block.missing is None else pa.array(block.missing),
        )
        table = block.index.append_column(self._schema.names[-1], stand_in)
        table = table.append_column("row number", pa.array(rows))
        chosen: Rows = table.filter(condition).column("row number").to_numpy()
        return chosen

    def _decoded(self, schema: pa.Schema, block: Block, rows: Rows) -> Iterator[pa.RecordBatch]:
        if not len(rows):
            return
        values = self._schema.names[-1]
        # Cut where the running number of values passes a multiple of the batch size.
        cuts = (
            np.flatnonzero(np.diff(np.cumsum(block.sizes[rows]) // BATCH_VALUES)) + 1
            if values in schema.names
            else np.array([], dtype=np.int64)
        )
        everything = len(rows) == block.index.num_rows
        for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            part = rows[start:stop]
            index = block.index.slice(start, stop - start) if everything else block.index.take(part)
            columns = [
                block.decode(part) if name == values else index.column(name).combine_chunks()
                for name in schema.names
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


class _Scan(NamedTuple):
    """The one thing that DuckDB asks of a scanner; unlike Arrow's it reads nothing ahead."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    def to_reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self.schema, self.batches)


def float_lists(
    flat: npt.NDArray[np.float32],
    starts: Rows,
    sizes: Rows,
    missing: npt.NDArray[np.bool_] | None = None,
) -> pa.Array:
    """Lists of `flat[starts[i] : starts[i] + sizes[i]]`; they point into it when they follow each other there."""
    ends = starts + sizes
    if len(starts) and np.array_equal(starts[1:], ends[:-1]):
        offsets = np.append(starts, ends[-1])
    else:
        offsets = np.append(0, np.cumsum(sizes))
        pieces = [flat[start:end] for start, end in zip(starts, ends, strict=True)]
        flat = np.concatenate(pieces) if pieces else flat[:0]
    values = pa.Array.from_buffers(pa.float32(), len(flat), [None, pa.py_buffer(flat)])
    return pa.LargeListArray.from_arrays(
        pa.array(offsets),
        values,
        type=FLOAT_LIST,
        mask=None if missing is None or not missing.any() else pa.array(missing),
    )
