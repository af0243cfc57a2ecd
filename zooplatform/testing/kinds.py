"""Networks of several kinds, from which it can be told what a generator learnt: those of one kind lie together.

Legend for shapes: N networks, P values of one network.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from zooplatform.catalog import open_catalog
from zooplatform.fitting import GeneratorData, TaskImages
from zooplatform.generation.facts import network_facts
from zooplatform.generation.networks import Builder
from zooplatform.interfaces import CheckpointRecord, MetricRecord, ModelInfo, PopulationBatch
from zooplatform.layout import VectorLayout, layout_of
from zooplatform.testing.stripes import stripe_images

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

__all__ = ["sample_generator_data"]

# Networks of each kind.
_TRAIN, _VALIDATION = 8, 4
_DATASETS = ("rows", "columns")
_CNN = {
    "input": [1, 6, 6],
    "layers": [
        {"type": "conv", "out": 2, "kernel": 3},
        {"type": "batchnorm"},
        {"type": "activation"},
        {"type": "flatten"},
        {"type": "linear", "out": 3},
    ],
}
_MLP = {
    "input": [1, 6, 6],
    "layers": [
        {"type": "flatten"},
        {"type": "linear", "out": 4},
        {"type": "activation"},
        {"type": "linear", "out": 3},
    ],
}
_KINDS = (("cnn", _CNN, "tanh"), ("cnn", _CNN, "relu"), ("mlp", _MLP, "tanh"))


@cache
def sample_generator_data() -> GeneratorData:
    """Networks of two data sets, `rows` and `columns` (6x6 pixels, 3 classes), of three blueprints: architecture
    `kinds-cnn` (with batch normalisation) with two activations, `kinds-mlp` with one. They are drawn around a centre
    of their own and not trained; made once in a process."""
    with open_catalog(_folder()) as catalog:
        sides = {
            role: catalog.dataset(
                f"select checkpoint_id from wide where zoo = 'kinds-{role}'", target=None
            )
            for role in ("train", "val")
        }
        known = network_facts(catalog, [*sides["train"].ids, *sides["val"].ids])
        return GeneratorData(
            train=sides["train"],
            validation=sides["val"],
            facts=known.facts,
            blueprints=known.blueprints,
            images={name: _images(name) for name in _DATASETS},
            build=Builder(catalog.recogniser),
        )


def _images(name: str) -> TaskImages:
    x, y = stripe_images(name)
    small = F.avg_pool2d(torch.from_numpy(x).float().unsqueeze(1) / 255, 2)
    return TaskImages(name, small, torch.from_numpy(y), 3)


@lru_cache(maxsize=1)
def _folder() -> Path:
    """The catalog, made once in a process."""
    parent = Path(tempfile.mkdtemp(prefix="zoo-generators-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    with open_catalog(parent / "zoo", create=True) as catalog:
        for place, (family, table, activation) in enumerate(_KINDS):
            for at, dataset in enumerate(_DATASETS):
                _append(
                    catalog, family, {**table, "activation": activation}, dataset, 2 * place + at
                )
    return parent / "zoo"


def _append(catalog: Catalog, family: str, table: dict[str, Any], dataset: str, kind: int) -> None:
    """Networks of one kind, whose number seeds its centre."""
    module: Any = catalog.recogniser.adapter("cnn").build(table)
    layout = layout_of(module.state_dict())
    vector = VectorLayout(layout)
    draw = np.random.RandomState(kind)
    count = _TRAIN + _VALIDATION
    values = draw.normal(0, 0.5, vector.width) + draw.normal(0, 0.05, (count, vector.width))
    aside = None
    for field in vector.fields:
        if field.spec.name.endswith("running_var"):
            own = slice(field.offset, field.offset + field.spec.num_elements)
            values[:, own] = np.exp(values[:, own])
    if vector.aside_bytes:
        steps = np.arange(64, 64 + count, dtype=np.int64)
        aside = np.ascontiguousarray(np.repeat(steps[:, None], vector.aside_bytes // 8, 1))
    rows = [
        _row(f"{dataset} {family} {table['activation']}", one, dataset, table, draw)
        for one in range(count)
    ]
    for role, own in (("train", slice(None, _TRAIN)), ("val", slice(_TRAIN, None))):
        batch = PopulationBatch(
            layout=layout,
            weights=np.ascontiguousarray(values[own], dtype=np.float32),
            rows=rows[own],
            aside=None if aside is None else aside[own].view(np.uint8),
            family="cnn",
            name=f"kinds-{family}",
            config=module.config,
        )
        catalog.append(batch, zoo=f"kinds-{role}")


def _row(
    kind: str, number: int, dataset: str, table: dict[str, Any], draw: np.random.RandomState
) -> CheckpointRecord:
    accuracy = MetricRecord(
        name="test_accuracy", value=float(draw.uniform(0.5, 0.9)), dataset=dataset, split="test"
    )
    return CheckpointRecord(
        model=ModelInfo(
            key=f"{kind} {number}",
            name=f"{kind} {number}",
            source="sample:",
            license="CC0-1.0",
            seed=number,
            config={"dataset": dataset, "activation": table["activation"], "learning_rate": 0.01},
        ),
        step=100,
        epoch=1.0,
        metrics=(accuracy,),
    )
