"""Statistics of the layers of networks, a batch at a time.

    found = layer_statistics(batch, "rich")
    found.values    # (B, L, F) float32, finite
    found.names     # F names; `describe("rich")` says what each of them is

Every layer of every architecture has the same F statistics; what a layer does not have is 0, and flags say so. They are
invariant under any order of the hidden units. Legend for shapes: B networks, L layers that carry weights, F statistics.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from zooplatform.errors import ConfigError
from zooplatform_statnn.chains import (
    CHAIN_MEANINGS,
    LINK_MEANINGS,
    chain_statistics,
    link_statistics,
)
from zooplatform_statnn.groups import PLAIN_GROUPS, RICH_GROUPS
from zooplatform_statnn.layers import plan_layers
from zooplatform_statnn.memory import remembered
from zooplatform_statnn.views import LARGEST, LayerView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.interfaces import NetworkBatch
    from zooplatform_statnn.groups import Group
    from zooplatform_statnn.layers import LayerPlan

__all__ = ["Kind", "LayerStatistics", "describe", "layer_statistics"]

Kind = Literal["plain", "rich"]

_GROUPS: dict[Kind, tuple[Group, ...]] = {"plain": PLAIN_GROUPS, "rich": RICH_GROUPS}


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
    values = remembered(
        batch, kind, (len(plans), len(names)), lambda rows: _compute(rows, plans, kind)
    )
    return LayerStatistics(
        values,
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
