"""What the backends read off networks: statistics layer by layer, statistics over layers, or the weights.

Legend for shapes: B networks, L layers, F statistics, P values of one network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zooplatform.interfaces import LAYER_TYPES
from zooplatform_statnn.features import layer_statistics
from zooplatform_statnn.learners import Table
from zooplatform_statnn.views import LARGEST

if TYPE_CHECKING:
    from zooplatform.interfaces import NetworkBatch
    from zooplatform_statnn.features import Kind

__all__ = ["layers_aggregated", "layers_flat", "merged", "raw_weights"]

_NORM = LAYER_TYPES.index("norm")


def layers_flat(batch: NetworkBatch, kind: Kind) -> torch.Tensor:
    """(B, L * F) the statistics of all layers."""
    return layer_statistics(batch, kind).values.flatten(1)


def layers_aggregated(batch: NetworkBatch, kind: Kind) -> torch.Tensor:
    """(B, 4 * F) mean, deviation, first and last over the layers, those of norms left out where there are others."""
    found = layer_statistics(batch, kind)
    chosen = found.layer_types != _NORM
    values = found.values[:, chosen] if chosen.any() else found.values
    return torch.cat(
        [values.mean(dim=1), values.std(dim=1, correction=0), values[:, 0], values[:, -1]], dim=1
    )


def raw_weights(batch: NetworkBatch) -> torch.Tensor:
    """(B, P) the weights as float32; what is no finite number becomes one."""
    weights = batch.weights.detach().to("cpu", torch.float32)
    return weights.nan_to_num(0.0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)


def merged(tables: list[Table]) -> list[Table]:
    """Tables of inputs that mean the same for every architecture, as one."""
    return [
        Table(torch.cat([t.inputs for t in tables]), torch.cat([t.targets for t in tables])),
    ]
