"""Networks to fit on: drawn around centres, and really trained on stripes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform.catalog import open_catalog
from zooplatform.fitting import GeneratorData, TaskImages
from zooplatform.generation.facts import network_facts
from zooplatform.generation.networks import Builder
from zooplatform.testing.kinds import sample_generator_data
from zooplatform.testing.stripes import grow_stripes, stripe_images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Results are the same bit for bit on one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kinds() -> GeneratorData:
    """48 networks to train on and 24 to choose by: three blueprints, two data sets, each around a centre of its own."""
    return sample_generator_data()


@pytest.fixture(scope="session")
def stripes_catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """64 trained networks of 3 initialisations: 2 data sets, 2 activations, batch normalisation."""
    folder = tmp_path_factory.mktemp("stripes")
    with open_catalog(folder / "zoo", create=True) as catalog:
        settings = ("runs=32", "epochs=6", "keep=[6]", "initialisation=3", "stack=16")
        grow_stripes(catalog, folder, *settings)
        yield catalog


@pytest.fixture(scope="session")
def stripes(stripes_catalog: Catalog) -> GeneratorData:
    """The trained networks: 48 to train on, 16 to choose by."""
    ids = stripes_catalog.sql("select checkpoint_id from wide order by model_id")
    listed = ids["checkpoint_id"].to_pylist()
    known = network_facts(stripes_catalog, listed)
    images = {}
    for name in ("rows", "columns"):
        x, y = stripe_images(name)
        small = torch.nn.functional.avg_pool2d(torch.from_numpy(x).float().unsqueeze(1) / 255, 2)
        images[name] = TaskImages(name, small, torch.from_numpy(y), 3)
    return GeneratorData(
        train=stripes_catalog.dataset(listed[:48], target=None),
        validation=stripes_catalog.dataset(listed[48:], target=None),
        facts=known.facts,
        blueprints=known.blueprints,
        images=images,
        build=Builder(stripes_catalog.recogniser),
    )
