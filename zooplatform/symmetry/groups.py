"""Hidden units of a network in another order: which may be exchanged, and doing it.

The layout alone tells it, so only chains of layers are understood: convolution to convolution, convolution to linear
after a flatten (channels first, a block of positions per channel) or a global pooling, linear to linear, each with
batch normalisation in between. Permuting the output units of the first layer, the normalisation and the inputs of the
second layer alike leaves the function of the network as it is, whatever its element-wise activations and pooling.

Two layers follow each other when they are neighbours in the order of layers and of tensors, and
- stand side by side (`layers.0`, `layers.1`), or a convolution meets a linear layer (`features.28`, `classifier.0`),
  and neither is inside a numbered block; or
- stand in one numbered block with the names of a chain (`layer1.0.conv1`, `layer1.0.conv2`): then the units between
  them are the block's own. What leaves a block may be added to something else, which the layout does not show.
Everything else is left alone and `left_alone` says why. Sums between layers that stand side by side outside of blocks
cannot be seen either: a network with such sums should not be permuted.

Legend for shapes: B networks, P parameters, n units of a group, r values of a unit, o outputs of the next layer,
k values per output that a unit feeds.
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from zooplatform.interfaces import LayerSpec
    from zooplatform.layout import Field, VectorLayout

__all__ = ["HiddenGroup", "hidden_groups", "left_alone", "permute"]

_NORM_TENSORS = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
_CHAINED = re.compile(r"(conv|fc|linear|lin|dense)(\d+)")


class HiddenGroup(NamedTuple):
    """The hidden units between two layers.

    Attributes:
        layer: name of the layer whose output units they are.
        units: n.
        rows: tensors whose first axis is the units: weight and bias of the layer, batch normalisation.
        target: weight of the next layer, (o, n * k) when its inputs are flattened.
        block: k.
    """

    layer: str
    units: int
    rows: tuple[Field, ...]
    target: Field
    block: int


class _Weighted(NamedTuple):
    """A layer with a matrix of weights, in its place among all layers."""

    place: int
    spec: LayerSpec
    weight: Field
    bias: Field | None

    @property
    def units(self) -> int:
        return self.weight.spec.shape[0]

    @property
    def inputs(self) -> int:
        return self.weight.spec.shape[1]

    @property
    def parent(self) -> str:
        return self.spec.name.rpartition(".")[0]

    @property
    def in_block(self) -> bool:
        return any(character.isdigit() for character in self.parent)


def hidden_groups(vector: VectorLayout) -> tuple[HiddenGroup, ...]:
    """The groups of hidden units that may be permuted, from the input on."""
    return _structure(vector)[0]


def left_alone(vector: VectorLayout) -> dict[str, str]:
    """Layers whose output units stay in place, with the reason; the last layer's units are outputs."""
    return _structure(vector)[1]


def permute(
    weights: torch.Tensor, vector: VectorLayout, generator: torch.Generator
) -> torch.Tensor:
    """(B, P) networks with the hidden units of each in a random order of its own.

    Args:
        weights: (B, P), not changed.
        vector: where the tensors lie.
        generator: source of the orders; on any device.
    """
    result = weights.clone()
    rows = torch.arange(len(weights), device=weights.device)[:, None]
    for group in hidden_groups(vector):
        # (B, n): sorting random numbers gives every order with the same probability.
        order = torch.rand(
            (len(weights), group.units), generator=generator, device=generator.device
        )
        order = order.argsort(dim=1).to(weights.device)
        for field in group.rows:
            values = _view(result, field, (group.units, -1))  # (B, n, r)
            values.copy_(values[rows, order])
        values = _view(result, group.target, (-1, group.units, group.block)).transpose(
            1, 2
        )  # (B, n, o, k)
        values.copy_(values[rows, order])
    return result


def _view(weights: torch.Tensor, field: Field, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of (B, P) networks as (B, *shape), a view."""
    return weights[:, field.offset : field.offset + field.spec.num_elements].view(
        len(weights), *shape
    )


# --- the structure ---------------------------------------------------------------------------------------------------


def _structure(vector: VectorLayout) -> tuple[tuple[HiddenGroup, ...], dict[str, str]]:
    layers = vector.layers()
    order = [field.layer_index for field in vector.fields]
    known = [index for index in order if index is not None]
    unknown = None
    if len(known) < len(order):
        unknown = "tensors that belong to no layer may lie between it and the next layer"
    elif known != sorted(known):
        # Files that sort tensors by name do not say which normalisation follows which layer.
        unknown = "the tensors are not stored in the order of the layers"
    weighted = [w for w in (_weighted(vector, i, s) for i, s in enumerate(layers)) if w is not None]
    kept = {layer.name: f"a layer of type {layer.type} is not understood" for layer in layers}
    for layer in layers:
        if layer.type == "norm":
            del kept[layer.name]
    groups = []
    for place, (first, second) in enumerate(pairwise(weighted)):
        between = layers[first.place + 1 : second.place]
        norms = [_batch_norm(vector, layer, first.units) for layer in between]
        reason = unknown or _reason(first, second)
        if reason is None and first.spec.type == "conv" and place > 0:
            before = weighted[place - 1]
            if before.units != first.inputs:
                reason = "its inputs are not those units that the layer before it has (groups?)"
        if reason is None and any(norm is None for norm in norms):
            names = ", ".join(layer.name for layer in between)
            reason = f"{names} lies behind it, which is no batch normalisation of its units"
        if reason is not None:
            kept[first.spec.name] = reason
            continue
        del kept[first.spec.name]
        own = [first.weight] + ([] if first.bias is None else [first.bias])
        rows = (*own, *(field for norm in norms if norm is not None for field in norm))
        block = prod(second.weight.spec.shape[1:]) // first.units
        groups.append(HiddenGroup(first.spec.name, first.units, rows, second.weight, block))
    if weighted:
        kept[weighted[-1].spec.name] = "its units are the outputs"
    return tuple(groups), kept


def _weighted(vector: VectorLayout, place: int, layer: LayerSpec) -> _Weighted | None:
    """A convolution or linear layer that is a weight and perhaps a bias, both in the vector."""
    fields = [vector.by_name[name] for name in layer.tensors]
    axes = {"conv": (3, 4, 5), "linear": (2,)}.get(layer.type, ())
    weights = [f for f in fields if len(f.spec.shape) in axes]
    biases = [f for f in fields if len(f.spec.shape) == 1]
    if len(weights) != 1 or len(weights) + len(biases) != len(fields) or len(biases) > 1:
        return None
    if any(f.aside for f in fields) or not all(f.spec.num_elements for f in fields):
        return None
    if biases and biases[0].spec.shape[0] != weights[0].spec.shape[0]:
        return None
    return _Weighted(place, layer, weights[0], biases[0] if biases else None)


def _batch_norm(vector: VectorLayout, layer: LayerSpec, units: int) -> list[Field] | None:
    """The tensors of a batch normalisation of `units` channels; None when the layer is something else.

    Group and layer normalisation have no running statistics; the former mixes certain channels only.
    """
    fields = {name.rpartition(".")[2]: vector.by_name[name] for name in layer.tensors}
    if not {"running_mean", "running_var"} <= fields.keys() or fields.keys() - _NORM_TENSORS:
        return None
    vectors = [f for key, f in fields.items() if key != "num_batches_tracked"]
    fits = all(f.spec.shape == (units,) and not f.aside for f in vectors)
    return vectors if fits else None


def _reason(first: _Weighted, second: _Weighted) -> str | None:
    """Why the outputs of `first` are not known to be the inputs of `second` alone; None when they are."""
    ahead = second.spec.name
    if first.in_block or second.in_block:
        names = [_CHAINED.fullmatch(w.spec.name.rpartition(".")[2]) for w in (first, second)]
        one, two = names
        chained = (
            first.parent == second.parent
            and one is not None
            and two is not None
            and (one[1], int(one[2]) + 1) == (two[1], int(two[2]))
        )
        if not chained:
            return f"whether its units go to {ahead} alone cannot be known of blocks"
    elif first.parent != second.parent and first.spec.type == second.spec.type:
        return f"whether its units go to {ahead} alone cannot be known: they stand apart"
    kinds = (first.spec.type, second.spec.type)
    if kinds == ("linear", "conv"):
        return f"its units become an image for {ahead}, in a way that is not known"
    fits = second.inputs == first.units
    if kinds == ("conv", "linear"):
        fits = second.inputs % first.units == 0
    if not fits:
        return f"it has {first.units} units, {ahead} has {second.inputs} inputs"
    return None
