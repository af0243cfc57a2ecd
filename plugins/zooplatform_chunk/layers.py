"""Which layer each tensor of a layout belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform.errors import TokenizerError
from zooplatform.interfaces import LAYER_TYPES, LayerSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.interfaces import Layout, TensorSpec

__all__ = ["complete_layers"]


def complete_layers(layout: Layout, layers: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """`layers` in the order of their indices, then the layers of the tensors that none of them names.

    Tensors left over are grouped by what stands before the last dot of their names, those with most axes first; their
    layers are numbered after the given ones and typed by shapes alone.

    Raises:
        TokenizerError: a layer names a tensor that the layout does not have or another layer has too, or its type or
            index is not usable.
    """
    free = {spec.name: spec for spec in layout}
    if len(free) != len(layout):
        raise TokenizerError("The layout names a tensor twice. Make it with layout_of(state).")
    result = sorted(layers, key=lambda layer: layer.index)
    for layer in result:
        if layer.type not in LAYER_TYPES:
            raise TokenizerError(
                f"Layer {layer.name!r} has type {layer.type!r}; use one of {', '.join(LAYER_TYPES)}."
            )
        for name in layer.tensors:
            if free.pop(name, None) is None:
                raise TokenizerError(
                    f"Layer {layer.name!r} names {name!r}, which the layout does not have or another "
                    "layer has already. Give the layers that belong to this layout."
                )
    if len({layer.index for layer in result}) != len(result):
        raise TokenizerError("Two layers have one index. Number them from the input, from 0.")
    groups: dict[str, list[TensorSpec]] = {}
    for spec in free.values():
        groups.setdefault(spec.name.rpartition(".")[0], []).append(spec)
    first = result[-1].index + 1 if result else 0
    for index, (name, members) in enumerate(groups.items(), first):
        members.sort(key=lambda spec: -len(spec.shape))
        names = tuple(spec.name for spec in members)
        result.append(LayerSpec(index, name, _type_of(members), names))
    return tuple(result)


def _type_of(members: Sequence[TensorSpec]) -> str:
    """What shapes tell: kernels are convolutions, matrices are linear, vectors in pairs are norms."""
    axes = len(members[0].shape)
    if axes == 1 and len(members) > 1:
        return "norm"
    return {2: "linear", 3: "conv", 4: "conv", 5: "conv"}.get(axes, "other")
