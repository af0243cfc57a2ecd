"""Tensors, layouts and layers: what networks are made of."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

__all__ = [
    "LAYER_TYPES",
    "LayerSpec",
    "Layout",
    "StateDict",
    "TensorSpec",
]

StateDict: TypeAlias = "dict[str, torch.Tensor]"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named array: its name in the state dict, dtype, shape and size.

    `dtype` is torch's name without the prefix (`float32`, `bfloat16`, `float4_e2m1fn_x2`); formats whose elements torch
    does not know keep their own name (`f6_e2m3`, `gguf.q4_k`) and stay bytes. `shape` is torch's shape: for packed
    types it counts stored elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


Layout: TypeAlias = tuple[TensorSpec, ...]

LAYER_TYPES = ("conv", "linear", "norm", "embedding", "attention", "recurrent", "other")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What a layer is, for the tensors that belong to it.

    `index` counts layers from the input; `type` is one of `LAYER_TYPES`; `tensors` are state-dict names, weight first.
    """

    index: int
    name: str
    type: str
    tensors: tuple[str, ...]
