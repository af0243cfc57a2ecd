"""Smooth random fields: inputs that look like images of nothing.

Legend for shapes: K fields, S side of one.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

import torch

__all__ = ["smooth_fields"]

_WAVES = 4  # highest spatial frequency, in waves along a side
_WIDTHS = (1.0, 1.6, 2.4)  # of the spectrum: coarse for some fields, fine for others
# Every second one has light objects on dark ground, as digits and clothes have.
_LEVELS = (0.0, 0.8)
_CONTRAST = 4.0


@lru_cache(maxsize=8)
def smooth_fields(number: int, side: int, seed: int = 0) -> torch.Tensor:
    """(K, S, S) float32 from 0 to 1: sums of waves with random phases, cut to dark and light.

    What a stored predictor reads must not change with a library: Python's `random()` keeps its sequence for a seed.
    """
    waves = torch.tensor(
        [
            (down, across)
            for down in range(_WAVES + 1)
            for across in range(-_WAVES, _WAVES + 1)
            if (down, across) > (0, 0)
        ],
        dtype=torch.float64,
    )
    draw = random.Random(seed).random  # noqa: S311 - pictures, no secrets
    phase = torch.tensor([[draw() for _ in waves] for _ in range(number)], dtype=torch.float64)
    width = _in_turn(_WIDTHS, number)[:, None]
    weight = (-waves.square().sum(dim=1) / (2 * width.square())).exp()
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / (1.1 * side)  # no whole period
    y, x = torch.meshgrid(place, place, indexing="ij")
    turns = waves[:, 0, None, None] * y + waves[:, 1, None, None] * x + phase[:, :, None, None]
    field = (weight[:, :, None, None] * (2 * math.pi * turns).cos()).sum(dim=1)
    field = field / field.std(dim=(1, 2), keepdim=True)
    level = _in_turn(_LEVELS, number)[:, None, None]
    return torch.sigmoid(_CONTRAST * (field - level)).to(torch.float32)


def _in_turn(values: tuple[float, ...], number: int) -> torch.Tensor:
    """(number,) the values again and again."""
    return torch.tensor([values[at % len(values)] for at in range(number)], dtype=torch.float64)
