"""A network as one token: all of its weights, one after the other."""

from __future__ import annotations

import torch

from zooplatform.errors import TokenizerError
from zooplatform.interfaces import TokenBatch


class SketchTokenizer:
    def fit(self, states, *, seed, config=None):
        """There is nothing to fit."""

    def encode(self, state, *, layout, layers=()):
        wrong = [tensor.name for tensor in layout if tensor.dtype != "float32"]
        if wrong:
            raise TokenizerError(f"{', '.join(wrong)} must be float32.")
        tokens = torch.cat([state[tensor.name].reshape(-1) for tensor in layout])[None, None]
        positions = torch.zeros(1, 1, 3, dtype=torch.int64)
        return TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), positions, {})

    def decode(self, batch, *, layout, layers=()):
        pieces = batch.tokens[0, 0].split([tensor.num_elements for tensor in layout])
        return {
            tensor.name: piece.reshape(tensor.shape)
            for tensor, piece in zip(layout, pieces, strict=True)
        }

    def save(self, folder):
        """There is nothing to keep."""

    def load(self, folder):
        """There is nothing to read."""
