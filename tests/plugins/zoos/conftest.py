"""Networks that are really trained, for trees that are written as the public zoos are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from zooplatform.layout import VectorLayout

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.interfaces import PopulationBatch


@dataclass(frozen=True)
class Run:
    """One training run: hyper-parameters, the state of each epoch and what was measured with it."""

    config: dict[str, Any]
    states: list[dict[str, torch.Tensor]]  # epoch 0, 1, ...
    results: list[dict[str, float]]  # one per epoch, accuracies as fractions


def small_cnn(activation: type[nn.Module], dropout: float) -> nn.Module:
    """The 2,464-parameter network of the published zoos, with its `module_list` names."""
    drop = [nn.Dropout(dropout)] if dropout else []
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), activation(), *drop]
    layers += [nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), activation(), *drop]
    layers += [nn.Conv2d(6, 4, 2), activation(), nn.Flatten(), nn.Linear(36, 20), activation()]
    layers += [*drop, nn.Linear(20, 10)]
    network = nn.Module()
    network.module_list = nn.ModuleList(layers)
    return network


def forward(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for layer in network.module_list:  # type: ignore[union-attr]
        x = layer(x)
    return x


@pytest.fixture(scope="session")
def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Digits as (N, 1, 28, 28): training images and labels, test images and labels."""
    digits = load_digits()
    x = np.pad(np.kron(digits.images / 8.0 - 1.0, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    data = torch.tensor(x, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    return data[:600], labels[:600], data[600:1000], labels[600:1000]


@pytest.fixture(scope="session")
def runs(images: tuple[torch.Tensor, ...]) -> list[Run]:
    """Three runs of two epochs: tanh, relu, and tanh with dropout (whose names are shifted)."""
    x, y, test_x, test_y = images
    found = []
    for seed, (name, kind, dropout) in enumerate(
        [("tanh", nn.Tanh, 0.0), ("relu", nn.ReLU, 0.0), ("tanh", nn.Tanh, 0.5)]
    ):
        torch.manual_seed(seed)
        network = small_cnn(kind, dropout)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        states, results = [], []
        for epoch in range(3):
            losses = []
            if epoch:
                network.train()
                for start in range(0, len(x), 32):
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(
                        forward(network, x[start : start + 32]), y[start : start + 32]
                    )
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
            network.eval()
            with torch.no_grad():
                out = forward(network, test_x)
                line = {
                    "test_acc": (out.argmax(1) == test_y).float().mean().item(),
                    "test_loss": nn.functional.cross_entropy(out, test_y).item(),
                }
            if epoch:
                line["train_loss"] = float(np.mean(losses))
            states.append({k: v.clone() for k, v in network.state_dict().items()})
            results.append(line)
        config = {
            "seed": seed,
            "model::nlin": name,
            "model::dropout": dropout,
            "model::o_dim": 4,
            "optim::lr": 5e-3,
        }
        found.append(Run(config, states, results))
    assert found[0].results[-1]["test_acc"] > 0.4
    return found


class Rows:
    """Every row of some batches by (model name, step): its state dict, record and batch."""

    def __init__(self, batches: list[PopulationBatch]) -> None:
        self.batches = batches
        self.failed = [entry for batch in batches for entry in batch.failed]
        self.notes = [note for batch in batches for note in batch.notes]
        self.rows = {
            (record.model.name, record.step): (batch, at, record)
            for batch in batches
            for at, record in enumerate(batch.rows)
        }

    def __len__(self) -> int:
        return sum(len(batch.rows) for batch in self.batches)

    def record(self, name: str, step: int | None) -> Any:
        return self.rows[name, step][2]

    def metrics(self, name: str, step: int | None) -> dict[str, float]:
        return {metric.name: metric.value for metric in self.record(name, step).metrics}

    def config(self, name: str, step: int | None) -> Any:
        return self.rows[name, step][0].config

    def state(self, name: str, step: int | None) -> dict[str, torch.Tensor]:
        from zooplatform.catalog.population import split_vector

        batch, at, _ = self.rows[name, step]
        aside = None if batch.aside is None else batch.aside[at].copy()
        return split_vector(VectorLayout(batch.layout), batch.weights[at].copy(), aside)


@pytest.fixture
def rows() -> type[Rows]:
    return Rows


@pytest.fixture
def same() -> Any:
    """Whether two state dicts are equal bit for bit, in names, order, types and shapes."""

    def compare(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return list(a) == list(b) and all(
            a[k].dtype == b[k].dtype
            and a[k].shape == b[k].shape
            and a[k].contiguous().numpy().tobytes() == b[k].contiguous().numpy().tobytes()
            for k in a
        )

    return compare


@pytest.fixture
def evaluate(images: tuple[torch.Tensor, ...]) -> Any:
    """Test accuracy of a network on the images that the runs were measured with."""

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            return (network(images[2]).argmax(1) == images[3]).float().mean().item()

    return accuracy


@pytest.fixture
def bomb(tmp_path: Path) -> Any:
    """An object whose unpickling makes the file `ran` where code is run."""
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch '{marker}'",))

    class Holder:
        value = Bomb()
        path = marker

    return Holder
