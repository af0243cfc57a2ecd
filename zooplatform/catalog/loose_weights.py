"""Small networks that are stored tensor by tensor, as whole vectors for SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.catalog.gather import gatherers
from zooplatform.catalog.reader import Reader
from zooplatform.catalog.weight_scan import Block, Rows, float_lists
from zooplatform.dtypes import item_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

    from zooplatform.catalog.gather import Gatherer
    from zooplatform.catalog.snapshot import Snapshot

    Decode = Callable[[npt.NDArray[np.uint8], str], npt.NDArray[np.float32]]

__all__ = ["MAX_LOOSE_VALUES", "loose_blocks"]

# Larger networks are in `tensor_values`, in pieces: one list of all weights would be neither quick nor exact to sum.
MAX_LOOSE_VALUES = 1 << 20
_COLUMNS = ["checkpoint_id", "architecture_id", "shard_id", "shard_row", "state"]


def loose_blocks(snapshot: Snapshot, known: Mapping[str, Any], decode: Decode) -> Iterator[Block]:
    """Rows of `population_weights` of checkpoints that are in no population.

    Args:
        snapshot: what is committed.
        known: values that columns must have.
        decode: stored bytes of a dtype as float32.
    """
    rows = snapshot.table("checkpoints", _COLUMNS)
    wanted = pc.and_(pc.is_null(rows.column("shard_id")), pc.equal(rows.column("state"), "stored"))
    for column in {"checkpoint_id", "architecture_id"} & known.keys():
        wanted = pc.and_(
            wanted, pc.equal(rows.column(column), pa.scalar(known[column], pa.string()))
        )
    rows = rows.filter(wanted)
    if not rows.num_rows:
        return
    reader = Reader(snapshot)
    ids = rows.column("architecture_id").unique().to_pylist()
    small = [architecture for architecture in ids if _fits(reader, architecture)]
    rows = rows.filter(
        pc.is_in(rows.column("architecture_id"), value_set=pa.array(small, pa.string()))
    )
    for architecture, gatherer in gatherers(reader, rows).items():
        own = rows.filter(pc.equal(rows.column("architecture_id"), architecture))
        yield _block(own, architecture, gatherer, decode)


def _fits(reader: Reader, architecture: str) -> bool:
    """Whether the weights of an architecture are numbers, and few enough to be one list."""
    vector = reader.vector(architecture)
    plain = item_size(vector.dtype) is not None and not vector.dtype.startswith(
        ("complex", "float4")
    )
    return plain and 0 < vector.width <= MAX_LOOSE_VALUES


def _block(rows: pa.Table, architecture: str, gatherer: Gatherer, decode: Decode) -> Block:
    width, dtype = gatherer.vector.width, gatherer.vector.dtype
    index = pa.table(
        {
            "checkpoint_id": rows.column("checkpoint_id"),
            "architecture_id": pa.repeat(pa.scalar(architecture, pa.string()), rows.num_rows),
        }
    )
    sizes = np.full(rows.num_rows, width, dtype=np.int64)

    def lists(chosen: Rows) -> pa.Array:
        flat = decode(gatherer.take_bytes(chosen).reshape(-1), dtype)
        return float_lists(flat, np.arange(len(chosen)) * width, sizes[chosen])

    return Block(index, sizes, lists)
