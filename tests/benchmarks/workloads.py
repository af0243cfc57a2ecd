"""What is measured: a zoo of small networks, a large checkpoint, a table of a million metrics."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from zooplatform.catalog import open_catalog
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    TensorSpec,
)

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import Layout
    from zooplatform.registry import Registry

__all__ = [
    "LAYOUT",
    "NUM_NETWORKS",
    "WIDTH",
    "batch",
    "file_state",
    "grown_catalog",
    "metrics_catalog",
    "save_vit",
    "spans",
    "zoo_weights",
]

NUM_NETWORKS = 10_000
# The network of the tiny model zoos: three convolutions and two linear layers on 28 x 28 images.
_SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (8, 1, 5, 5),
    "conv1.bias": (8,),
    "conv2.weight": (6, 8, 5, 5),
    "conv2.bias": (6,),
    "conv3.weight": (4, 6, 2, 2),
    "conv3.bias": (4,),
    "fc1.weight": (20, 36),
    "fc1.bias": (20,),
    "fc2.weight": (10, 20),
    "fc2.bias": (10,),
}
LAYOUT: Layout = tuple(
    TensorSpec(name, "float32", shape, 4 * int(np.prod(shape))) for name, shape in _SHAPES.items()
)
WIDTH = sum(spec.num_elements for spec in LAYOUT)
assert WIDTH == 2464


def spans() -> list[tuple[str, int, int]]:
    """Name, first and last column of every tensor in a row of the zoo."""
    found, at = [], 0
    for spec in LAYOUT:
        found.append((spec.name, at, at + spec.num_elements))
        at += spec.num_elements
    return found


def zoo_weights(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """(count, WIDTH) of the size that weights have."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, WIDTH), dtype=np.float32) * np.float32(0.1)


def records(count: int, prefix: str) -> list[CheckpointRecord]:
    """Records as a zoo brings them: hyper-parameters, a seed and two metrics each."""
    return [
        CheckpointRecord(
            model=ModelInfo(
                key=f"{prefix}/{number}",
                name=f"network {number}",
                source="benchmark",
                seed=number,
                config={"learning_rate": 1e-3 * (1 + number % 7), "optimizer": "adam"},
            ),
            epoch=50.0,
            metrics=(
                MetricRecord(name="accuracy", value=(number % 997) / 997, split="test"),
                MetricRecord(name="loss", value=1 - (number % 997) / 997, split="test"),
            ),
        )
        for number in range(count)
    ]


def batch(weights: npt.NDArray[np.float32], prefix: str) -> PopulationBatch:
    return PopulationBatch(layout=LAYOUT, weights=weights, rows=records(len(weights), prefix))


def file_state(row: npt.NDArray[np.float32]) -> dict[str, torch.Tensor]:
    """One network as its framework would save it: tensors of their own memory."""
    flat = torch.from_numpy(row)
    return {
        spec.name: flat[start:stop].view(spec.shape).clone()
        for spec, (_, start, stop) in zip(LAYOUT, spans(), strict=True)
    }


def grown_catalog(folder: Path, shards: int, registry: Registry) -> tuple[Path, list[str]]:
    """A catalog of `shards` x 1,000 networks, one commit each; its path and all checkpoint ids."""
    ids: list[str] = []
    with open_catalog(folder, create=True, registry=registry) as catalog:
        for number in range(shards):
            part = batch(zoo_weights(1000, seed=number), f"shard {number}")
            ids += catalog.append(part, zoo="grown")
    return folder, ids


def save_vit(path: Path) -> int:
    """A ViT-B with random weights as safetensors; returns its bytes."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("vit_base_patch16_224").state_dict(), path)
    return path.stat().st_size


def metrics_catalog(folder: Path, registry: Registry) -> tuple[Catalog, dict[str, Path]]:
    """10,000 networks with 100 metrics each (10 data sets, 2 splits, 5 names), as a catalog.

    Also the same as Parquet files for pandas: one per table, the hyper-parameters in long form.
    """
    generator = np.random.default_rng(0)
    model_ids = [f"{n:016x}" for n in generator.integers(0, 2**63, NUM_NETWORKS)]
    checkpoint_ids = [f"{n:016x}" for n in generator.integers(0, 2**63, NUM_NETWORKS)]
    hyper = [
        {
            "learning_rate": float(10 ** generator.uniform(-4, -1)),
            "batch_size": int(2 ** generator.integers(3, 9)),
            "dropout": float(generator.uniform(0, 0.5)),
            "optimizer": ("adam", "sgd")[number % 2],
            "activation": ("relu", "tanh", "gelu")[number % 3],
        }
        for number in range(NUM_NETWORKS)
    ]
    kinds = [
        (f"mnist-c-{corruption}", split, name)
        for corruption in range(10)
        for split in ("train", "test")
        for name in ("accuracy", "loss", "ece", "ggap", "auroc")
    ]
    metrics = pa.table(
        {
            "checkpoint_id": pa.array(checkpoint_ids).take(
                np.repeat(np.arange(NUM_NETWORKS), len(kinds))
            ),
            "dataset": [dataset for dataset, _, _ in kinds] * NUM_NETWORKS,
            "split": [split for _, split, _ in kinds] * NUM_NETWORKS,
            "name": [name for _, _, name in kinds] * NUM_NETWORKS,
            "value": generator.random(NUM_NETWORKS * len(kinds)),
            "origin": ["measured"] * (NUM_NETWORKS * len(kinds)),
        }
    )
    catalog = open_catalog(folder / "catalog", create=True, registry=registry)
    architecture, now = "a" * 16, datetime.now(UTC)
    models = [
        {
            "model_id": model_id,
            "architecture_id": architecture,
            "name": model_id,
            "source": "benchmark",
            "source_key": model_id,
            "config": json.dumps(config, sort_keys=True),
            "created_at": now,
        }
        for model_id, config in zip(model_ids, hyper, strict=True)
    ]
    checkpoints = [
        {
            "checkpoint_id": checkpoint_id,
            "model_id": model_id,
            "architecture_id": architecture,
            "dtype": "float32",
            "num_parameters": WIDTH,
            "size_bytes": 4 * WIDTH,
            "state": "header-only",
        }
        for checkpoint_id, model_id in zip(checkpoint_ids, model_ids, strict=True)
    ]
    catalog.commit(
        "a million metrics", {"models": models, "checkpoints": checkpoints, "metrics": metrics}
    )
    plain = {
        "metrics": metrics,
        "checkpoints": pa.table({"checkpoint_id": checkpoint_ids, "model_id": model_ids}),
        "hyperparameters": pa.Table.from_pylist(
            [
                {"model_id": model_id, "key": key, "value": str(value)}
                for model_id, config in zip(model_ids, hyper, strict=True)
                for key, value in config.items()
            ]
        ),
    }
    files = {}
    for name, table in plain.items():
        files[name] = folder / f"{name}.parquet"
        pq.write_table(table, files[name])
    return catalog, files
