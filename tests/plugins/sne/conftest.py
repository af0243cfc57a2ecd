"""Real networks as batches, and the built catalog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform.catalog import open_catalog
from zooplatform.interfaces import LayerSpec, NetworkBatch
from zooplatform.layout import VectorLayout, layout_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset

_DIGITS = Path(__file__).parents[3] / "catalogs" / "digits"
_TYPES = {1: "norm", 2: "linear", 4: "conv"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Results are the same bit for bit on one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Iterator[Catalog]:
    """The zoo `digits`: 48 networks at 3 checkpoints each, 1,338 parameters."""
    with open_catalog(_DIGITS) as catalog:
        yield catalog


@pytest.fixture(scope="session")
def digit_parts(digits: Catalog) -> tuple[WeightDataset, WeightDataset, WeightDataset]:
    """99 networks to train on, 21 to choose by, 24 to test on; no model is in two of them."""
    query = "select distinct model_id from wide where zoo = 'digits' order by 1"
    models = digits.sql(query)["model_id"].to_pylist()
    return (
        _of_models(digits, models[:33]),
        _of_models(digits, models[33:40]),
        _of_models(digits, models[40:]),
    )


def _of_models(catalog: Catalog, models: Sequence[str]) -> WeightDataset:
    found = catalog.sql(
        "select checkpoint_id from wide where list_contains(?, model_id)", [list(models)]
    )
    return catalog.dataset(found["checkpoint_id"].to_pylist())


@pytest.fixture(scope="session")
def as_batch() -> Callable[..., NetworkBatch]:
    """Modules of one architecture as a batch, layers by the names before the last dot."""

    def make(*modules: nn.Module) -> NetworkBatch:
        states = [module.state_dict() for module in modules]
        layers: dict[str, list[str]] = {}
        for name in states[0]:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        specs = []
        for index, (name, tensors) in enumerate(layers.items()):
            kind = "attention" if "attention" in name else _TYPES[states[0][tensors[0]].ndim]
            kind = "embedding" if "embed" in name and kind == "linear" else kind
            specs.append(LayerSpec(index, name, kind, tuple(tensors)))
        vector = VectorLayout(layout_of(states[0]), specs)
        main = [f.spec.name for f in vector.fields if not f.aside]
        rows = [torch.cat([state[name].flatten() for name in main]) for state in states]
        return NetworkBatch(torch.stack(rows), vector)

    return make
