"""Ways to compute the gradients of a stack: grouped layers, torch.func.vmap, one network at a time.

Legend for shapes: A networks, B images of a batch, D values of one image, K classes, P trained
values and Q stored values of one network. Every engine computes, for each network on its own, the
gradient of the mean loss of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from zooplatform.growing.stacked import Drop, GroupedNetwork

if TYPE_CHECKING:
    from zooplatform.growing.data import GrowingData
    from zooplatform.growing.networks import NetworkPlan

__all__ = ["Engine", "GroupedEngine", "LoopEngine", "VmapEngine", "make_engine"]

Counters = Sequence[Mapping[str, Tensor]]
# Loss of each of N inputs, from outputs (N, K) and targets (N,).
Losses: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Engine(Protocol):
    """Computes for the networks whose rows it is given."""

    # Attributes of runs that have to agree within a stack.
    alike: tuple[str, ...]

    def gradients(
        self,
        weights: Tensor,
        x: Tensor,
        y: Tensor,
        share: Tensor,
        into: Tensor,
        drop: Drop | None,
        counters: Counters,
    ) -> None:
        """Write the gradients of one step.

        Args:
            weights: (A, Q); running statistics in it are updated.
            x: inputs (A, B, D).
            y: targets (A, B).
            share: weight of each image in the mean (A, B): 1 / batch size, or 0 for padding.
            into: (A, P), overwritten.
            drop: factors of a dropout layer for a shape (A, B, F), or None without dropout.
            counters: of each network, updated in place.
        """

    def logits(self, weights: Tensor, x: Tensor, counters: Counters) -> Tensor:
        """Outputs (A, B, K) in evaluation mode for inputs (A, B, D)."""


class GroupedEngine:
    """Known layers in chains and residual blocks, all networks in one pass; see `GroupedNetwork`."""

    alike: tuple[str, ...] = ("activation", "batch_size")

    def __init__(
        self, plan: NetworkPlan, shape: tuple[int, ...], losses: Losses, *, dropout: bool
    ) -> None:
        assert plan.layers is not None  # the factory gives this engine to plain networks only
        layers, activation = plan.layers
        # Flattening comes first where images enter an MLP: then they are vectors from the start.
        flat = len(shape) == 1 or layers[0]["type"] == "flatten"
        self._image = None if flat else (shape[0], shape[1], shape[2])
        self._losses = losses
        self._network = GroupedNetwork(
            layers, activation, plan.parameters, statistics=plan.statistics, dropout=dropout
        )

    def _inputs(self, x: Tensor) -> Tensor:
        return x if self._image is None else self._network.images(x, self._image)

    def gradients(
        self,
        weights: Tensor,
        x: Tensor,
        y: Tensor,
        share: Tensor,
        into: Tensor,
        drop: Drop | None,
        counters: Counters,
    ) -> None:
        leaves = [leaf.requires_grad_() for leaf in self._network.leaves(weights)]
        norms = self._network.norms(weights)
        logits = self._network.logits(
            leaves, self._inputs(x), len(weights), norms, training=True, drop=drop
        )
        self._network.keep(norms, weights)
        for own in counters:
            for counter in own.values():
                counter += 1
        losses = self._losses(logits.flatten(0, 1), y.flatten())
        self._network.collect(torch.autograd.grad(losses, leaves, share.flatten()), into)

    def logits(self, weights: Tensor, x: Tensor, counters: Counters) -> Tensor:
        leaves, norms = self._network.leaves(weights), self._network.norms(weights)
        return self._network.logits(leaves, self._inputs(x), len(weights), norms)


class VmapEngine:
    """Any network without buffers, through torch.func; dropout is the network's own."""

    alike: tuple[str, ...] = ("activation", "batch_size", "dropout", "fraction")

    def __init__(self, plan: NetworkPlan, shape: tuple[int, ...], losses: Losses) -> None:
        self._plan, self._shape = plan, shape
        module = self._module = plan.prototype

        def loss(named: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
            logits = functional_call(module, named, (x,))
            return (losses(logits, y) * share).sum()

        def forward(named: dict[str, Tensor], x: Tensor) -> Tensor:
            logits: Tensor = functional_call(module, named, (x,))
            return logits

        self._gradient = vmap(grad(loss), randomness="different")
        self._forward = vmap(forward)

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        return {slot.name: slot.rows(weights) for slot in self._plan.parameters}

    def gradients(
        self,
        weights: Tensor,
        x: Tensor,
        y: Tensor,
        share: Tensor,
        into: Tensor,
        drop: Drop | None,
        counters: Counters,
    ) -> None:
        self._module.train()
        images = torch.unflatten(x, 2, self._shape)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no batching rule
            gradients = self._gradient(self._named(weights), images, y, share)
        for slot in self._plan.parameters:
            slot.rows(into).copy_(gradients[slot.name])

    def logits(self, weights: Tensor, x: Tensor, counters: Counters) -> Tensor:
        self._module.eval()
        images = torch.unflatten(x, 2, self._shape)
        with sdpa_kernel(SDPBackend.MATH):
            logits: Tensor = self._forward(self._named(weights), images)
        return logits


class LoopEngine:
    """Any network, one after the other: foreign buffers and what torch.func does not know."""

    alike: tuple[str, ...] = ("activation", "batch_size", "dropout", "fraction")

    def __init__(self, plan: NetworkPlan, shape: tuple[int, ...], losses: Losses) -> None:
        self._plan, self._shape, self._module = plan, shape, plan.prototype
        self._losses = losses

    def gradients(
        self,
        weights: Tensor,
        x: Tensor,
        y: Tensor,
        share: Tensor,
        into: Tensor,
        drop: Drop | None,
        counters: Counters,
    ) -> None:
        self._module.train()
        for row in range(len(weights)):
            own = weights[row : row + 1]
            leaves = {
                slot.name: slot.rows(own)[0].detach().requires_grad_()
                for slot in self._plan.parameters
            }
            logits = self._call({**leaves, **self._buffers(own, counters[row])}, x[row])
            loss = (self._losses(logits, y[row]) * share[row]).sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for slot, gradient in zip(self._plan.parameters, gradients, strict=True):
                target = slot.rows(into[row : row + 1])[0]
                target.zero_() if gradient is None else target.copy_(gradient)

    def logits(self, weights: Tensor, x: Tensor, counters: Counters) -> Tensor:
        self._module.eval()
        outputs = []
        for row in range(len(weights)):
            own = weights[row : row + 1]
            named = {slot.name: slot.rows(own)[0] for slot in self._plan.parameters}
            outputs.append(self._call({**named, **self._buffers(own, counters[row])}, x[row]))
        return torch.stack(outputs)

    def _buffers(self, own: Tensor, counters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Views of the row, so that batch normalisation writes its running statistics into it.
        return {slot.name: slot.rows(own)[0] for slot in self._plan.statistics} | dict(counters)

    def _call(self, named: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._module, named, (torch.unflatten(x, 1, self._shape),))
        return logits


def make_engine(
    name: str, plan: NetworkPlan, data: GrowingData, *, dropout: bool, device: torch.device
) -> Engine:
    """The engine called `name` for networks of `plan` that learn from `data`."""
    if name == "grouped":
        return GroupedEngine(plan, data.shape, data.losses, dropout=dropout)
    plan.prototype.to(device)
    return (VmapEngine if name == "vmap" else LoopEngine)(plan, data.shape, data.losses)
