"""Checkpoints that fitted predictors are asked about, per second.

    python tests/benchmarks/predicting.py [--networks 2000] [--rounds 3] [--threads 1] [--json FILE]

The networks are those of the preset `unterthiner` (4,970 parameters, 16x16 pixels) with random weights, as
one population of a catalog; each predictor reads them from the mapped files, as `zoo predictor predict` does. They were
fitted on half of the networks, models of `sne` for one epoch: what they learn changes their answers, not the time they
take. Every round asks about an equal share of the other half: networks that were not looked at before. The time of
trees depends on their number, which is given. Times are CPU seconds of this process, so that other work on the machine
counts little, and seconds of the clock with several threads; the middle of the rounds is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from zooplatform.catalog import open_catalog
from zooplatform.evaluation.configurations import configuration
from zooplatform.evaluation.predictions import predict_dataset
from zooplatform.fitting import FitData
from zooplatform.interfaces import CheckpointRecord, MetricRecord, ModelInfo, PopulationBatch
from zooplatform.layout import layout_of

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

PRESET = {"preset": "unterthiner", "size": 16, "activation": "tanh"}

# Backend and configuration, with the trees that the comparison of the predictors has.
CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "statnn": ("statnn", None, {"leaves": 63, "min_leaf": 40}),
    "rich": ("rich", None, {"leaves": 63, "min_leaf": 20}),
    "sne, debug": ("sne", "debug", {}),
    "sne, weights": ("sne", "weights", {}),
    "sne, best": ("sne", "best", {}),
}


class Rate(NamedTuple):
    """Checkpoints per second, trees per architecture where there are some, and seconds that the fit took."""

    predictor: str
    per_second: float
    trees: int | None
    fit_seconds: float


def random_networks(catalog: Catalog, count: int, seed: int) -> list[str]:
    """Store `count` networks whose accuracy follows from how large their weights are, but for noise; gives the ids."""
    network = catalog.registry.architectures.create("cnn").build(PRESET)
    layout = layout_of(network.state_dict())
    width = sum(spec.num_elements for spec in layout)
    draw = np.random.default_rng(seed)
    scale = draw.uniform(0.05, 0.5, count)
    accuracy = np.clip(scale + draw.normal(scale=0.05, size=count), 0, 1)
    rows = [
        CheckpointRecord(
            model=ModelInfo(key=f"run-{at}", name=f"run-{at}", source="benchmark"),
            step=1,
            metrics=(MetricRecord(name="test_accuracy", value=float(accuracy[at])),),
        )
        for at in range(count)
    ]
    batch = PopulationBatch(
        layout=layout,
        weights=(scale[:, None] * draw.standard_normal((count, width))).astype(np.float32),
        rows=rows,
        family="cnn",
        name="unterthiner",
        config=PRESET,
    )
    return list(catalog.append(batch, zoo="random"))


def measure(catalog: Catalog, ids: list[str], case: str, rounds: int) -> Rate:
    """Fit on some of the networks and ask about all of them."""
    backend, config, replaced = CASES[case]
    predictor = catalog.registry.predictors.create(backend)
    table = {**configuration(backend, predictor, config), **replaced}
    for member in table.get("members", []):
        member["epochs"] = 1
    fitted = len(ids) // 2
    middle = 3 * fitted // 4
    data = FitData(
        train=catalog.dataset(ids[:middle]), validation=catalog.dataset(ids[middle:fitted])
    )
    report = predictor.fit(data, target="test_accuracy", config=table, seed=0)
    predict_dataset(predictor, catalog.dataset(ids[:64], target=None))  # what is made once
    # Statistics of networks are kept in memory: each round asks about networks that were never looked at.
    share = (len(ids) - fitted) // rounds
    seconds = []
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for at in range(fitted, fitted + rounds * share, share):
        asked = catalog.dataset(ids[at : at + share], target=None)
        begun = clock()
        said = predict_dataset(predictor, asked)
        seconds.append(clock() - begun)
        if not np.isfinite(said).all():
            sys.exit(f"{case}: a prediction is not finite")
    trees = next((int(v) for name, v in report.metrics.items() if name == "trees"), None)
    return Rate(case, share / statistics.median(seconds), trees, report.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", type=Path, help="where to write the rates")
    options = parser.parse_args()
    if options.networks < 400:
        parser.error(
            f"--networks {options.networks}: 400 or more are needed to fit on half of them"
        )
    torch.set_num_threads(options.threads)
    found = []
    print(f"{options.networks:,} networks of 4,970 parameters, {options.threads} threads\n")
    print(f"{'predictor':<14} {'checkpoints/s':>14} {'trees':>6} {'fit s':>7}")
    for seed, case in enumerate(options.only):
        with tempfile.TemporaryDirectory() as folder, open_catalog(folder, create=True) as catalog:
            ids = random_networks(
                catalog, options.networks, seed
            )  # statistics of known ones are kept
            rate = measure(catalog, ids, case, options.rounds)
        trees = "-" if rate.trees is None else rate.trees
        print(
            f"{case:<14} {rate.per_second:>14,.0f} {trees:>6} {rate.fit_seconds:>7.1f}",
            flush=True,
        )
        found.append(rate._asdict())
    if options.json:
        kept = {
            "networks": options.networks,
            "rounds": options.rounds,
            "threads": options.threads,
            "parameters": 4970,
        }
        options.json.write_text(json.dumps({**kept, "rates": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
