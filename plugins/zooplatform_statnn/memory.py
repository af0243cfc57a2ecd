"""What was computed of networks, kept by the content of their weights.

A network is asked about by several models of an ensemble, several seeds and several targets; what all of them read is
computed once. Legend for shapes: B networks.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout

__all__ = ["remembered"]

# Values of a slice of a batch: its intermediate arrays stay in the cache of a core, and bounded for large networks.
_SLICE_VALUES = 1 << 21


class _Memory:
    """Rows by the content of weights; those not asked for longest go when it is full."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._rows: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes) -> npt.NDArray[np.float32] | None:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: npt.NDArray[np.float32]) -> None:
        if key not in self._rows:
            self._rows[key] = row
            self._bytes += row.nbytes
        while self._bytes > self.most_bytes:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes


_MEMORY = _Memory(512 << 20)


def remembered(
    batch: NetworkBatch,
    kind: str,
    shape: tuple[int, ...],
    compute: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """(B, *shape) float32 on the CPU, computed for networks that are not known yet.

    Args:
        batch: the networks.
        kind: names what is computed, and how: other code needs another name.
        shape: of what is computed for one network.
        compute: from weights (b, P), in their dtype, to (b, *shape); each row depends on its network alone.
    """
    weights = batch.weights.detach().cpu().contiguous()
    # Ids alone would not do: a zoo that is grown again gives the same ids to other weights.
    keys = _digests(weights, kind, batch.vector)
    values = np.empty((len(keys), *shape), np.float32)
    missing = []
    for at, key in enumerate(keys):
        known = _MEMORY.get(key)
        if known is None:
            missing.append(at)
        else:
            values[at] = known
    step = max(1, _SLICE_VALUES // max(1, weights.shape[1]))
    for start in range(0, len(missing), step):
        rows = missing[start : start + step]
        found = compute(weights[rows]).numpy()
        values[rows] = found
        for at, row in zip(rows, found, strict=True):
            _MEMORY.put(keys[at], row.copy())
    return torch.from_numpy(values)


def _digests(weights: torch.Tensor, kind: str, vector: VectorLayout) -> list[bytes]:
    head = f"{kind} {hash(vector.fields)} ".encode()
    size = weights.element_size() * weights.shape[1]
    data = weights.view(torch.uint8).numpy().reshape(-1).data
    return [
        head + xxhash.xxh3_128_digest(data[at * size : (at + 1) * size])
        for at in range(len(weights))
    ]
