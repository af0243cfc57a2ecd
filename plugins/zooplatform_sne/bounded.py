"""Bounded memory: rows through a function in blocks, and sets of any size to vectors.

Legend for shapes: B networks, T tokens of a network, S sets, n elements, d size of an element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zooplatform_sne.sets import SetSettings, SetToSet, SetToVector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SpanEncoder", "in_blocks"]


def in_blocks(function: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, whose rows do not depend on each other, at most `rows` of them at a time.

    Only the results are kept of a block; where gradients are wanted, it is computed a second time for them. One block
    alone is computed as it is, since keeping it costs no more than computing it again would.
    """
    if len(tensors[0]) <= rows:
        return function(*tensors)
    results = []
    for block in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
        if torch.is_grad_enabled():
            results.append(checkpoint(function, *block, use_reentrant=False))
        else:
            results.append(function(*block))
    return torch.cat(results)


class SpanEncoder(nn.Module):
    """The tokens of every layer as a set, to one vector per layer: a Phi and a Psi of the paper.

    Args:
        settings: of the set modules.
        max_tokens: tokens that are encoded at once, but for the pooling of a larger layer.
        max_set: tokens that attend to each other. A larger layer is cut into sets of that many, which attend within
            themselves and are pooled as one.
    """

    def __init__(self, settings: SetSettings, *, max_tokens: int, max_set: int) -> None:
        super().__init__()
        self.phi, self.psi = SetToSet(settings), SetToVector(settings)
        self.max_tokens, self.max_set = max_tokens, max_set

    def forward(self, tokens: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """(B, number of spans, d) from `tokens` (B, T, d) and the (first, number) of every layer's tokens."""
        by_size: dict[int, list[int]] = {}
        for place, (_, count) in enumerate(spans):
            by_size.setdefault(count, []).append(place)
        parts, order = [], []
        # Layers of one size are one batch of sets, so that nothing is padded.
        for count, places in by_size.items():
            starts = [spans[place][0] for place in places]
            sets = torch.stack([tokens[:, s : s + count] for s in starts], dim=1)
            encoded = self._encode(sets.flatten(0, 1))
            parts.append(encoded.view(len(tokens), len(places), -1))
            order += places
        back = torch.tensor(order, device=tokens.device).argsort()
        return torch.cat(parts, dim=1)[:, back]

    def _encode(self, sets: Tensor) -> Tensor:
        """(S, d) from sets (S, n, d)."""
        count = sets.shape[1]
        if count <= self.max_set:
            return in_blocks(lambda x: self.psi(self.phi(x)), self._rows(count), sets)
        parts = [
            in_blocks(self.phi, self._rows(part.shape[1]), part)
            for part in torch.split(sets, self.max_set, dim=1)
        ]
        return in_blocks(self.psi, self._rows(count), torch.cat(parts, dim=1))

    def _rows(self, count: int) -> int:
        return max(1, self.max_tokens // count)
