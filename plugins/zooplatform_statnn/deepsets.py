"""DeepSets over weights (Zaheer et al., 2017): every weight is embedded with what layer it is of, and averaged.

Legend for shapes: B networks, P values of one network, n values of one layer, H hidden units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from zooplatform.interfaces import LAYER_TYPES
from zooplatform_statnn.inputs import raw_weights
from zooplatform_statnn.layers import plan_layers
from zooplatform_statnn.nets import Net
from zooplatform_statnn.predictor import InputsPredictor
from zooplatform_statnn.settings import SetSettings
from zooplatform_statnn.spaces import ENCODERS

if TYPE_CHECKING:
    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout

__all__ = ["DeepSets", "SetEncoder"]

# Values of 0.2 and above are compressed: of trained networks most are smaller.
_GAIN = 5.0
# In training a layer is represented by this many of its weights, drawn anew in every step.
_SAMPLED = 256
# This many values are embedded at once, so that large networks fit.
_AT_ONCE = 1 << 20


class SetEncoder(nn.Module):
    """Weights and biases of each layer to a vector, the vectors of all layers to one: no order of units matters.

    Layers are told apart by their type, their depth and whether the values are biases, so that networks of any
    architecture are read by one encoder.
    """

    def __init__(self, settings: SetSettings) -> None:
        super().__init__()
        hidden = settings.width
        self.width = 2 * hidden
        self.type_encoding = nn.Embedding(2 * len(LAYER_TYPES), hidden)
        self.depth_encoding = nn.Linear(3, hidden)
        self.value = nn.Linear(2, hidden)
        self.element = nn.Sequential(
            *(
                module
                for _ in range(settings.depth - 1)
                for module in (nn.GELU(), nn.Linear(hidden, hidden))
            ),
            nn.GELU(),
        )
        self.layer = nn.Sequential(
            nn.LayerNorm(2 * hidden),
            nn.Linear(2 * hidden, 2 * hidden),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(2 * hidden, 2 * hidden),
        )
        self.last = nn.Sequential(nn.LayerNorm(2 * hidden), nn.GELU(), nn.Dropout(settings.dropout))

    def forward(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        """(B, 2 H) of weights (B, P) of architecture `vector`."""
        assert vector is not None
        found = []
        for plan in plan_layers(vector):
            for is_bias, pieces in enumerate((plan.weights, plan.biases)):
                if not pieces:
                    continue
                values = torch.cat([inputs[:, p.start : p.start + p.size] for p in pieces], dim=1)
                kind = torch.tensor(2 * plan.type + is_bias, device=inputs.device)
                depth = torch.tensor(
                    [plan.depth, float(plan.depth == 0), float(plan.depth == 1)],
                    device=inputs.device,
                )
                encoding = self.type_encoding(kind) + self.depth_encoding(depth)
                found.append(self.layer(self._pooled(values, encoding)))
        total: torch.Tensor = self.last(torch.stack(found).mean(dim=0))
        return total

    def _pooled(self, values: torch.Tensor, encoding: torch.Tensor) -> torch.Tensor:
        """(B, 2 H) mean and deviation of the embedded values (B, n)."""
        if self.training and values.shape[1] > _SAMPLED:
            values = values[:, torch.randint(values.shape[1], (_SAMPLED,), device=values.device)]
        count = values.shape[1]
        mean = square = torch.zeros((), device=values.device)
        step = max(1, _AT_ONCE // len(values))
        for piece in torch.split(torch.asinh(_GAIN * values), step, dim=1):
            pair = torch.stack([piece, piece.square()], dim=2)
            embedded = self.element(self.value(pair) + encoding)
            mean = mean + embedded.sum(dim=1) / count
            square = square + embedded.square().sum(dim=1) / count
        spread = (square - mean.square()).clamp_min(1e-6).sqrt()
        return torch.cat([mean, spread], dim=1)


class DeepSets(InputsPredictor[SetSettings]):
    """Weights as sets, layer by layer: for any mix of architectures."""

    NAME = "deepsets"
    SETTINGS = SetSettings
    SPACE = ENCODERS
    PER_ARCHITECTURE = False

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        plan_layers(batch.vector)
        return raw_weights(batch)

    def learner(self, settings: SetSettings) -> Net:
        return Net(settings, lambda _, __: SetEncoder(settings))
