"""A permutation-equivariant network over the weights of networks (Zhou et al., 2023, arXiv 2302.14040), from the paper.

The layers of a network, each a convolution or linear, are a chain of weights W(i) and biases b(i); permuting the units
between them changes nothing of its function. An equivariant layer maps C features of every weight and bias to C' others
and commutes with these permutations: it is linear in the entry itself and in all means over rows and columns that the
same units index.

    W'(i)_jk = W(i)_jk, W(i)_*k, W(i)_j*, W(i+1)_*j, W(i-1)_k*, b(i)_j, b(i-1)_k, and W(s)_**, b(s)_* of every layer s
    b'(i)_j  = b(i)_j, W(i)_j*, W(i+1)_*j, and W(s)_**, b(s)_* of every layer s

each times a C' x C matrix of its own; `*` is the mean over that index. Taps of a kernel are features of a weight. The
variant `np` also lets the inputs and outputs of the network be permuted; `hnp`, as in the paper, gives these an order:
their entries become features of the weights of the first and last layer, so that any linear map among them is there.

Legend for shapes: B networks, C features, O output units, I input units, K taps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from zooplatform.errors import ConfigError
from zooplatform.interfaces import LAYER_TYPES
from zooplatform.layout import architecture_id
from zooplatform_statnn.inputs import raw_weights
from zooplatform_statnn.layers import plan_layers
from zooplatform_statnn.nets import Net
from zooplatform_statnn.predictor import InputsPredictor
from zooplatform_statnn.settings import EquivariantSettings
from zooplatform_statnn.spaces import ENCODERS

if TYPE_CHECKING:
    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout
    from zooplatform_statnn.layers import LayerPlan

__all__ = ["NFN", "EquivariantEncoder", "EquivariantLayer", "chain_of"]

_GAIN = 5.0

Features = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each layer: of its weights (B, O, I, C), of its biases (B, O, C)."""


def chain_of(vector: VectorLayout) -> tuple[LayerPlan, ...]:
    """The layers of an architecture that is a chain of convolutions and linear layers.

    Raises:
        ConfigError: it is none.
    """
    plans = plan_layers(vector)
    for at, plan in enumerate(plans):
        kind = LAYER_TYPES[plan.type]
        reason = ""
        if kind not in ("conv", "linear") or len(plan.weights) != 1:
            reason = f"{plan.name} is of a layer of type {kind}"
        elif at and not plan.follows:
            reason = f"the inputs of {plan.name} are not the units of the layer before"
        elif len(plan.biases) > 1 or (plan.biases and plan.biases[0].size != plan.shape[0]):
            reason = f"the layer of {plan.name} has more than one bias per unit"
        if reason:
            raise ConfigError(
                f"Predictor 'nfn' reads chains of convolutions and linear layers; of architecture "
                f"{architecture_id(vector.layout)}, {reason}. Use rich, aggregate-rich or deepsets."
            )
    return plans


class EquivariantLayer(nn.Module):
    """One layer as above, on `layers` pairs of weights and biases, `features` to `features`."""

    def __init__(self, layers: int, features: int) -> None:
        super().__init__()
        self.layers = layers
        self.own_weight = nn.ModuleList(nn.Linear(features, features) for _ in range(layers))
        self.own_bias = nn.ModuleList(nn.Linear(features, features) for _ in range(layers))
        # What a row j and a column k of a weight get, and a bias: concatenated means in, so one matrix each.
        self.rows = nn.ModuleList(
            nn.Linear((3 if at < layers - 1 else 2) * features, features, bias=False)
            for at in range(layers)
        )
        self.columns = nn.ModuleList(
            nn.Linear((3 if at else 1) * features, features, bias=False) for at in range(layers)
        )
        self.bias_rows = nn.ModuleList(
            nn.Linear((2 if at < layers - 1 else 1) * features, features, bias=False)
            for at in range(layers)
        )
        self.everywhere = nn.Linear(2 * layers * features, 2 * layers * features, bias=False)

    def forward(self, given: Features) -> Features:
        over_rows = [weight.mean(dim=1) for weight, _ in given]  # (B, I, C): W_*k
        over_columns = [weight.mean(dim=2) for weight, _ in given]  # (B, O, C): W_j*
        means = [m for weight, bias in given for m in (weight.mean(dim=(1, 2)), bias.mean(dim=1))]
        shared = self.everywhere(torch.cat(means, dim=1)).chunk(2 * self.layers, dim=1)
        found = []
        for at, (weight, bias) in enumerate(given):
            row = [over_columns[at], bias]
            bias_row = [over_columns[at]]
            column = [over_rows[at]]
            if at < self.layers - 1:
                row.append(over_rows[at + 1])
                bias_row.append(over_rows[at + 1])
            if at:
                column += [over_columns[at - 1], given[at - 1][1]]
            rows = self.rows[at](torch.cat(row, dim=2))[:, :, None]
            columns = self.columns[at](torch.cat(column, dim=2))[:, None]
            new_weight = self.own_weight[at](weight) + rows + columns
            new_weight = new_weight + shared[2 * at][:, None, None]
            new_bias = self.own_bias[at](bias) + self.bias_rows[at](torch.cat(bias_row, dim=2))
            found.append((new_weight, new_bias + shared[2 * at + 1][:, None]))
        return found


class EquivariantEncoder(nn.Module):
    """Equivariant layers over the weights of one architecture, then means over all units."""

    def __init__(self, settings: EquivariantSettings, vector: VectorLayout) -> None:
        super().__init__()
        self.plans = chain_of(vector)
        self.ordered_ends = settings.variant == "hnp"
        hidden, layers = settings.width, len(self.plans)
        sizes = [self._sizes(at) for at in range(layers)]
        self.weight_in = nn.ModuleList(nn.Linear(size, hidden) for size, _ in sizes)
        self.bias_in = nn.ModuleList(nn.Linear(size, hidden) for _, size in sizes)
        self.body = nn.ModuleList(EquivariantLayer(layers, hidden) for _ in range(settings.depth))
        self.width = 4 * hidden
        self.out = nn.Sequential(
            nn.LayerNorm(2 * layers * hidden),
            nn.Linear(2 * layers * hidden, self.width),
            nn.GELU(),
            nn.Dropout(settings.dropout),
        )

    def _sizes(self, at: int) -> tuple[int, int]:
        """Features of a weight and of a bias of layer `at` as they come in."""
        out, inputs, taps = self.plans[at].shape
        of_weight, of_bias = taps, 1
        if self.ordered_ends and at == 0:
            of_weight *= inputs
        if self.ordered_ends and at == len(self.plans) - 1:
            of_weight, of_bias = of_weight * out, out
        return of_weight, of_bias

    def features(self, inputs: torch.Tensor) -> Features:
        """Weights (B, P) as they come in: entries that have an order are features."""
        found = []
        inputs = torch.asinh(_GAIN * inputs)
        for at, plan in enumerate(self.plans):
            piece = plan.weights[0]
            weight = inputs[:, piece.start : piece.start + piece.size].reshape(-1, *plan.shape)
            if plan.biases:
                bias = inputs[:, plan.biases[0].start : plan.biases[0].start + plan.shape[0]]
            else:
                bias = torch.zeros(len(inputs), plan.shape[0], device=inputs.device)
            bias = bias[:, :, None]
            if self.ordered_ends and at == 0:
                weight = weight.flatten(2)[:, :, None]
            if self.ordered_ends and at == len(self.plans) - 1:
                weight = weight.transpose(1, 2).flatten(2)[:, None]
                bias = bias.transpose(1, 2)
            found.append((weight, bias))
        return found

    def equivariant(self, inputs: torch.Tensor) -> Features:
        """What the last equivariant layer gives of weights (B, P)."""
        given = self.features(inputs)
        current = [
            (self.weight_in[at](weight), self.bias_in[at](bias))
            for at, (weight, bias) in enumerate(given)
        ]
        for layer in self.body:
            # A residual path: without normalisation, deep stacks of means fade.
            new = layer([(torch.relu(weight), torch.relu(bias)) for weight, bias in current])
            current = [(w + x, b + y) for (w, b), (x, y) in zip(current, new, strict=True)]
        return current

    def forward(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        pooled = [
            m
            for weight, bias in self.equivariant(inputs)
            for m in (torch.relu(weight).mean(dim=(1, 2)), torch.relu(bias).mean(dim=1))
        ]
        found: torch.Tensor = self.out(torch.cat(pooled, dim=1))
        return found


class NFN(InputsPredictor[EquivariantSettings]):
    """Permutation-equivariant layers over weights: chains of convolutions and linear layers."""

    NAME = "nfn"
    SETTINGS = EquivariantSettings
    SPACE = ENCODERS

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        chain_of(batch.vector)
        return raw_weights(batch)

    def learner(self, settings: EquivariantSettings) -> Net:
        def make(_: int, vector: VectorLayout | None) -> EquivariantEncoder:
            assert vector is not None
            return EquivariantEncoder(settings, vector)

        return Net(settings, make)
