"""What every network encoder is: weights of B networks of one architecture to B vectors.

Legend for shapes: B networks, P parameters of one network, d size of the embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout

__all__ = ["NetworkEncoder"]


class NetworkEncoder(nn.Module):
    """Reads networks of any architecture; one batch holds networks of one.

    Attributes:
        dim: d, the size of the embedding.
        augments: whether `augment` changes anything.
    """

    dim: int
    augments: bool = False

    @abstractmethod
    def prepare(self, batch: NetworkBatch) -> dict[str, torch.Tensor]:
        """What `forward` reads, float32, one row per network.

        It depends on the weights alone, not on any parameter, so that a trainer may keep it for a whole data set.

        Raises:
            ConfigError: networks of this architecture cannot be read.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(self, prepared: Mapping[str, torch.Tensor], vector: VectorLayout) -> torch.Tensor:
        """(B, d) embeddings of the networks that `prepared` holds rows of."""
        raise NotImplementedError

    def calibrate(
        self, prepared: Sequence[tuple[Mapping[str, torch.Tensor], VectorLayout]]
    ) -> None:
        """Take from the training networks, given by architecture, what the encoder scales by; called once, first.

        What is kept are buffers, so that it is part of the encoder's state.
        """

    def augment(
        self, weights: torch.Tensor, vector: VectorLayout, generator: torch.Generator
    ) -> torch.Tensor:
        """(B, P) equivalent networks of (B, P) networks; used before `prepare` when training."""
        return weights

    def regularise(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        prepared: Mapping[str, torch.Tensor],
        weights: torch.Tensor,
        vector: VectorLayout,
        generator: torch.Generator,
    ) -> torch.Tensor | None:
        """A term to add to the loss, or None.

        Args:
            head: (B, d) embeddings to (B, ...) logits.
            prepared: what `forward` was given.
            weights: (B, P) the networks of `prepared`.
            vector: where their tensors lie.
            generator: source of every random choice.
        """
        return None
