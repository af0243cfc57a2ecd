"""Properties of a network that the statistics of its tensors do not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zooplatform.interfaces import LayerSpec, StateDict

__all__ = ["dead_units"]

# Rows are looked at in pieces of about this many values, whatever the size of the tensor.
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


_NUMPY = frozenset({torch.float64, torch.float32, torch.float16})


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
        units, incoming = weight.shape[0], weight.detach().flatten(1)
        step = max(1, _PIECE // incoming.shape[1])
        for start in range(0, units, step):
            dead += _zero_rows(incoming[start : start + step])
        total += units
    return dead / total if total else None


def _zero_rows(rows: Tensor) -> int:
    if rows.dtype not in _NUMPY:
        rows = rows.to(torch.float32)
    # numpy: on networks of a few thousand weights most of the time would go into torch's calls.
    return len(rows) - int(np.count_nonzero(rows.numpy().any(axis=1)))
