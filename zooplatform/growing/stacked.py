"""Many networks of one shape as one network: grouped convolutions and batched matrix products.

Legend for shapes: M networks of a stack, A of them active (the first ones), B images of a batch, C
channels of one network, H and W height and width, F features, K classes, P parameters of one
network and Q its values with the running statistics. Images of a stack are (B, A*C, H, W) in
channels-last memory, in which network a holds the channels [a*C, (a+1)*C); vectors are (A, B, F).

Three things were measured to matter on a CPU. Channels-last memory with one group per network makes
oneDNN's direct kernels apply to inputs that differ between networks, so that every network can have
its own batches. And those kernels are made for multiples of eight channels: padding the 6 of 8
channels of a network with zeros is faster than leaving them away. A third: biases are added apart
from the convolution, after max-pooling where that follows (which gives the same values), since
oneDNN's gradient of a bias costs as much as half that of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zooplatform.errors import ConfigError
from zooplatform.growing.activations import activation_function
from zooplatform.growing.convolution import grouped_convolution

__all__ = ["GroupedNetwork", "ParameterSlot", "nested_layers", "parameter_slots"]

Drop = Callable[[tuple[int, int, int]], Tensor]

_BLOCK = 8  # channels that oneDNN's direct convolutions work on at once, at the least
_LAYERS = frozenset(
    {
        "conv",
        "linear",
        "batchnorm",
        "residual",
        "activation",
        "pool",
        "global_pool",
        "flatten",
        "dropout",
    }
)
# As torch.nn.BatchNorm2d has them by default.
_NORM_MOMENTUM = 0.1
_NORM_EPS = 1e-5


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


def nested_layers(layers: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Every layer, those inside residual blocks after their block."""
    for layer in layers:
        yield layer
        yield from nested_layers(layer.get("layers", ()))
        yield from nested_layers(layer.get("shortcut", ()))


class _Channels(NamedTuple):
    """Channels of one network between two layers: as stored, and how many are its own."""

    stored: int
    own: int


class _Norm(NamedTuple):
    """Running mean and variance of a normalisation, (A*C,) each."""

    mean: Tensor
    variance: Tensor


class GroupedNetwork:
    """The forward pass of a stack, from the layers of a `cnn` or `mlp` configuration.

    Networks keep their own inputs, weights and dropout; nothing flows between them.

    Args:
        layers: `config["layers"]` of a built network, every default written out.
        activation: the default activation.
        slots: parameters of one network in the order of the layers, weight before bias and main
            branches before shortcuts.
        statistics: running mean and variance of each normalisation in the same order.
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
        statistics: Sequence[ParameterSlot] = (),
    ) -> None:
        if not self.supports(layers):
            raise ConfigError("This network has layers without a grouped form; use engine 'vmap'.")
        self.slots = tuple(slots)
        self._buffers: list[Tensor | None] = [None] * len(self.slots)
        self._padded: list[tuple[int, ...]] = []
        self._norm_widths: list[int] = []  # channels of each normalisation, as stored
        self._dropout = dropout
        self._own_dropout = any(layer["type"] == "dropout" for layer in nested_layers(layers))
        self._steps = self._compile(layers, activation, _Channels(0, 0))[0]
        if len(self._padded) != len(self.slots):
            raise ConfigError(
                f"The layers have {len(self._padded)} parameters, the state dict {len(self.slots)}."
            )
        if 2 * len(self._norm_widths) != len(statistics):
            raise ConfigError(
                f"The layers have {len(self._norm_widths)} normalisations, the state dict "
                f"{len(statistics)} running statistics."
            )
        self._statistics = list(zip(statistics[::2], statistics[1::2], strict=True))

    def _compile(
        self, layers: Sequence[Mapping[str, Any]], activation: str | None, channels: _Channels
    ) -> tuple[list[_Step], _Channels]:
        """The steps of layers that follow `channels`, and the channels that they end with."""
        steps: list[_Step] = []
        for layer in layers:
            kind, index = layer["type"], len(self._padded)
            if kind == "conv":
                own = self.slots[index].shape
                stored = _padded(own[0])
                kernel = (stored, channels.stored or own[1], *own[2:])
                bias = bool(layer.get("bias", True))
                self._padded += [kernel, (stored,)] if bias else [kernel]
                channels = _Channels(stored, own[0])
                steps.append(_Step(kind, layer, index=index))
                if bias:
                    steps.append(_Step("bias", layer, index=index + 1))
            elif kind == "linear":
                bias = bool(layer.get("bias", True))
                self._padded += [slot.shape for slot in self.slots[index : index + 1 + bias]]
                steps.append(_Step(kind, layer, index=index, bias=bias))
            elif kind == "batchnorm":
                stored = channels.stored or self.slots[index].shape[0]
                self._padded += [(stored,), (stored,)]
                steps.append(_Step(kind, layer, index=index, norm=len(self._norm_widths)))
                self._norm_widths.append(stored)
            elif kind == "residual":
                main, end = self._compile(layer["layers"], activation, channels)
                short, _ = self._compile(layer.get("shortcut", ()), activation, channels)
                steps.append(_Step(kind, layer, branches=(tuple(main), tuple(short))))
                channels = end
            elif kind == "activation":
                function = activation_function(layer.get("name") or activation or "")
                steps.append(_Step(kind, layer, function=function))
                if self._dropout and not self._own_dropout:
                    steps.append(_Step("dropout", layer))
            elif kind != "dropout" or self._dropout:
                steps.append(_Step(kind, layer, channels=channels.own))
                if kind == "pool" and layer.get("kind", "max") == "max":
                    _bias_after_pool(steps)
                if kind in ("flatten", "global_pool"):
                    channels = _Channels(0, channels.own)  # vectors are not padded
        return steps, channels

    @staticmethod
    def supports(layers: Sequence[Mapping[str, Any]]) -> bool:
        """Whether every layer can be stacked."""
        return all(layer["type"] in _LAYERS for layer in nested_layers(layers))

    def norms(self, weights: Tensor) -> list[_Norm]:
        """The running statistics in `weights` (A, Q), copied, with zeros for padding channels."""
        made = []
        for slots, width in zip(self._statistics, self._norm_widths, strict=True):
            pair = weights.new_zeros(2, len(weights), width)
            for values, slot in zip(pair, slots, strict=True):
                values[:, : slot.shape[0]] = slot.rows(weights)
            made.append(_Norm(*pair.flatten(1)))
        return made

    def keep(self, norms: Sequence[_Norm], weights: Tensor) -> None:
        """Write running statistics back into `weights` (A, Q)."""
        for slots, norm in zip(self._statistics, norms, strict=True):
            for slot, values in zip(slots, norm, strict=True):
                slot.rows(weights).copy_(values.view(len(weights), -1)[:, : slot.shape[0]])

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
        self,
        leaves: Sequence[Tensor],
        x: Tensor,
        active: int,
        norms: Sequence[_Norm],
        *,
        training: bool = False,
        drop: Drop | None = None,
    ) -> Tensor:
        """Outputs (A, B, K).

        Args:
            leaves: of `leaves`, A networks.
            x: images (B, A*C, H, W) or vectors (A, B, F).
            active: A.
            norms: of `norms`; updated in training.
            training: normalise by the batch in place of the running statistics.
            drop: gives the factors of a dropout layer, 0 or 1 / (1 - p), for a shape (A, B, F).
        """
        return _run(self._steps, x, _Pass(leaves, active, norms, training, drop))


def _bias_after_pool(steps: list[_Step]) -> None:
    """The largest value plus a bias is the largest of the values plus the bias."""
    if len(steps) > 1 and steps[-2].kind == "bias":
        steps[-2:] = steps[:-3:-1]


def _padded(channels: int) -> int:
    # Below half a block the zeros would cost more than the direct kernels save.
    return channels if channels < _BLOCK // 2 else -(-channels // _BLOCK) * _BLOCK


class _Pass(NamedTuple):
    """What the steps of one forward pass share; see `GroupedNetwork.logits`."""

    leaves: Sequence[Tensor]
    active: int
    norms: Sequence[_Norm]
    training: bool
    drop: Drop | None


def _run(steps: Sequence[_Step], x: Tensor, now: _Pass) -> Tensor:
    for step in steps:
        x = step.run(x, now)
    return x


@dataclass(frozen=True, slots=True)
class _Step:
    """One layer of the stack.

    `index` is the place of its weight (or, for the kind `bias`, of the bias of a convolution) among
    the leaves, `bias` whether a linear layer has one, `channels` how many channels of its input are
    not padding, `norm` the place of a normalisation among the running statistics, `branches` the
    steps of the main branch and of the shortcut of a residual block.
    """

    kind: str
    layer: Mapping[str, Any]
    index: int = -1
    bias: bool = False
    channels: int = 0
    norm: int = -1
    branches: tuple[tuple[_Step, ...], tuple[_Step, ...]] = ((), ())
    function: Callable[[Tensor], Tensor] | None = None

    def run(self, x: Tensor, now: _Pass) -> Tensor:
        layer, leaves, active, drop = self.layer, now.leaves, now.active, now.drop
        if self.kind == "conv":
            stride, padding = layer.get("stride", 1), layer.get("padding", 0)
            return grouped_convolution(
                x, leaves[self.index], stride=stride, padding=padding, networks=active
            )
        if self.kind == "bias":
            # In place, since neither convolutions nor pooling look at their results again.
            return x.add_(leaves[self.index].view(1, -1, 1, 1))
        if self.kind == "linear":
            weight = leaves[self.index].transpose(1, 2)
            if self.bias:
                return torch.baddbmm(leaves[self.index + 1].unsqueeze(1), x, weight)
            return torch.bmm(x, weight)
        if self.kind == "batchnorm":
            return self._normalised(x, now)
        if self.kind == "residual":
            main, shortcut = self.branches
            return _run(main, x, now) + _run(shortcut, x, now)
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

    def _normalised(self, x: Tensor, now: _Pass) -> Tensor:
        """Every channel by itself, so that the channels of all networks are those of one."""
        vectors = x.dim() == 3
        if vectors:
            x = x.transpose(0, 1).flatten(1)  # (B, A*F)
        x = F.batch_norm(
            x,
            *now.norms[self.norm],
            now.leaves[self.index].flatten(),
            now.leaves[self.index + 1].flatten(),
            training=now.training,
            momentum=_NORM_MOMENTUM,
            eps=_NORM_EPS,
        )
        return torch.unflatten(x, 1, (now.active, -1)).transpose(0, 1) if vectors else x


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
