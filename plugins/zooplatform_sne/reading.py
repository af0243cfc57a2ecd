"""Networks as functions: inputs sent through the chain of layers that the weights describe.

Weights do not tell strides, padding, pooling and activation, so one fixed reading stands for all networks: every
convolution keeps the middle of its kernel on every second position while the map is larger than one, maps are averaged
to the positions that the next linear layer has, and what activates the units is the caller's choice. What that reading
loses is the same for all networks of an architecture.

`ACTIVATIONS` are what they are read with: one that cuts below, one that saturates. Straight lines cut at -1 and 1 stand
for tanh, which takes longer than all the rest.

Legend for shapes: B networks, P values of one, K inputs, S side of an input, O outputs, C channels or units.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from zooplatform_sne.chains import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zooplatform.layout import VectorLayout
    from zooplatform_sne.chains import Joint

__all__ = ["ACTIVATIONS", "CHANNELS", "INPUTS_AT_ONCE", "logits", "readable_chain"]

ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    functional.relu,
    functional.hardtanh,
)
CHANNELS = 3  # of inputs; a network with fewer takes the first
INPUTS_AT_ONCE = 512  # of all networks together: maps of more leave the caches
_LARGEST = 1 << 24  # values of a chain that is still worth reading
_EPS = 1e-5  # of batch normalisation


def logits(
    inputs: torch.Tensor, weights: torch.Tensor, chain: Sequence[Joint]
) -> list[torch.Tensor]:
    """(B, K, O) for each of `ACTIVATIONS`: what networks (B, P) give for inputs (K, channels, S, S)."""
    first = _apply(_first_inputs(inputs, chain[0]), weights, chain[0], shared=True)
    found = []
    for activation in ACTIVATIONS:
        maps = first
        for joint in chain[1:]:
            maps = _apply(activation(maps), weights, joint, shared=False)
        if maps.dim() == 5:
            maps = maps.mean(dim=(3, 4))
        found.append(maps.transpose(0, 1))
    return found


def readable_chain(vector: VectorLayout) -> tuple[Joint, ...] | None:
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
