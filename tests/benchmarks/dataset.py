"""Shuffled batches from a catalog against a numpy gather from memory.

    python tests/benchmarks/dataset.py [--networks 10000] [--parameters 2464] [--batch 256] [--rounds 9]

One epoch of shuffled batches of `WeightDataset` (order, weights, targets, ids) against the gather
alone, `matrix[rows]`, of the same sizes from an array in memory. The networks lie in one shard, and
again in eight. The rounds alternate between the sides, the middle of their ratios is given; times
are CPU seconds of this process, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zooplatform.catalog import open_catalog
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    TensorSpec,
)
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.datasets import WeightDataset

MOST = 2.0


class Result(NamedTuple):
    """Milliseconds per batch of both sides, and the middle of the rounds' ratios."""

    dataset: float
    numpy: float
    ratio: float


def make_dataset(folder: Path | str, networks: int, parameters: int, shards: int) -> WeightDataset:
    """A catalog of random networks with a target, stored in so many shards."""
    layout = (TensorSpec("weight", "float32", (parameters,), 4 * parameters),)
    weights = np.random.default_rng(0).standard_normal((networks, parameters), dtype=np.float32)
    records = [
        CheckpointRecord(
            model=ModelInfo(key=str(i), name=str(i), source="benchmark:"),
            step=0,
            metrics=(MetricRecord(name="test_accuracy", value=i / networks, split="test"),),
        )
        for i in range(networks)
    ]
    catalog = open_catalog(folder, create=True, registry=load_plugins(allow=()))
    for part in np.array_split(np.arange(networks), shards):
        rows = [records[i] for i in part]
        catalog.append(PopulationBatch(layout=layout, weights=weights[part], rows=rows), zoo="z")
    return catalog.dataset()


def compare(data: WeightDataset, *, batch: int, rounds: int) -> Result:
    """Epochs of both sides, alternating; the first round only warms both up."""
    matrix = np.concatenate([b.weights.numpy() for b in data.batches(1024)])
    parts = np.array_split(np.arange(len(matrix)), range(batch, len(matrix), batch))

    def from_catalog(epoch: int) -> None:
        for _ in data.batches(batch, seed=0, epoch=epoch):
            pass

    def from_memory(epoch: int) -> None:
        order = np.random.default_rng(epoch).permutation(len(matrix))
        for part in parts:
            matrix[order[part]]

    ours, theirs = [], []
    for epoch in range(rounds + 1):
        ours.append(_seconds(from_catalog, epoch))
        theirs.append(_seconds(from_memory, epoch))
    ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
    scale = 1000 / len(parts)
    return Result(
        statistics.median(ours[1:]) * scale,
        statistics.median(theirs[1:]) * scale,
        statistics.median(ratios),
    )


def _seconds(work: Callable[[int], None], epoch: int) -> float:
    started = time.process_time()
    work(epoch)
    return time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--parameters", type=int, default=2464)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"{options.networks:,} networks of {options.parameters:,}, batches of {options.batch}")
    print("shards  dataset ms/batch  numpy ms/batch  ratio")
    good = True
    for shards in (1, 8):
        with tempfile.TemporaryDirectory() as folder:
            data = make_dataset(f"{folder}/zoo", options.networks, options.parameters, shards)
            result = compare(data, batch=options.batch, rounds=options.rounds)
        print(f"{shards:6}  {result.dataset:16.3f}  {result.numpy:14.3f}  {result.ratio:5.2f}")
        good &= result.ratio <= MOST
    print(f"at most {MOST}: {'yes' if good else 'no'}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
