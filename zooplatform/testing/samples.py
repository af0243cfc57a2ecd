"""Small populations that are the same in every run."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    TensorSpec,
)

__all__ = ["sample_population"]

_MLP = {"preset": "mlp", "widths": [4, 6, 3], "activation": "tanh"}
_CNN = {
    "input": [1, 6, 6],
    "activation": "relu",
    "layers": [
        {"type": "conv", "out": 2, "kernel": 3},
        {"type": "activation"},
        {"type": "flatten"},
        {"type": "linear", "out": 3},
    ],
}
_SHAPES: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    "mlp": [
        ("layers.0.weight", (6, 4)),
        ("layers.0.bias", (6,)),
        ("layers.1.weight", (3, 6)),
        ("layers.1.bias", (3,)),
    ],
    "cnn": [
        ("layers.0.weight", (2, 1, 3, 3)),
        ("layers.0.bias", (2,)),
        ("layers.1.weight", (3, 32)),
        ("layers.1.bias", (3,)),
    ],
}


def sample_population(
    family: str = "mlp", *, num_models: int = 4, num_checkpoints: int = 2, seed: int = 0
) -> PopulationBatch:
    """Networks with random weights, drawn from `seed`, and made-up accuracies.

    Args:
        family: `mlp` (57 parameters: 4-6-3) or `cnn` (119 parameters: one 3x3 convolution and a
            linear layer at 6x6 pixels); both build with the `cnn` adapter.
        num_models: networks.
        num_checkpoints: checkpoints of each, at steps 10, 20, ...
        seed: of the weights.

    Returns:
        `num_models * num_checkpoints` rows, model by model.
    """
    layout = tuple(
        TensorSpec(name, "float32", shape, 4 * prod(shape)) for name, shape in _SHAPES[family]
    )
    num_rows = num_models * num_checkpoints
    draw = np.random.default_rng(seed)
    weights = draw.standard_normal((num_rows, sum(item.num_elements for item in layout)))
    rows = [
        _row(family, seed, model, checkpoint)
        for model in range(num_models)
        for checkpoint in range(num_checkpoints)
    ]
    config: dict[str, Any] = _MLP if family == "mlp" else _CNN
    return PopulationBatch(
        layout=layout,
        weights=np.ascontiguousarray(weights, dtype=np.float32),
        rows=rows,
        family="cnn",
        name=f"sample-{family}",
        config=config,
    )


def _row(family: str, seed: int, model: int, checkpoint: int) -> CheckpointRecord:
    accuracy = round(0.5 + 0.05 * model + 0.02 * checkpoint, 4)
    return CheckpointRecord(
        model=ModelInfo(
            key=f"{family}-{seed}-{model}",
            name=f"{family} {model}",
            source="sample:",
            seed=model,
            config={"learning_rate": 0.1 / (model + 1), "activation": "tanh"},
        ),
        step=10 * (checkpoint + 1),
        epoch=float(checkpoint + 1),
        metrics=(
            MetricRecord(name="test_accuracy", value=accuracy, dataset="sample", split="test"),
        ),
    )
