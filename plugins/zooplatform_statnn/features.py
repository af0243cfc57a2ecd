"""Statistics of the layers of networks, a batch at a time.

    found = layer_statistics(batch, "rich")
    found.values    # (B, L, F) float32, finite
    found.names     # F names; `describe("rich")` says what each of them is

Every layer of every architecture has the same F statistics; what a layer does not have is 0, and flags say so. They are
invariant under any order of the hidden units. Legend for shapes: B networks, L layers that carry weights, F statistics.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import xxhash

from zooplatform.errors import ConfigError
from zooplatform_statnn.chains import (
    CHAIN_MEANINGS,
    LINK_MEANINGS,
    chain_statistics,
    link_statistics,
)
from zooplatform_statnn.groups import PLAIN_GROUPS, RICH_GROUPS
from zooplatform_statnn.layers import plan_layers
from zooplatform_statnn.views import LARGEST, LayerView

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout
    from zooplatform_statnn.groups import Group
    from zooplatform_statnn.layers import LayerPlan

__all__ = ["Kind", "LayerStatistics", "describe", "layer_statistics"]

Kind = Literal["plain", "rich"]

_GROUPS: dict[Kind, tuple[Group, ...]] = {"plain": PLAIN_GROUPS, "rich": RICH_GROUPS}
# Values of a slice of a batch: its intermediate arrays stay in the cache of a core, and bounded for large networks.
_SLICE_VALUES = 1 << 21


class LayerStatistics(NamedTuple):
    """Statistics of B networks of one architecture.

    Attributes:
        values: (B, L, F) float32, finite.
        names: F names.
        layer_types: (L,) int64, index into `LAYER_TYPES`.
        depth: (L,) float32, 0 for the first layer, 1 for the last.
    """

    values: torch.Tensor
    names: tuple[str, ...]
    layer_types: torch.Tensor
    depth: torch.Tensor


@lru_cache(maxsize=2)
def describe(kind: Kind) -> dict[str, str]:
    """What each statistic is, by its name, in the order of `LayerStatistics.names`.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in _GROUPS:
        raise ConfigError(f"No statistics are called {kind!r}. Choose plain or rich.")
    found: dict[str, str] = {}
    for group in _GROUPS[kind]:
        found.update(group.meanings)
    if kind == "rich":
        found.update(LINK_MEANINGS)
        found.update(CHAIN_MEANINGS)
    return found


def layer_statistics(batch: NetworkBatch, kind: Kind) -> LayerStatistics:
    """Statistics of every layer of every network of a batch.

    They are kept in memory, up to a bound, so that a network is looked at once however often it is asked for.

    Args:
        batch: networks of any dtype; their statistics are taken in float32 on the CPU.
        kind: `plain` (Unterthiner et al., 2020: mean, variance and quantiles) or `rich`.

    Raises:
        ConfigError: the layers of the architecture are not known, or there is no such kind.
    """
    names = tuple(describe(kind))
    plans = plan_layers(batch.vector)
    values = _remembered(batch, kind, plans, len(names))
    return LayerStatistics(
        torch.from_numpy(values),
        names,
        torch.tensor([plan.type for plan in plans]),
        torch.tensor([plan.depth for plan in plans], dtype=torch.float32),
    )


def _compute(rows: torch.Tensor, plans: Sequence[LayerPlan], kind: Kind) -> torch.Tensor:
    """(B, L, F) of weights (B, P)."""
    rows = rows.detach().to("cpu", torch.float32)
    bad = ~(rows.abs() <= LARGEST)
    if bad.any():
        rows = rows.nan_to_num(0.0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)
    views = [LayerView(plan, rows, bad) for plan in plans]
    layers = []
    chains = chain_statistics(views) if kind == "rich" else []
    matrices = [at for at, plan in enumerate(plans) if plan.is_matrix]
    for at, view in enumerate(views):
        parts = []
        for group in _GROUPS[kind]:
            found = group.compute(view)
            parts.append(torch.zeros(len(rows), len(group.names)) if found is None else found)
        if kind == "rich":
            parts += [link_statistics(view, _after(at, matrices, views)), chains[at]]
        layers.append(torch.cat(parts, dim=1))
    return torch.stack(layers, dim=1)


def _after(at: int, matrices: Sequence[int], views: Sequence[LayerView]) -> LayerView | None:
    """The layer that reads the units of layer `at`."""
    if at not in matrices or at == matrices[-1]:
        return None
    after = views[matrices[matrices.index(at) + 1]]
    return after if after.plan.follows else None


# --- memory ---------------------------------------------------------------------------------------


class _Memory:
    """Statistics of networks by the content of their weights; those not asked for longest go when it is full."""

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


def _remembered(
    batch: NetworkBatch, kind: Kind, plans: Sequence[LayerPlan], num_features: int
) -> npt.NDArray[np.float32]:
    weights = batch.weights.detach().cpu().contiguous()
    # Ids alone would not do: a zoo that is grown again gives the same ids to other weights.
    keys = _digests(weights, kind, batch.vector)
    values = np.empty((len(keys), len(plans), num_features), np.float32)
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
        found = _compute(weights[rows], plans, kind).numpy()
        values[rows] = found
        for at, row in zip(rows, found, strict=True):
            _MEMORY.put(keys[at], row.copy())
    return values


def _digests(weights: torch.Tensor, kind: Kind, vector: VectorLayout) -> list[bytes]:
    head = f"{kind} {hash(vector.fields)} ".encode()
    size = weights.element_size() * weights.shape[1]
    data = weights.view(torch.uint8).numpy().reshape(-1).data
    return [
        head + xxhash.xxh3_128_digest(data[at * size : (at + 1) * size])
        for at in range(len(weights))
    ]
