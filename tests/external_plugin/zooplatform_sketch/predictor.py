"""The target of the nearest network, by distance of the weights."""

from __future__ import annotations

import json

import torch

from zooplatform.interfaces import FitReport


class SketchPredictor:
    def fit(self, data, *, target, config, seed):
        pairs = list(data)
        self.known = torch.cat([self.embed(batch) for batch, _ in pairs])
        self.targets = torch.cat([values for _, values in pairs])
        return FitReport(metrics={"num_networks": float(len(self.known))}, seconds=0.0)

    def embed(self, batch):
        return batch.tokens.flatten(1)

    def predict(self, batch):
        return self.targets[torch.cdist(self.embed(batch), self.known).argmin(1)]

    def save(self, folder):
        content = {"known": self.known.tolist(), "targets": self.targets.tolist()}
        (folder / "sketch.json").write_text(json.dumps(content))

    def load(self, folder):
        content = json.loads((folder / "sketch.json").read_text())
        self.known = torch.tensor(content["known"])
        self.targets = torch.tensor(content["targets"])
