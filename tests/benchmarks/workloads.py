"""What is measured: a zoo of small networks, a large checkpoint, a table of a million metrics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
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


def metrics_catalog(folder: Path, registry: Registry) -> tuple[Catalog, dict[str, Any]]:
    """10,000 models of 10 checkpoints with 10 metrics each, as a catalog and as data frames.

    The frames are what somebody who works with pandas would hold: one per table, and the hyper-parameters in long form.
    """
    import pandas as pd

    models, per_model = 10_000, 10
    generator = np.random.default_rng(0)
    model_ids = [f"{n:016x}" for n in generator.integers(0, 2**63, models)]
    checkpoint_ids = [f"{n:016x}" for n in generator.integers(0, 2**63, models * per_model)]
    hyper = [
        {
            "learning_rate": float(10 ** generator.uniform(-4, -1)),
            "batch_size": int(2 ** generator.integers(3, 9)),
            "dropout": float(generator.uniform(0, 0.5)),
            "optimizer": ("adam", "sgd")[number % 2],
            "activation": ("relu", "tanh", "gelu")[number % 3],
        }
        for number in range(models)
    ]
    kinds = [
        (split, name)
        for split in ("train", "test")
        for name in ("accuracy", "loss", "ece", "ggap", "auroc")
    ]
    total = models * per_model
    columns = {
        "checkpoint_id": np.repeat(np.array(checkpoint_ids, dtype=object), len(kinds)),
        "split": [split for split, _ in kinds] * total,
        "name": [name for _, name in kinds] * total,
        "value": generator.random(total * len(kinds)),
    }
    frame = pd.DataFrame(columns)
    owner = np.repeat(np.array(model_ids, dtype=object), per_model)
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    rows = rows.append_column("dataset", pa.array(["mnist"] * rows.num_rows))
    rows = rows.append_column("origin", pa.array(["measured"] * rows.num_rows))
    catalog = open_catalog(folder, create=True, registry=registry)
    architecture = "a" * 16
    from datetime import UTC, datetime

    catalog.commit(
        "a million metrics",
        {
            "models": [
                {
                    "model_id": model_id,
                    "architecture_id": architecture,
                    "name": model_id,
                    "source": "benchmark",
                    "source_key": model_id,
                    "config": json.dumps(config, sort_keys=True),
                    "created_at": datetime.now(UTC),
                }
                for model_id, config in zip(model_ids, hyper, strict=True)
            ],
            "checkpoints": [
                {
                    "checkpoint_id": checkpoint_id,
                    "model_id": model_id,
                    "architecture_id": architecture,
                    "step": number % per_model,
                    "dtype": "float32",
                    "num_parameters": WIDTH,
                    "size_bytes": 4 * WIDTH,
                    "state": "header-only",
                }
                for number, (checkpoint_id, model_id) in enumerate(
                    zip(checkpoint_ids, owner, strict=True)
                )
            ],
            "metrics": rows,
        },
    )
    frames = {
        "metrics": frame,
        "checkpoints": pd.DataFrame({"checkpoint_id": checkpoint_ids, "model_id": owner}),
        "hyperparameters": pd.DataFrame(
            [
                {"model_id": model_id, "key": key, "value": str(value)}
                for model_id, config in zip(model_ids, hyper, strict=True)
                for key, value in config.items()
            ]
        ),
    }
    return catalog, frames
