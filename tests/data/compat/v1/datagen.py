"""Writes `catalog/` beside this file: what format 1 looks like, to be read by every later version.

Special about it: two population architectures (one with int64 counters kept aside) and two single checkpoints that
share a tensor and hold bfloat16, float8 and zero-size values; one metric that a later commit corrects, one checkpoint
ingested by header first and whole later, and one by header only; three small shards merged into one by `compact`, the
merged files collected; then one more commit, so that merged and unmerged table files stand side by side.

Run `python tests/data/compat/v1/datagen.py` only to make a new format's folder, never to renew an old one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from zooplatform.catalog import open_catalog
from zooplatform.interfaces import (
    CheckpointRecord,
    LineageRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    TensorSpec,
)

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

HERE = Path(__file__).resolve().parent


def mlp(first: int) -> PopulationBatch:
    """Two checkpoints of a linear layer; the weights count up from `first`."""
    rows = [
        CheckpointRecord(
            model=ModelInfo(
                key=f"mlp-{first}",
                name=f"mlp {first}",
                source="compat:",
                seed=first,
                license="apache-2.0",
                config={"learning_rate": 0.1, "activation": "tanh"},
            ),
            step=step,
            metrics=(
                MetricRecord(
                    name="test_accuracy", value=0.5 + first / 100, dataset="d", split="test"
                ),
            ),
        )
        for step in (10, 20)
    ]
    return PopulationBatch(
        layout=(
            TensorSpec("layers.0.weight", "float32", (3, 4), 48),
            TensorSpec("layers.0.bias", "float32", (3,), 12),
        ),
        weights=(np.arange(30, dtype=np.float32) + first).reshape(2, 15),
        rows=rows,
        family="cnn",
        name="compat-mlp",
        config={"preset": "mlp", "widths": [4, 3], "activation": "tanh"},
    )


def counted() -> PopulationBatch:
    """One float16 network with a counter of another dtype, a child of an `mlp`."""
    info = ModelInfo(
        key="counted", name="counted", source="compat:",
        lineage=(LineageRecord(parent="compat:parent", relation="finetuned_from", detail={"epochs": 3}),),
    )  # fmt: skip
    return PopulationBatch(
        layout=(
            TensorSpec("weight", "float16", (5,), 10),
            TensorSpec("num_batches_tracked", "int64", (), 8),
        ),
        weights=np.array([[0.5, -0.0, 65504, np.nan, np.inf]], dtype=np.float16),
        aside=np.array([[7, 1, 0, 0, 0, 0, 0, 0]], dtype=np.uint8),
        rows=[CheckpointRecord(model=info, step=1)],
    )


def single(number: int) -> dict[str, torch.Tensor]:
    """A state dict of many dtypes; `shared` is the same in all."""
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3) + number
    return {
        "shared": torch.arange(20, dtype=torch.float64),
        "bfloat16": values.to(torch.bfloat16),
        "float8": values.to(torch.float8_e4m3fn),
        "empty": torch.zeros((0, 4)),
        "scalar": torch.tensor(number, dtype=torch.int32),
    }


def write(folder: Path, files: Path) -> Catalog:
    """Write the catalog to `folder`; the files that it ingests are made in `files`."""
    catalog = open_catalog(folder, create=True)
    paths = []
    for number in range(4):
        path = files / f"single-{number}.safetensors"
        save_file(single(number), path, metadata={"format": "pt", "number": str(number)})
        paths.append(path)
    for first in (0, 1, 2):
        catalog.append(mlp(first), zoo="compat", license="apache-2.0", citation="none")
    catalog.append(counted(), zoo="counted")
    catalog.ingest(paths[0], zoo="single")
    catalog.ingest(paths[1], header_only=True)
    catalog.ingest(paths[1])
    catalog.ingest(paths[2], header_only=True)
    (row,) = catalog.sql(
        "SELECT min(checkpoint_id) AS id FROM checkpoints WHERE step = 10"
    ).to_pylist()
    metric = {"dataset": "d", "split": "test", "name": "test_accuracy", "origin": "reported"}
    catalog.commit(
        "correct",
        {"metrics": [metric | {"checkpoint_id": row["id"], "value": 0.875}]},
        replaces=["metrics"],
    )
    catalog.compact()
    catalog.gc(grace_seconds=0)
    catalog.append(mlp(3), zoo="compat")
    return catalog


def facts(catalog: Catalog) -> dict[str, Any]:
    """What must be read of it, whatever reads it."""
    columns = "SELECT m.name, m.zoo_id, c.step, c.state, c.dtype, c.num_parameters, c.checkpoint_id"
    return {
        "checkpoints": catalog.sql(
            f"{columns} FROM checkpoints AS c JOIN models AS m USING (model_id) ORDER BY ALL"
        ).to_pylist(),
        "metrics": catalog.sql(
            "SELECT checkpoint_id, name, value, origin FROM metrics ORDER BY ALL"
        ).to_pylist(),
        "files": catalog.sql(
            "SELECT checkpoint_id, path, format, size_bytes, sha256 FROM files WHERE sha256 IS NOT NULL ORDER BY ALL"
        ).to_pylist(),
        "lineage": catalog.sql(
            "SELECT child_id, parent_id, relation, detail FROM lineage ORDER BY ALL"
        ).to_pylist(),
    }


def main() -> None:
    """Replace the catalog beside this file."""
    target = HERE / "catalog"
    shutil.rmtree(target, ignore_errors=True)
    os.environ["LOGNAME"] = "zoo"  # the author of the commits
    # The references that the catalog keeps are absolute, so the files are where they can be anywhere.
    files = Path("/tmp/zooplatform-compat")
    files.mkdir()
    try:
        with write(target, files) as catalog:
            text = json.dumps(facts(catalog), indent=1) + "\n"
    finally:
        shutil.rmtree(files)
    (HERE / "facts.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
