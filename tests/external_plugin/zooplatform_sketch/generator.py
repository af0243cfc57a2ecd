"""Networks near a training network: one of them, drawn at random, with a little noise."""

from __future__ import annotations

import json

import torch

from zooplatform.interfaces import FitReport, TokenBatch


class SketchGenerator:
    def fit(self, data, *, config, seed):
        self.known = torch.cat([batch.tokens for batch in data])
        return FitReport(metrics={"num_networks": float(len(self.known))}, seconds=0.0)

    def sample(self, n, *, condition=None, seed, temperature=1.0, top_k=None):
        draw = torch.Generator().manual_seed(seed)
        for _ in range(n):
            index = torch.randint(len(self.known), (1,), generator=draw)
            tokens = self.known[index]
            noise = torch.randn(tokens.shape, generator=draw)
            positions = torch.zeros(1, 1, 3, dtype=torch.int64)
            mask = torch.ones_like(tokens, dtype=torch.bool)
            yield TokenBatch(tokens + 0.01 * temperature * noise, mask, positions, {})

    def save(self, folder):
        (folder / "sketch.json").write_text(json.dumps(self.known.tolist()))

    def load(self, folder):
        self.known = torch.tensor(json.loads((folder / "sketch.json").read_text()))
