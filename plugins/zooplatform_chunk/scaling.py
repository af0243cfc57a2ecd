"""Scaling of tokens and its inverse; what was done is stored in the batch.

`std`: the values of a layer are divided by the power of two next to their standard deviation (by its logarithm). The
layer's spread becomes 0.71 to 1.41, and since such a division only changes exponents nothing is rounded: decoding is
exact, but for values less than 2**-126 of the spread in float32 (2**-1022 in float64). A layer whose spread is zero or
not finite is left as it is.

`asinh`: asinh(gain * value), linear near zero and logarithmic far from it. Decoding is off by at most
10 * eps * (1 + |token|) * |value|, with eps 2**-23 in float32 and 2**-52 in float64, plus the least normal number.

Legend for shapes: N networks, L layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCALINGS", "Scaling", "asinh_", "asinh_limit", "divide_by_spread_", "sinh_"]

Scaling: TypeAlias = Literal["none", "std", "asinh"]
SCALINGS: tuple[Scaling, ...] = ("none", "std", "asinh")
_BLOCK = 1 << 17  # values whose intermediate arrays stay in the cache of a core


def divide_by_spread_(layers: Sequence[torch.Tensor], spreads: torch.Tensor) -> None:
    """Divide every layer, (N, numbers), in place by its spread, which is written to `spreads` (N, L)."""
    if not layers:
        return
    torch.cat([_std(values) for values in layers], dim=1, out=spreads)
    spreads.copy_(_next_power(spreads))
    # The reciprocal of a power of two is one too, so that the product is the quotient.
    factors = spreads.reciprocal()
    for place, values in enumerate(layers):
        values.mul_(factors[:, place : place + 1])


def _next_power(std: torch.Tensor) -> torch.Tensor:
    """The power of two next to every deviation, 1 for one that is zero or not finite."""
    usable = std.isfinite() & (std > torch.finfo(std.dtype).tiny)
    std = torch.where(usable, std, torch.ones_like(std))
    fraction, _ = torch.frexp(std)  # std = fraction * 2**exponent with fraction in [0.5, 1)
    power = std / fraction
    return torch.where(fraction < math.sqrt(0.5), power / 2, power)


def asinh_limit(dtype: torch.dtype, gain: float) -> float:
    """The largest value that is sure not to overflow on its way to a token and back."""
    return torch.finfo(dtype).max / (4 * max(gain, 1.0))


def asinh_(values: torch.Tensor, gain: float) -> None:
    """Scale in place.

    On the CPU by log1p(a + a^2 / (1 + sqrt(1 + a^2))) of the magnitude a, since the loops of `asinh` are vectorised on
    few processors, in torch and in numpy; 2 eps apart from it.
    """
    if values.device.type != "cpu":
        values.mul_(gain).asinh_()
        return
    flat = values.view(-1)
    buffers = flat.new_empty((4, min(_BLOCK, len(flat))))
    for part in torch.split(flat, _BLOCK):
        magnitude, small, square, root = (buffer[: len(part)] for buffer in buffers)
        torch.abs(part.mul_(gain), out=magnitude)
        # From 2^60 on asinh(a) is log(2 a), and a square could overflow.
        torch.clamp(magnitude, max=2.0**60, out=small)
        torch.mul(small, small, out=square)
        torch.add(square, 1, out=root).sqrt_().add_(1)
        torch.addcdiv(magnitude, square, root, out=square)
        square.add_(magnitude.sub_(small)).log1p_()
        torch.copysign(square, part, out=part)


def sinh_(values: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Undo `asinh_` in place for values whose first axis is N; `gain` is (N, 1)."""
    if values.device.type == "cpu":
        with np.errstate(all="ignore"):
            array = values.numpy()
            np.sinh(array, out=array)
    else:
        values.sinh_()
    return values.div_(gain.view(-1, *[1] * (values.ndim - 1)))


def _std(values: torch.Tensor) -> torch.Tensor:
    """(N, 1). In two passes: the mean of a layer can be far larger than its spread (the scales of a norm)."""
    number = max(1, values.shape[1])
    centred = values - values.sum(1, keepdim=True).div_(number)
    norm: torch.Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return norm.div_(math.sqrt(number))
