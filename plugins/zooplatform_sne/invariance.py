"""Encoders that learn that the order of hidden units means nothing.

The paper (arXiv 2305.16625, version 3) replaces weight tying by a regulariser of logit invariance after Moskalev et
al., "On genuine invariance learning without weight-tying" (arXiv 2308.03904), who measure how far the logits f of a
network move under a group action, E ||f(x) - f(g x)||^2. The formula that the paper uses is not public. Here x are the
weights of B networks, g are orders of their hidden units drawn per network (`permute`), and the term is

    lambda * mean over K draws g and over the batch of ||f(x) - f(g x)||^2  /  Var(f(x)),

with Var(f(x)) the variance of the logits over the batch, summed over outputs. The quotient does not change when the
logits are scaled, so that lambda means the same for every target and cannot be met by smaller logits; a term of 1 says
that another order moves a logit as far as another network does, up to a factor of two. The variance is a constant for
the gradient: the logits are to be drawn together, not apart.

Legend for shapes: B networks, P parameters, d size of the embedding, K permuted copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from zooplatform.errors import ConfigError
from zooplatform.interfaces import NetworkBatch
from zooplatform.symmetry import hidden_groups, permute
from zooplatform_sne.encoder import NetworkEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zooplatform.layout import VectorLayout

__all__ = ["InvarianceSettings", "PermutedEncoder", "logit_invariance"]

# Added to the variance: a batch of equal logits, or of one network, has none.
_LEAST_VARIANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class InvarianceSettings:
    """How an encoder learns to ignore the order of hidden units.

    Attributes:
        augment: train on networks whose hidden units are in a random order.
        invariance: lambda of the logit-invariance term, 0 for none.
        copies: K, permuted copies per network in that term.
    """

    augment: bool = True
    invariance: float = 0.0
    copies: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.augment, bool):
            raise ConfigError(f"augment is {self.augment!r}; use true or false.")
        if not isinstance(self.invariance, int | float) or not 0 <= self.invariance < 1e6:
            raise ConfigError(f"invariance is {self.invariance!r}; use a number from 0 on.")
        if not isinstance(self.copies, int) or self.copies < 1:
            raise ConfigError(f"copies is {self.copies!r}; use a whole number from 1 on.")


def logit_invariance(logits: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """How far logits move, as a share of their variance over the batch.

    Args:
        logits: (B, ...) of the networks.
        moved: (K, B, ...) of their permuted copies.

    Returns:
        A scalar, 0 where nothing moves.
    """
    logits = logits.reshape(len(logits), -1).float()
    moved = moved.reshape(len(moved), *logits.shape).float()
    variance = logits.detach().var(dim=0, unbiased=False).sum()
    return (moved - logits).square().sum(-1).mean() / (variance + _LEAST_VARIANCE)


class PermutedEncoder(NetworkEncoder):
    """A network encoder that is augmented and regularised by permutations of hidden units."""

    def __init__(self, settings: InvarianceSettings) -> None:
        super().__init__()
        self.invariance_settings = settings
        self.augments = settings.augment

    def augment(
        self, weights: torch.Tensor, vector: VectorLayout, generator: torch.Generator
    ) -> torch.Tensor:
        """(B, P) networks with hidden units in another order, where `augment` is set."""
        return permute(weights, vector, generator) if self.augments else weights

    def regularise(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        prepared: Mapping[str, torch.Tensor],
        weights: torch.Tensor,
        vector: VectorLayout,
        generator: torch.Generator,
    ) -> torch.Tensor | None:
        """The logit-invariance term times lambda; None where it is off or nothing can be permuted."""
        settings = self.invariance_settings
        if settings.invariance == 0 or not hidden_groups(vector):
            return None
        number = len(weights)
        copies = torch.cat([permute(weights, vector, generator) for _ in range(settings.copies)])
        moved = self.prepare(NetworkBatch(copies, vector))
        # One pass for all, so that a head with batch statistics sees originals and copies alike.
        both = {name: torch.cat([values, moved[name]]) for name, values in prepared.items()}
        logits = head(self(both, vector))
        parts = logits[number:].reshape(settings.copies, *logits[:number].shape)
        return settings.invariance * logit_invariance(logits[:number], parts)
