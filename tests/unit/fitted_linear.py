"""A small predictor of its own plugin, fitted by least squares, and a zoo in which it is right."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from zooplatform.artifacts import store_artifact
from zooplatform.fitting import FitData
from zooplatform.interfaces import MetricRecord, PopulationBatch
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

NOISE = 0.01

# Writes down which checkpoints it was asked about.
PLUGIN = """
import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from zooplatform import hookimpl
from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.interfaces import FitReport, PredictorSpec

ASKED = []


class Linear:
    def fit(self, data, *, target, config, seed):
        self.architecture_id, = data.train.architectures
        x, y = self._read(data.train)
        solution = torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution
        self.coefficients = solution[:, 0]
        x, y = self._read(data.validation)
        error = float((x @ self.coefficients - y).abs().mean())
        return FitReport(metrics={"validation_mae": error}, seconds=0.0)

    def _read(self, data):
        batch = data.read(np.arange(len(data)))
        return self._design(batch.weights), torch.from_numpy(data.targets)

    def _design(self, weights):
        ones = torch.ones(len(weights), 1, dtype=torch.float64)
        return torch.cat([weights.double(), ones], dim=1)

    def _require(self, batch):
        if batch.architecture_id != self.architecture_id:
            raise ConfigError("it was fitted on one other architecture.")

    def embed(self, batch):
        self._require(batch)
        ASKED.append(("embed", batch.ids))
        return batch.weights[:, :5].float() * self.coefficients[:5].float()

    def predict(self, batch):
        self._require(batch)
        ASKED.append(("predict", batch.ids))
        return self._design(batch.weights) @ self.coefficients

    def save(self, folder):
        save_file({"coefficients": self.coefficients}, folder / "model.safetensors")
        (folder / "model.json").write_text(json.dumps({"architecture_id": self.architecture_id}))

    def load(self, folder):
        self.coefficients = load_file(folder / "model.safetensors")["coefficients"]
        self.architecture_id = json.loads((folder / "model.json").read_text())["architecture_id"]


@hookimpl
def zoo_register_predictors():
    return [
        PredictorSpec(name="linear", factory="zoo_test_linear:Linear", summary="Least squares.")
    ]
"""


def learnable_population(num_models: int = 200, *, seed: int = 0) -> PopulationBatch:
    """MLPs of 57 parameters whose accuracy is a linear function of their weights, but for noise."""
    batch = sample_population("mlp", num_models=num_models, num_checkpoints=1, seed=seed)
    draw = np.random.default_rng(7)
    slope = draw.standard_normal(batch.weights.shape[1])
    signal = batch.weights @ slope / np.linalg.norm(slope)
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=num_models)
    accuracies = np.clip(0.5 + 0.1 * signal + noise, 0, 1)
    rows = [
        replace(
            row, metrics=(MetricRecord(name="test_accuracy", value=float(value), dataset="sample"),)
        )
        for row, value in zip(batch.rows, accuracies, strict=True)
    ]
    return replace(batch, rows=rows)


def fit_linear(
    catalog: Catalog, ids: list[str], *, name: str = "line", target: str = "test_accuracy"
) -> str:
    """Fit it on some checkpoints of a catalog and store it; gives the artifact's id."""
    predictor = catalog.registry.predictors.create("linear")
    middle = 3 * len(ids) // 4
    data = FitData(
        train=catalog.dataset(ids[:middle], target=target),
        validation=catalog.dataset(ids[middle:], target=target),
    )
    report = predictor.fit(data, target=target, config={}, seed=0)
    artifact = store_artifact(
        catalog,
        kind="predictor",
        backend="linear",
        name=name,
        instance=predictor,
        data={"target": target},
        metrics=report.metrics,
    )
    return artifact.artifact_id
