"""Networks to fit on: the small catalog of trained networks, and a catalog of two architectures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import zooplatform as zoo
from zooplatform.fitting import FitData
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset

DIGITS = Path(__file__).parents[3] / "catalogs" / "digits"


@pytest.fixture(scope="module")
def digits() -> Catalog:
    return zoo.open_catalog(DIGITS)


@pytest.fixture
def data(digits: Catalog) -> Callable[..., FitData]:
    """36 runs to learn from, 12 others to judge by; `target` is a column of `wide`."""

    def make(target: str = "test_accuracy", **kwargs: object) -> FitData:
        query = "SELECT DISTINCT model_id FROM wide WHERE zoo = 'digits' ORDER BY 1"
        runs = digits.sql(query)["model_id"].to_pylist()
        sides = []
        for chosen in (runs[:36], runs[36:]):
            listed = ", ".join(f"'{run}'" for run in chosen)
            query = f"SELECT checkpoint_id FROM checkpoints WHERE model_id IN ({listed})"
            sides.append(digits.dataset(query, target=target))
        return FitData(train=sides[0], validation=sides[1], **kwargs)  # type: ignore[arg-type]

    return make


@pytest.fixture
def two_architectures(zoo_catalog: Catalog) -> FitData:
    """24 networks to learn from and 12 to judge by, half of them perceptrons, half convolutional."""
    for family in ("mlp", "cnn"):
        zoo_catalog.append(sample_population(family, num_models=9, num_checkpoints=2), zoo=family)

    def side(condition: str) -> WeightDataset:
        return zoo_catalog.dataset(f"SELECT checkpoint_id FROM wide WHERE {condition}")

    return FitData(train=side("seed < 6"), validation=side("seed >= 6"))


@pytest.fixture
def one_of_two(zoo_catalog: Catalog, two_architectures: FitData) -> WeightDataset:
    """The convolutional networks to judge by."""
    query = "SELECT checkpoint_id FROM wide WHERE seed >= 6 AND zoo = 'cnn'"
    return zoo_catalog.dataset(query)
