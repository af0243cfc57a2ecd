"""Properties of a network that cost one pass over its weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from zooplatform.interfaces import LayerSpec, StateDict

__all__ = ["dead_units", "sparsity", "weight_norm"]

# A piece in double precision takes 8 MB, whatever the size of the tensor.
_PIECE = 1 << 20

# Types that torch turns into doubles; packed ones (float4) hold several values in one element.
_FLOATS = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
    }
)


def sparsity(state: StateDict, layers: tuple[LayerSpec, ...]) -> float | None:
    """Zeros divided by the number of floating-point values; None where there are no values.

    Args:
        state: tensors by name.
        layers: not used.
    """
    zeros = total = 0
    for piece in _pieces(state):
        zeros += piece.numel() - int(torch.count_nonzero(piece))
        total += piece.numel()
    return zeros / total if total else None


def weight_norm(state: StateDict, layers: tuple[LayerSpec, ...]) -> float | None:
    """Euclidean norm of all floating-point values; None where there are none, or where it is not finite.

    Args:
        state: tensors by name.
        layers: not used.
    """
    squares, empty = 0.0, True
    for piece in _pieces(state):
        squares += float(torch.dot(piece, piece))
        empty = False
    return math.sqrt(squares) if not empty and math.isfinite(squares) else None


def dead_units(state: StateDict, layers: tuple[LayerSpec, ...]) -> float | None:
    """Share of output units of convolutions and linear layers whose incoming weights are all zero.

    Such a unit gives the same output, its bias, for every input.

    Args:
        state: tensors by name; weights have their output units first.
        layers: which tensor belongs to what layer, weight first.

    Returns:
        A fraction; None where no layer counts.
    """
    dead = total = 0
    for layer in layers:
        weight = state.get(layer.tensors[0]) if layer.tensors else None
        if layer.type not in {"conv", "linear"} or weight is None or weight.dtype not in _FLOATS:
            continue
        if weight.ndim < 2 or not weight.numel():
            continue
        units, incoming = weight.shape[0], weight.flatten(1)
        step = max(1, _PIECE // incoming.shape[1])
        for start in range(0, units, step):
            rows = incoming[start : start + step].to(torch.float64)
            dead += len(rows) - int(rows.ne(0).any(dim=1).sum())
        total += units
    return dead / total if total else None


def _pieces(state: StateDict) -> Iterator[Tensor]:
    """All floating-point values as doubles, in vectors of bounded length."""
    for tensor in state.values():
        if tensor.dtype in _FLOATS:
            for piece in torch.split(tensor.detach().reshape(-1), _PIECE):
                if piece.numel():
                    yield piece.to(torch.float64)
