"""Which values of a network belong to one layer, and how a layer is cut into chunks.

Legend for shapes: P values of a network, U units that are drawn together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from zooplatform.layout import VectorLayout

__all__ = ["chunks", "layer_names", "layers"]


def layers(vector: VectorLayout) -> torch.Tensor:
    """(P,) the number of the layer that each value belongs to, from the input on.

    A normalisation goes with the layer before it, whose units it rescales. Tensors of no layer are one by one.
    """
    return _numbered(vector)[0]


def layer_names(vector: VectorLayout) -> list[str]:
    """U names, of the first tensor's layer each."""
    return _numbered(vector)[1]


def chunks(vector: VectorLayout, size: int) -> torch.Tensor:
    """(P,) the number of the chunk of each value: `size` values of one layer that follow each other, biases after
    weights; the last of a layer may be smaller. 1 leaves each value alone, 0 makes one chunk of all."""
    if size == 0:
        return torch.zeros(vector.width, dtype=torch.int64)
    layer = layers(vector)
    result = torch.empty_like(layer)
    made = 0
    for number in range(int(layer.max()) + 1 if len(layer) else 0):
        own = (layer == number).nonzero().squeeze(1)
        result[own] = made + torch.arange(len(own)) // size
        made += -(-len(own) // size)
    return result


def _numbered(vector: VectorLayout) -> tuple[torch.Tensor, list[str]]:
    number = torch.empty(vector.width, dtype=torch.int64)
    names: list[str] = []
    of_layer: dict[int, int] = {}
    for field in vector.fields:
        if field.aside:
            continue
        index = field.layer_index
        if index is not None and index in of_layer:
            unit = of_layer[index]
        elif field.layer_type == "norm" and names:
            unit = len(names) - 1
        else:
            unit = len(names)
            names.append(field.spec.name.rpartition(".")[0] or field.spec.name)
        if index is not None:
            of_layer[index] = unit
        number[field.offset : field.offset + field.spec.num_elements] = unit
    return number, names
