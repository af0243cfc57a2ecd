"""Learned inputs sent through the network that the weights describe: an encoder that asks a network what it does.

K inputs are learned together with the head. They go through the chain of convolutions and linear layers that holds most
of the weights, and what comes out, K times the O classes, is all that is read. So the encoder sees the function and not
its parametrisation, and no permutation of hidden units changes anything beyond rounding. Learned probes for weight
space: Herrmann et al., Learning Useful Representations of Recurrent Neural Network Weight Matrices (ICML 2024); Kofinas
et al., Graph Neural Networks for Learning Equivariant Representations of Neural Networks (ICLR 2024, probe features);
Kahana et al., Deep Linear Probe Generators for Weight Space Learning (2024).

Weights do not tell strides, padding, pooling and activation, so one fixed reading stands for all networks: every
convolution keeps the middle of its kernel on every second position while the map is larger than one, maps are averaged
to the positions that the next linear layer has, and everything is computed once with ReLU and once with tanh. What that
reading loses is the same for all networks of an architecture, and the probes are learned through it.

Classes are told apart by their position, so probes know the classes of the data they are fitted on: what they predict
does not carry over to other data sets (see `fusion`).

Legend for shapes: B networks, P values of one, K probes, S side of a probe, O outputs, C channels or units, d size of
the embedding.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from zooplatform.errors import ConfigError
from zooplatform_sne.chains import plan_of
from zooplatform_sne.encoder import NetworkEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout
    from zooplatform_sne.chains import Joint

__all__ = ["ProbeEncoder"]

_ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (functional.relu, torch.tanh)
_CHANNELS = 3  # of the learned inputs; a network with fewer takes the first
_FLOOR = -12.0  # of logarithms of class probabilities
_LARGEST = 1 << 24  # values of a chain that is still worth probing
_AT_ONCE = 512  # probes of all networks together: maps of more leave the caches
_EPS = 1e-5  # of batch normalisation


class ProbeEncoder(NetworkEncoder):
    """Outputs on learned inputs, then a perceptron.

    Args:
        dim: d.
        probes: K.
        side: S, pixels.
        classes: outputs that are told apart, two at least; more are left out, fewer are filled with zeros.
        hidden: of the perceptron.
        dropout: in it.
        probe_noise: standard deviation of what is added to the probes in training, in units of an input's range.
        probe_rate: how much faster probes are learned than the rest.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        probes: int = 16,
        side: int = 16,
        classes: int = 10,
        hidden: int = 128,
        dropout: float = 0.2,
        probe_noise: float = 0.0,
        probe_rate: float = 5.0,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ConfigError(f"classes is {classes}; use a whole number from 2 on.")
        self.dim, self.classes = dim, classes
        self.noise, self.rate = probe_noise, probe_rate
        # AdamW moves every number by the learning rate, whatever its gradient: numbers of this size are learned
        # `probe_rate` times as fast relative to what they do.
        self.inputs = nn.Parameter(torch.randn(probes, _CHANNELS, side, side) / probe_rate)
        width = probes * classes * len(_ACTIVATIONS)
        self.read = nn.Sequential(
            nn.LayerNorm(width + 1),
            nn.Linear(width + 1, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
        )

    def prepare(self, batch: NetworkBatch) -> dict[str, torch.Tensor]:
        plan_of(batch.vector)  # refuses what cannot be read before any time is spent
        if _chain(batch.vector) is None:
            return {"weights": batch.weights[:, :1].to(torch.float32)}
        return {"weights": batch.weights.to(torch.float32)}

    def forward(self, prepared: Mapping[str, torch.Tensor], vector: VectorLayout) -> torch.Tensor:
        weights = prepared["weights"]
        at_once = max(1, _AT_ONCE // len(self.inputs))
        if len(weights) > at_once:
            parts = [self({"weights": part}, vector) for part in torch.split(weights, at_once)]
            return torch.cat(parts)
        chain = _chain(vector)
        width = len(self.inputs) * self.classes
        if chain is None:  # nothing was asked, and the last value says so
            answers = weights.new_zeros(len(weights), width * len(_ACTIVATIONS) + 1)
        else:
            first = _apply(_first_inputs(self._shown(), chain[0]), weights, chain[0], shared=True)
            asked = [self._answers(first, weights, chain[1:], act) for act in _ACTIVATIONS]
            answers = torch.cat([*asked, weights.new_ones(len(weights), 1)], dim=1)
        embedded: torch.Tensor = self.read(answers)
        return embedded

    def _answers(
        self,
        maps: torch.Tensor,
        weights: torch.Tensor,
        chain: Sequence[Joint],
        activation: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """(B, K classes): logarithms of class probabilities, from what the first layer gives."""
        for joint in chain:
            maps = _apply(activation(maps), weights, joint, shared=False)
        if maps.dim() == 5:
            maps = maps.mean(dim=(3, 4))
        logits = maps.transpose(0, 1)  # (B, K, O)
        if logits.shape[2] == 1:  # a single output is the logit of one class against another
            logits = functional.pad(logits, (0, 1))
        if logits.shape[2] > self.classes:
            logits = logits[:, :, : self.classes]
        answers = torch.log_softmax(logits, dim=-1).clamp(_FLOOR, 0)
        return functional.pad(answers, (0, self.classes - answers.shape[2])).flatten(1)

    def _shown(self) -> torch.Tensor:
        """(K, channels, S, S) in the range of grey levels."""
        shown = torch.sigmoid(2 * self.rate * self.inputs)
        if self.training and self.noise:
            shown = (shown + self.noise * torch.randn_like(shown)).clamp(0, 1)
        return shown


def _chain(vector: VectorLayout) -> tuple[Joint, ...] | None:
    """The longest way from an input to outputs, if it holds most of the weights."""
    plan = plan_of(vector)
    sizes = [sum(joint.size for joint in chain) for chain in plan.chains]
    if not sizes or max(sizes) > _LARGEST or 2 * max(sizes) < vector.width:
        return None
    chain = plan.chains[sizes.index(max(sizes))]
    return chain if len(chain) > 1 else None


def _first_inputs(shown: torch.Tensor, joint: Joint) -> torch.Tensor:
    """(K, C, S, S) for a convolution, (K, C) for a linear layer, as many channels or inputs as it takes."""
    number, channels, side, _ = shown.shape
    if joint.positions > 1 and not joint.flattened:
        repeats = -(-joint.inputs // channels)
        return shown.repeat(1, repeats, 1, 1)[:, : joint.inputs]
    size = isqrt(joint.inputs)
    if size * size == joint.inputs:  # a flattened grey image
        return functional.interpolate(shown[:, :1], (size, size), mode="bilinear").flatten(1)
    flat = shown[:, :1].reshape(number, 1, side * side)
    return functional.interpolate(flat, joint.inputs, mode="linear").flatten(1)


def _apply(
    maps: torch.Tensor, weights: torch.Tensor, joint: Joint, *, shared: bool
) -> torch.Tensor:
    """One layer on (K, C, S, S) or (K, C) that all networks share, or (K, B, C, S, S) or (K, B, C)."""
    number = len(weights)
    raw = weights[:, joint.offset : joint.offset + joint.size]
    if joint.positions > 1 and not joint.flattened:
        kernels = raw.reshape(number * joint.outputs, joint.inputs, *joint.kernel)
        side, bias = maps.shape[-1], joint.unit_values[0]
        joined = maps if shared else maps.flatten(1, 2)
        out = functional.conv2d(
            joined,
            kernels,
            None if bias < 0 else weights[:, bias : bias + joint.outputs].flatten(),
            stride=2 if side > 1 else 1,
            padding=tuple(size // 2 for size in joint.kernel),
            groups=1 if shared else number,
        )
        out = out.view(len(out), number, joint.outputs, *out.shape[2:])
        return _unit_values(out, weights, joint, slots=(1,))
    if maps.dim() == 5:  # to as many positions as the layer has for each channel
        probes, _, channels, *_ = maps.shape
        pooled = functional.adaptive_avg_pool2d(maps.flatten(1, 2), joint.kernel)
        maps = pooled.reshape(probes, number, channels * joint.positions)
    matrix = raw.reshape(number, joint.outputs, joint.inputs * joint.positions)
    form = "ki,boi->kbo" if shared else "kbi,boi->kbo"
    return _unit_values(torch.einsum(form, maps, matrix), weights, joint)


def _unit_values(
    out: torch.Tensor, weights: torch.Tensor, joint: Joint, slots: tuple[int, ...] = (0, 1)
) -> torch.Tensor:
    """(K, B, O, ...) with normalisation of the output units and those of their two biases that `slots` names."""

    def column(slot: int) -> torch.Tensor | None:
        offset = joint.unit_values[slot]
        if offset < 0:
            return None
        values = weights[:, offset : offset + joint.outputs]
        return values if out.dim() == 3 else values[..., None, None]

    for slot in slots:
        bias = column(slot)
        out = out if bias is None else out + bias
    gain, shift, mean, variance = (column(slot) for slot in (2, 3, 4, 5))
    if mean is not None:
        out = out - mean
    if variance is not None:
        out = out * (variance.clamp_min(0) + _EPS).rsqrt()
    if gain is not None:
        out = out * gain
    return out if shift is None else out + shift
