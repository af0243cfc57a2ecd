"""Many networks of one shape as one network: grouped convolutions and batched matrix products.

Legend for shapes: M networks of a stack, A of them active (the first ones), B images of a batch, C
channels of one network, H and W height and width, F features, K classes, P parameters of one
network. Images of a stack are (B, A*C, H, W) in channels-last memory, in which network a holds the
channels [a*C, (a+1)*C); vectors are (A, B, F).

Three things were measured to matter on a CPU. Channels-last memory with one group per network makes
oneDNN's direct kernels apply to inputs that differ between networks, so that every network can have
its own batches. And those kernels are made for multiples of eight channels: padding the 6 of 8
channels of a network with zeros is faster than leaving them away. A third: biases are added apart
from the convolution, after max-pooling where that follows (which gives the same values), since
oneDNN's gradient of a bias costs as much as half that of a kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zooplatform.errors import ConfigError

__all__ = ["GroupedNetwork", "ParameterSlot", "parameter_slots"]

Drop = Callable[[tuple[int, int, int]], Tensor]

_BLOCK = 8  # channels that oneDNN's direct convolutions work on at once, at the least
_LAYERS = frozenset({"conv", "linear", "activation", "pool", "global_pool", "flatten", "dropout"})


@dataclass(frozen=True, slots=True)
class ParameterSlot:
    """Where a parameter lies in the row of a network: columns `start` to `end`, torch's shape."""

    name: str
    start: int
    end: int
    shape: tuple[int, ...]

    def rows(self, matrix: Tensor) -> Tensor:
        """The parameter of all rows of `matrix` (A, P), as a view (A, *shape)."""
        return torch.unflatten(matrix[:, self.start : self.end], 1, self.shape)


def parameter_slots(shapes: Sequence[tuple[str, Sequence[int]]]) -> tuple[ParameterSlot, ...]:
    """Slots of parameters that follow one another, from (name, shape) pairs."""
    slots, start = [], 0
    for name, shape in shapes:
        end = start + torch.Size(shape).numel()
        slots.append(ParameterSlot(name, start, end, tuple(shape)))
        start = end
    return tuple(slots)


class GroupedNetwork:
    """The forward pass of a stack, from the layers of a `cnn` or `mlp` configuration.

    Networks keep their own inputs, weights and dropout; nothing flows between them.

    Args:
        layers: `config["layers"]` of a built network, every default written out.
        activation: the default activation.
        slots: parameters of one network in the order of the layers, weight before bias.
        dropout: whether dropout is wanted at all. It stands where `layers` has it, or after every
            activation when `layers` has none.

    Raises:
        ConfigError: a layer or activation has no grouped form (`supports` tells beforehand).
    """

    def __init__(
        self,
        layers: Sequence[Mapping[str, Any]],
        activation: str | None,
        slots: Sequence[ParameterSlot],
        *,
        dropout: bool,
    ) -> None:
        if not self.supports(layers):
            raise ConfigError("This network has layers without a grouped form; use engine 'vmap'.")
        self.slots = tuple(slots)
        self._buffers: list[Tensor | None] = [None] * len(self.slots)
        self._padded: list[tuple[int, ...]] = []
        own_dropout = any(layer["type"] == "dropout" for layer in layers)
        self._steps: list[_Step] = []
        width, channels = 0, 0  # channels as stored, and how many of them are the network's own
        for layer in layers:
            kind, index = layer["type"], len(self._padded)
            if kind == "conv":
                own = self.slots[index].shape
                stored = _padded(own[0])
                kernel = (stored, width or own[1], *own[2:])
                bias = bool(layer.get("bias", True))
                self._padded += [kernel, (stored,)] if bias else [kernel]
                width, channels = stored, own[0]
                self._steps.append(_Step(kind, layer, index=index))
                if bias:
                    self._steps.append(_Step("bias", layer, index=index + 1))
            elif kind == "linear":
                bias = bool(layer.get("bias", True))
                self._padded += [slot.shape for slot in self.slots[index : index + 1 + bias]]
                self._steps.append(_Step(kind, layer, index=index, bias=bias))
            elif kind == "activation":
                function = _activation(layer.get("name") or activation or "")
                self._steps.append(_Step(kind, layer, function=function))
                if dropout and not own_dropout:
                    self._steps.append(_Step("dropout", layer))
            elif kind != "dropout" or dropout:
                self._steps.append(_Step(kind, layer, channels=channels))
                if kind == "pool" and layer.get("kind", "max") == "max":
                    self._bias_after_pool()
        if len(self._padded) != len(self.slots):
            raise ConfigError(
                f"The layers have {len(self._padded)} parameters, the state dict {len(self.slots)}."
            )

    def _bias_after_pool(self) -> None:
        """The largest value plus a bias is the largest of the values plus the bias."""
        if len(self._steps) > 1 and self._steps[-2].kind == "bias":
            self._steps[-2:] = self._steps[:-3:-1]

    @staticmethod
    def supports(layers: Sequence[Mapping[str, Any]]) -> bool:
        """Whether every layer can be stacked; normalisation and residual blocks cannot."""
        return all(layer["type"] in _LAYERS for layer in layers)

    def leaves(self, weights: Tensor) -> list[Tensor]:
        """The parameters in `weights` (A, P) as the layers want them, copied into reused memory.

        Kernels are (A*O, I, k, k) in channels-last memory, biases of convolutions (A*O,), with
        zeros for padding channels; linear weights (A, O, I).
        """
        active = weights.shape[0]
        leaves = []
        for index, (slot, shape) in enumerate(zip(self.slots, self._padded, strict=True)):
            buffer = self._buffers[index]
            if buffer is None or buffer.shape[0] < active or buffer.device != weights.device:
                # Kernels lie as (A, O, k, k, I).
                inner = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
                buffer = weights.new_zeros((active, *inner))
                self._buffers[index] = buffer
            own = self._own(buffer[:active], slot)
            own.copy_(slot.rows(weights))
            leaf = buffer[:active]
            if len(shape) == 4:
                leaf = leaf.flatten(0, 1).permute(0, 3, 1, 2)
            leaves.append(leaf.detach())
        return leaves

    def collect(self, gradients: Sequence[Tensor], into: Tensor) -> None:
        """Write gradients of `leaves` into `into` (A, P), padding channels left out."""
        active = into.shape[0]
        for slot, gradient in zip(self.slots, gradients, strict=True):
            if gradient.dim() == 4:
                gradient = torch.unflatten(gradient.permute(0, 2, 3, 1), 0, (active, -1))
            slot.rows(into).copy_(self._own(gradient, slot))

    @staticmethod
    def _own(values: Tensor, slot: ParameterSlot) -> Tensor:
        """The network's own part of a padded parameter, in torch's order (A, *shape)."""
        if values.dim() == 5:
            out, inputs = slot.shape[:2]
            return values.permute(0, 1, 4, 2, 3)[:, :out, :inputs]
        return values[:, : slot.shape[0]]

    def images(self, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Inputs (A, B, C*H*W) or, the same for all networks, (1, B, C*H*W), as the stack wants them."""
        channels, height, width = shape
        x = torch.unflatten(x, 2, (channels, height * width))
        x = x.permute(1, 3, 0, 2).contiguous()  # (B, H*W, A, C)
        return x.view(x.shape[0], height, width, -1).permute(0, 3, 1, 2)

    def logits(
        self, leaves: Sequence[Tensor], x: Tensor, active: int, drop: Drop | None = None
    ) -> Tensor:
        """Outputs (A, B, K).

        Args:
            leaves: of `leaves`, A networks.
            x: images (B, A*C, H, W) or vectors (A, B, F).
            active: A.
            drop: gives the factors of a dropout layer, 0 or 1 / (1 - p), for a shape (A, B, F).
        """
        for step in self._steps:
            x = step.run(x, leaves, active, drop)
        return x


def _padded(channels: int) -> int:
    # Below half a block the zeros would cost more than the direct kernels save.
    return channels if channels < _BLOCK // 2 else -(-channels // _BLOCK) * _BLOCK


@dataclass(frozen=True, slots=True)
class _Step:
    """One layer of the stack.

    `index` is the place of its weight (or, for the kind `bias`, of the bias of a convolution) among
    the leaves, `bias` whether a linear layer has one, `channels` how many channels of its input are
    not padding.
    """

    kind: str
    layer: Mapping[str, Any]
    index: int = -1
    bias: bool = False
    channels: int = 0
    function: Callable[[Tensor], Tensor] | None = None

    def run(self, x: Tensor, leaves: Sequence[Tensor], active: int, drop: Drop | None) -> Tensor:
        layer = self.layer
        if self.kind == "conv":
            stride, padding = layer.get("stride", 1), layer.get("padding", 0)
            return F.conv2d(x, leaves[self.index], None, stride, padding, groups=active)
        if self.kind == "bias":
            # In place, since neither convolutions nor pooling look at their results again.
            return x.add_(leaves[self.index].view(1, -1, 1, 1))
        if self.kind == "linear":
            weight = leaves[self.index].transpose(1, 2)
            if self.bias:
                return torch.baddbmm(leaves[self.index + 1].unsqueeze(1), x, weight)
            return torch.bmm(x, weight)
        if self.kind == "activation":
            return x if self.function is None else self.function(x)
        if self.kind == "pool":
            size, stride = layer.get("size", 2), layer.get("stride")
            pool = F.max_pool2d if layer.get("kind", "max") == "max" else F.avg_pool2d
            return pool(x, size, stride or size)
        if self.kind == "global_pool":
            pooled = x.mean((2, 3)) if layer.get("kind", "avg") == "avg" else x.amax((2, 3))
            return torch.unflatten(pooled, 1, (active, -1)).transpose(0, 1)[
                :, :, : self.channels or None
            ]
        if self.kind == "flatten":
            if x.dim() == 3:
                return x
            # Channels first within each network, as flattening one network's images does.
            x = torch.unflatten(x, 1, (active, -1)).transpose(0, 1)
            return x[:, :, : self.channels or None].flatten(2)
        return x if drop is None else x * _factors(x, active, drop)


def _factors(x: Tensor, active: int, drop: Drop) -> Tensor:
    """Dropout factors in the shape and memory order of `x`."""
    if x.dim() == 3:
        return drop((active, x.shape[1], x.shape[2]))
    batch, channels, height, width = x.shape
    factors = drop((active, batch, x[0].numel() // active))
    factors = torch.unflatten(factors, 2, (height, width, channels // active)).permute(
        1, 2, 3, 0, 4
    )
    return factors.flatten(3).permute(0, 3, 1, 2)


# --- activations ----------------------------------------------------------------------------------


class _Tanh(torch.autograd.Function):
    """tanh through the logistic function: within 2e-7 of torch.tanh, and five times as fast.

    torch's tanh costs 3 ns an element on a CPU, a fifth of a whole training step of a small network;
    its logistic function costs 0.6 ns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (x * 2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], y)  # type: ignore[no-any-return]


def _tanh(x: Tensor) -> Tensor:
    if x.is_cuda:
        return torch.tanh(x)
    return _Tanh.apply(x)  # type: ignore[no-any-return]


def _sine(x: Tensor, w0: float = 1.0) -> Tensor:
    return torch.sin(w0 * x)


_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "tanh": _tanh,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "elu": F.elu,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "sine": _sine,
}
_ARGUMENTS = {"leaky_relu": "negative_slope", "sine": "w0"}


def _activation(text: str) -> Callable[[Tensor], Tensor] | None:
    """The function named `tanh` or `leaky_relu(0.1)`; None for the identity."""
    if text == "identity":
        return None
    match = re.fullmatch(r"(\w+)(?:\(([^()]+)\))?", text)
    if match is None or match[1] not in _FUNCTIONS or (match[2] and match[1] not in _ARGUMENTS):
        raise ConfigError(
            f"Activation {text!r} has no grouped form. Known: {', '.join(_FUNCTIONS)}, identity."
        )
    function = _FUNCTIONS[match[1]]
    return partial(function, **{_ARGUMENTS[match[1]]: float(match[2])}) if match[2] else function
