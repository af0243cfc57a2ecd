"""Small zoos whose accuracy shows in their weights, and predictors that find it: what comparisons are tested on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from zooplatform.interfaces import MetricRecord
from zooplatform.testing.samples import sample_population

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

__all__ = ["SAMPLE_PREDICTORS", "sample_zoos"]

_CHECKPOINTS = 3


def sample_zoos(catalog: Catalog, *, num_models: int = 24, stack: int = 2) -> dict[str, str]:
    """Append the zoos `mlp-a`, `mlp-b`, `cnn-a` and `cnn-b`: two architectures on two data sets.

    Each network's weights are spread as its accuracy says, more so on data set `b`. Hyper-parameters are
    `learning_rate` (not known of every tenth model) and `stack`.

    Args:
        catalog: where to.
        num_models: runs of each zoo, three checkpoints each.
        stack: runs that were trained together.

    Returns:
        Data set by name of the zoo.
    """
    found = {}
    for seed, (family, dataset) in enumerate(
        (family, dataset) for family in ("mlp", "cnn") for dataset in ("a", "b")
    ):
        batch = sample_population(
            family, num_models=num_models, num_checkpoints=_CHECKPOINTS, seed=seed
        )
        draw = np.random.default_rng(seed)
        quality = np.repeat(draw.uniform(0.2, 0.8, num_models), _CHECKPOINTS)
        accuracy = quality + 0.05 * np.tile(np.arange(_CHECKPOINTS), num_models)
        slope = {"a": 4.0, "b": 5.0}[dataset]
        weights = batch.weights * np.exp(slope * accuracy)[:, None]
        rows = []
        for at, row in enumerate(batch.rows):
            number = at // _CHECKPOINTS
            config = {"learning_rate": 0.01 * (1 + number), "stack": f"{number // stack:03d}"}
            if number % 10 == 9:
                del config["learning_rate"]
            metrics = tuple(
                MetricRecord(name=f"{split}_accuracy", value=value, dataset=dataset, split=split)
                for split, value in (
                    ("test", float(accuracy[at])),
                    ("train", float(accuracy[at]) * 1.05),
                )
            )
            rows.append(replace(row, model=replace(row.model, config=config), metrics=metrics))
        name = f"{family}-{dataset}"
        catalog.append(replace(batch, weights=weights.astype(np.float32), rows=rows), zoo=name)
        found[name] = dataset
    return found


# A plugin of two predictors. `spread` reads any architecture; `flat` only the one that it was fitted on.
SAMPLE_PREDICTORS = """
    from zooplatform.hookspecs import hookimpl
    from zooplatform.interfaces import PredictorSpec

    MODULE = __name__


    @hookimpl
    def zoo_register_predictors():
        return [
            PredictorSpec(name="spread", factory=f"{MODULE}:Spread", summary="A line through their spread."),
            PredictorSpec(name="flat", factory=f"{MODULE}:Flat", summary="A ridge on the weights."),
        ]


    class Spread:
        CONFIGS = {"default": {"noise": 0.0}, "noisy": {"noise": 0.5}}

        def _features(self, batch):
            return batch.weights.double().std(dim=1, keepdim=True).log()

        def fit(self, data, *, target, config, seed):
            import torch

            from zooplatform.errors import ConfigError
            from zooplatform.fitting import network_batches
            from zooplatform.interfaces import FitReport

            unknown = set(config) - {"noise", "ridge"}
            if unknown:
                raise ConfigError(f"unknown keys {sorted(unknown)}; known: noise, ridge")
            rows = torch.empty(len(data.train), 0)
            for indices, batch in network_batches(data.train):
                features = self._features(batch)
                if not rows.shape[1]:
                    rows = torch.zeros(len(data.train), features.shape[1] + 1, dtype=torch.float64)
                rows[indices, :-1] = features
                self.architecture = batch.architecture_id
            rows[:, -1] = 1
            noise = torch.randn(rows.shape[1], 1, generator=torch.Generator().manual_seed(seed)).double()
            gram = rows.T @ rows + config.get("ridge", 1e-3) * torch.eye(rows.shape[1])
            truth = torch.from_numpy(data.train.targets)[:, None]
            self.line = torch.linalg.solve(gram, rows.T @ truth) + config.get("noise", 0.0) * noise
            return FitReport(metrics={"rows": len(rows)}, seconds=0.0)

        def embed(self, batch):
            return self._features(batch).float()

        def predict(self, batch):
            return (self._features(batch) @ self.line[:-1] + self.line[-1])[:, 0]

        def save(self, folder):
            raise NotImplementedError

        def load(self, folder):
            raise NotImplementedError


    class Flat(Spread):
        CONFIGS = {}

        def _features(self, batch):
            return batch.weights.double()

        def predict(self, batch):
            from zooplatform.errors import ConfigError

            if batch.architecture_id != self.architecture:
                raise ConfigError("flat was fitted on another architecture; take spread")
            return super().predict(batch)
"""
