"""Real small zoos to fit baselines on: four shared initialisations, independent seeds, and two data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch

import zooplatform as zoo
from zooplatform.fitting import GeneratorData
from zooplatform.generation.facts import network_facts
from zooplatform.generation.images import available_images
from zooplatform.generation.networks import Builder
from zooplatform.growing import grow, load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog

_RECIPE = """
name = "NAME"
runs = 16
epochs = 12
keep = [11, 12]
seed = 1
stack = 16
initialisation = INITIALISATION
license = "CC0-1.0"

[data]
source = [SOURCES]
folder = "FOLDER"
test = 400
train = 500

[architecture]
family = "cnn"
input = [1, 8, 8]
layers = [
    { type = "conv", out = 8, kernel = 3, stride = 2, padding = 1 },
    NORM
    { type = "activation" },
    { type = "conv", out = 8, kernel = 3, stride = 2, padding = 1 },
    { type = "activation" },
    { type = "flatten" },
    { type = "linear", out = 16 },
    { type = "activation" },
    { type = "linear", out = 10 },
]

[hyperparameters]
activation = ACTIVATION
init = "normal"
init_std = 0.5
learning_rate = 1e-2
batch_size = 32
"""


class Zoo(NamedTuple):
    """A zoo and what a generator is fitted on: a quarter of the runs is held out."""

    catalog: Catalog
    data: GeneratorData

    def initialisation(self, checkpoint_id: str) -> int:
        """Which initialisation a network began with."""
        seed: int = self.data.facts[checkpoint_id].config["init_seed"]
        return seed

    def accuracy(
        self, weights: torch.Tensor, blueprint: int = 0, dataset: str = "digits"
    ) -> list[float]:
        """Share of the training images of a data set that each network gets right."""
        images, found = self.data.images[dataset], []
        for row in weights:
            network = Builder(self.catalog.recogniser).load(self.data.blueprints[blueprint], row)
            with torch.no_grad():
                found.append(float((network(images.x).argmax(1) == images.y).float().mean()))
        return found

    def weights(self, checkpoint_id: str) -> torch.Tensor:
        """(P,) as stored."""
        population = self.catalog.population([checkpoint_id])
        return torch.as_tensor(population.weights)[0].clone()


def _grown(
    folder: Path,
    *,
    sources: str = '"sklearn:digits"',
    initialisation: str = "4",
    activation: str = '"tanh"',
    norm: str = "",
    settings: tuple[str, ...] = (),
) -> Zoo:
    text = _RECIPE.replace("FOLDER", str(folder)).replace("SOURCES", sources)
    text = text.replace("NAME", "small").replace("INITIALISATION", initialisation)
    text = text.replace("ACTIVATION", activation).replace("NORM", norm)
    recipe = folder / "recipe.toml"
    recipe.write_text(text, encoding="utf-8")
    catalog = zoo.open_catalog(folder / "catalog", create=True)
    grow(load_recipe(recipe, settings), catalog)
    runs = catalog.sql("select checkpoint_id, seed from wide order by checkpoint_id").to_pylist()
    first = 3 * max(row["seed"] for row in runs) // 4
    train = [row["checkpoint_id"] for row in runs if row["seed"] <= first]
    held_out = [row["checkpoint_id"] for row in runs if row["seed"] > first]
    known = network_facts(catalog, [*train, *held_out])
    images, _ = available_images(catalog, train, folder=folder)
    data = GeneratorData(
        train=catalog.dataset(train, target=None),
        validation=catalog.dataset(held_out, target=None),
        facts=known.facts,
        blueprints=known.blueprints,
        images={name: one.images for name, one in images.items()},
        build=Builder(catalog.recogniser),
    )
    return Zoo(catalog, data)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Results are the same bit for bit on one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Four initialisations, 16 runs of two checkpoints each; 12 runs to learn from."""
    found = _grown(tmp_path_factory.mktemp("shared"))
    yield found
    found.catalog.close()


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Independent seeds, 16 runs; 12 to learn from."""
    found = _grown(tmp_path_factory.mktemp("seeds"), initialisation='"independent"')
    yield found
    found.catalog.close()


@pytest.fixture(scope="session")
def normed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Two activations, with batch normalisation, few epochs, independent seeds."""
    found = _grown(
        tmp_path_factory.mktemp("normed"),
        initialisation='"independent"',
        activation='["tanh", "relu"]',
        norm='{ type = "batchnorm" },',
        settings=("epochs=2", "keep=[2]", "data.train=200"),
    )
    yield found
    found.catalog.close()


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Two data sets: images of digits, and the same dark on bright with other numbers, as letters."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("several")
    digits = load_digits()
    x = (digits.images * 15).astype(np.uint8)
    np.savez(folder / "mnist.npz", x=x, y=digits.target)
    np.savez(folder / "notmnist.npz", x=255 - x, y=(digits.target * 3 + 1) % 10)
    found = _grown(
        folder,
        sources='"npz:mnist.npz", "npz:notmnist.npz"',
        activation='["tanh", "relu"]',
        settings=("epochs=4", "keep=[4]", "runs=8"),
    )
    yield found
    found.catalog.close()
