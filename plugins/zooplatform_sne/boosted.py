"""Gradient boosting on rich statistics and on what a network does with fixed inputs: for any mix of architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zooplatform_sne.responses import responses
from zooplatform_statnn.boosted import AggregateRich

if TYPE_CHECKING:
    from zooplatform.interfaces import NetworkBatch

__all__ = ["Responses"]


class Responses(AggregateRich):
    """`aggregate-rich` with the numbers of `responses` beside its statistics."""

    NAME = "responses"

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        """(B, 4 F + R)."""
        return torch.cat([super().read(batch), responses(batch)], dim=1)
