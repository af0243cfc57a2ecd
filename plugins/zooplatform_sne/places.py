"""What and where a token is, as a vector: types of layers; places of layers, of chunks in them, of pieces in a row.

Legend for shapes: n tokens, d size of an encoding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zooplatform.interfaces import LAYER_TYPES

__all__ = ["PlaceEncoding", "place_features", "type_encoding"]

_COUNTS = 8  # wavelengths of the absolute place, 2 pi to 2 pi * 10,000
_SHARES = 4  # wavelengths of the relative place, 2 to 1/4 of the whole


def place_features(length: int, device: torch.device | None = None) -> Tensor:
    """(length, 24): sines and cosines of the places 0, 1, ..., and of the same as shares of the whole.

    Both, because what matters in networks of other depth may be either: the first and second layer, or the last one.
    """
    place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    waves = torch.exp(-math.log(10_000) * torch.arange(_COUNTS, device=device) / (_COUNTS - 1))
    share = place / max(length - 1, 1)
    octaves = math.pi * 2.0 ** torch.arange(_SHARES, device=device)
    angles = torch.cat([place * waves, share * octaves], dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def type_encoding(dim: int) -> nn.Embedding:
    """A vector (d,) per layer type, at first of the size that weights have after their input map.

    torch's own start is several times that: networks would then differ by a percent of what all have in common.
    """
    encoding = nn.Embedding(len(LAYER_TYPES), dim)
    nn.init.normal_(encoding.weight, std=0.1)
    return encoding


class PlaceEncoding(nn.Module):
    """A learned map of `place_features`, for sequences of any length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(2 * (_COUNTS + _SHARES), dim)

    def forward(self, length: int) -> Tensor:
        """(length, d)."""
        result: Tensor = self.map(place_features(length, self.map.weight.device))
        return result
