"""Networks near a training network: one of them, drawn at random, with a little noise."""

from __future__ import annotations

import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fitting import Blueprint
from zooplatform.interfaces import FitReport, GeneratedBatch


class SketchGenerator:
    """Of a condition it follows the data set alone."""

    def __init__(self):
        self.networks = []  # (data set, blueprint, weights (P,))

    def fit(self, data, *, config, seed):
        if config:
            raise ConfigError(f"sketch has no settings; it was given {', '.join(config)}.")
        self.networks = []
        for index, one in enumerate(data.train.ids):
            fact = data.facts[one]
            blueprint = data.blueprints[fact.blueprint]
            self.networks.append((fact.dataset, blueprint, data.train[index].weights))
        return FitReport(metrics={"num_networks": float(len(self.networks))}, seconds=0.0)

    def sample(self, n, *, condition=None, seed, temperature=1.0, top_k=None, options=None):
        if not self.networks:
            raise ConfigError("sketch is not fitted.")
        if options:
            raise ConfigError(f"sketch has no options; it was given {', '.join(options)}.")
        wanted = None if condition is None else condition.dataset
        known = [item for item in self.networks if wanted in (None, item[0])]
        if not known:
            names = sorted({item[0] for item in self.networks})
            raise ConfigError(f"sketch knows no {wanted!r}. It knows {', '.join(names)}.")
        draw = torch.Generator().manual_seed(seed)
        for _ in range(n):
            index = int(torch.randint(len(known), (1,), generator=draw)) if temperature else 0
            dataset, blueprint, weights = known[index]
            noise = torch.randn(weights.shape, generator=draw)
            yield GeneratedBatch((weights + 0.01 * temperature * noise)[None], blueprint, dataset)

    def save(self, folder):
        if not self.networks:
            raise ConfigError("sketch is not fitted.")
        save_file(
            {str(at): weights for at, (_, _, weights) in enumerate(self.networks)},
            folder / "sketch.safetensors",
        )
        said = [(dataset, blueprint.to_json()) for dataset, blueprint, _ in self.networks]
        (folder / "sketch.json").write_text(json.dumps(said))

    def load(self, folder):
        try:
            said = json.loads((folder / "sketch.json").read_text())
            tensors = load_file(folder / "sketch.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} cannot be read ({error}). Fit again.") from error
        self.networks = [
            (dataset, Blueprint.from_json(blueprint), tensors[str(at)])
            for at, (dataset, blueprint) in enumerate(said)
        ]
