"""Where the checkpoints of a snapshot lie, as arrays: what a population is put together from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.errors import UnknownIdError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.catalog.snapshot import Snapshot

__all__ = ["PLACE_COLUMNS", "Places"]

PLACE_COLUMNS = ["checkpoint_id", "shard_id", "shard_row"]
# Up to so many checkpoints their ids are kept as a dictionary, some 100 bytes each, once several are asked for.
_INDEXED_IDS = 1 << 18


@dataclass(frozen=True)
class Places:
    """Where N checkpoints lie.

    Attributes:
        ids: (N,) of all checkpoints.
        shards: ids of the population shards that hold some of them, sorted.
        shard_of: (N,) which of these; -1 for what is stored tensor by tensor, or not at all.
        row_of: (N,) row there.
    """

    ids: pa.ChunkedArray
    shards: list[str]
    shard_of: npt.NDArray[np.int64]
    row_of: npt.NDArray[np.int64]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Places:
        """All checkpoints of a snapshot, in the order of its table."""
        table = snapshot.table("checkpoints", PLACE_COLUMNS, keep=True)
        encoded = table.column("shard_id").combine_chunks().dictionary_encode()
        ranks = pc.rank(encoded.dictionary).to_numpy().astype(np.int64) - 1
        codes = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
        return cls(
            table.column("checkpoint_id"),
            sorted(encoded.dictionary.to_pylist()),
            # One rank more, which the code -1 of those without a shard picks.
            np.append(ranks, -1)[codes],
            table.column("shard_row").fill_null(-1).to_numpy().astype(np.int64),
        )

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Where `ids` are among all.

        Raises:
            UnknownIdError: one is not.
        """
        if len(self.ids) <= _INDEXED_IDS:
            try:
                return np.fromiter(map(self._index.__getitem__, ids), np.int64, len(ids))
            except KeyError as exc:
                raise UnknownIdError("checkpoint", str(exc.args[0])) from None
        at = pc.index_in(pa.array(ids, type=pa.string()), value_set=self.ids.combine_chunks())
        if at.null_count:
            missing = next(i for i, found in zip(ids, at.to_pylist(), strict=True) if found is None)
            raise UnknownIdError("checkpoint", missing)
        found: npt.NDArray[np.int64] = at.to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    def as_stored(self) -> npt.NDArray[np.int64] | None:
        """The order by shard and row; None for what is in it."""
        shards, rows = np.diff(self.shard_of), np.diff(self.row_of)
        if bool(((shards > 0) | (shards == 0) & (rows > 0)).all()):
            return None
        return np.lexsort((self.row_of, self.shard_of))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {checkpoint: at for at, checkpoint in enumerate(self.ids.to_pylist())}
