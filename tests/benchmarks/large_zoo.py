"""A zoo of 50,000 checkpoints: how long everything takes that people do with it.

    python tests/benchmarks/large_zoo.py [--models 10000] [--folder DIR] [--json docs/results/large_zoo.json]
    python tests/benchmarks/large_zoo.py --page docs/results/large_zoo.json

10,000 models of 2,464 parameters (the convolutional network of the published tiny zoos) with five
checkpoints each. The weights are random walks and the accuracies follow from the hyper-parameters,
so that every step has the size of the real thing without the training. Commands run as processes of
their own, start of Python included; the seconds are of the clock, CPU seconds stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.catalog import open_catalog
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    TensorSpec,
)
from zooplatform.linting import RULES, lint
from zooplatform.reporting import write_report
from zooplatform.splits import create_split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog

_SHAPES = {
    "module_list.0.weight": (8, 1, 5, 5),
    "module_list.0.bias": (8,),
    "module_list.3.weight": (6, 8, 5, 5),
    "module_list.3.bias": (6,),
    "module_list.6.weight": (4, 6, 2, 2),
    "module_list.6.bias": (4,),
    "module_list.9.weight": (20, 36),
    "module_list.9.bias": (20,),
    "module_list.11.weight": (10, 20),
    "module_list.11.bias": (10,),
}
LAYOUT = tuple(
    TensorSpec(name, "float32", shape, 4 * int(np.prod(shape))) for name, shape in _SHAPES.items()
)
WIDTH = sum(spec.num_elements for spec in LAYOUT)
EPOCHS = (0, 5, 10, 25, 50)

QUERIES = {
    "count by epoch": "select epoch, count(*), avg(test_accuracy) from wide group by all",
    "best 10 models": """
        select model, test_accuracy from wide where epoch = 50 order by test_accuracy desc limit 10""",
    "accuracy by hyper-parameter": """
        select h.value, avg(w.test_accuracy) from wide w join hyperparameters h using (model_id)
        where h.key = 'optimizer' and w.epoch = 50 group by all""",
    "norm by layer and epoch": """
        select c.epoch, s.name, avg(s.l2) from tensor_stats s join checkpoints c using (checkpoint_id)
        group by all""",
    "10 nearest by cosine of all weights": """
        select p.checkpoint_id, list_cosine_similarity(p.weights, q.weights) as similarity
        from population_weights p join population_weights q using (architecture_id)
        where q.checkpoint_id = (select min(checkpoint_id) from checkpoints)
        order by similarity desc limit 10""",
}


class Times:
    """Measured steps, in order."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str, note: str = "") -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = {"step": name, "note": note}
        wall, cpu = time.perf_counter(), _cpu()
        yield row
        row["seconds"] = round(time.perf_counter() - wall, 3)
        row["cpu_seconds"] = round(_cpu() - cpu, 3)
        if "count" in row:
            count = row.pop("count")
            row["per_second"] = round(count / row["seconds"])
            row["per_cpu_second"] = round(count / row["cpu_seconds"])
            row["note"] = f"{row['per_second']:,} {row['note']} per second"
        self.rows.append(row)
        print(
            f"{name:<44}{row['seconds']:>9.2f}{row['cpu_seconds']:>9.2f}  {row['note']}",
            flush=True,
        )


def _cpu() -> float:
    """CPU seconds of this process and of those that it started."""
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    return used


def batches(models: int, size: int) -> Iterator[PopulationBatch]:
    """The zoo in batches of `size` models."""
    draw = np.random.default_rng(0)
    for start in range(0, models, size):
        count = min(size, models - start)
        weights = draw.standard_normal((count, 1, WIDTH), dtype=np.float32) * 0.1
        steps = draw.standard_normal((count, len(EPOCHS), WIDTH), dtype=np.float32) * 0.03
        steps[:, 0] = 0
        weights = (weights + steps.cumsum(axis=1)).reshape(-1, WIDTH)
        rows = [record for n in range(count) for record in _run(start + n, draw)]
        yield PopulationBatch(layout=LAYOUT, weights=weights, rows=rows, name="cnn-2464")


def _run(number: int, draw: np.random.Generator) -> Iterator[CheckpointRecord]:
    config = {
        "activation": ("tanh", "relu", "gelu", "sigmoid")[number % 4],
        "optimizer": ("adam", "sgd")[number // 4 % 2],
        "learning_rate": float(10 ** draw.uniform(-5, -1)),
        "weight_decay": float(10 ** draw.uniform(-6, -2)),
        "dropout": float(draw.choice([0.0, 0.25, 0.5])),
        "init": ("uniform", "normal", "kaiming_uniform", "kaiming_normal")[number // 8 % 4],
        "o_dim": 10,
        "use_bias": True,
    }
    rate = np.exp(-((np.log10(config["learning_rate"]) + 3) ** 2))
    best = 0.3 + 0.6 * rate * (1.0 if config["optimizer"] == "adam" else 0.8)
    info = ModelInfo(
        key=f"run-{number}", name=f"run {number}", source="random:", seed=number, config=config
    )
    for epoch in EPOCHS:
        accuracy = 0.1 + (best - 0.1) * (1 - np.exp(-epoch / 8)) + 0.01 * draw.standard_normal()
        test = float(np.clip(accuracy, 0, 1))
        train = float(np.clip(accuracy + 0.02 * epoch / 50, 0, 1))
        yield CheckpointRecord(
            model=info,
            step=epoch,
            epoch=float(epoch),
            metrics=tuple(
                MetricRecord(name=f"{split}_{name}", value=value, dataset="made-up", split=split)
                for split, measured in (("test", test), ("train", train))
                for name, value in (("accuracy", measured), ("loss", 2.3 * (1 - measured)))
            ),
        )


def command(*words: str | Path) -> str:
    """Run `zoo`; its stdout."""
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "zooplatform", *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout


def measure(folder: Path, models: int, times: Times) -> None:
    """Everything, in the order in which a user would come to it."""
    path = folder / "zoo"
    total = models * len(EPOCHS)
    with open_catalog(path, create=True) as catalog:
        made = list(batches(models, 1000))
        with times.step("append in batches of 5,000", "checkpoints") as row:
            row["count"] = total
            for batch in made:
                catalog.append(batch, zoo="large", source="random:", license="CC0-1.0")
        with times.step("append the last batch again (nothing new)"):
            catalog.append(made[-1], zoo="large")
        del made
    catalog = open_catalog(path)
    with times.step("open and count in a new catalog object"):
        assert catalog.sql("select count(*) from checkpoints").column(0).to_pylist() == [total]
    (checkpoint,) = catalog.sql("select min(checkpoint_id) from checkpoints").column(0).to_pylist()
    _commands(path, checkpoint, times)
    for name, query in QUERIES.items():
        with times.step(f"SQL: {name}"):
            catalog.sql(query)
        if name == "count by epoch":
            with times.step(f"SQL: {name}, again"):
                catalog.sql(query)
    _training_data(catalog, times)
    for name in RULES:
        with times.step(f"lint rule {name}") as row:
            row["note"] = f"{len(lint(catalog, [name]))} findings"
    with times.step("report, in this process"):
        write_report(catalog, "large", folder / "report")
    with times.step("zoo report large"):
        command("report", "large", "--output", folder / "report", "-c", path)
    with times.step("zoo check"):
        command("check", "-c", path)
    catalog.close()


def _commands(path: Path, checkpoint: str, times: Times) -> None:
    with times.step("zoo ls"):
        command("ls", "-c", path)
    with times.step("zoo ls models (first 100)"):
        command("ls", "models", "-c", path)
    with times.step("zoo ls checkpoints (first 100)"):
        command("ls", "checkpoints", "-c", path)
    with times.step("zoo ls checkpoints --json (all)"):
        command("ls", "checkpoints", "--json", "-c", path)
    with times.step("zoo show ZOO"):
        command("show", "large", "-c", path)
    with times.step("zoo show CHECKPOINT"):
        command("show", checkpoint, "-c", path)
    with times.step("zoo query: best 10"):
        command("query", QUERIES["best 10 models"], "-c", path)
    with times.step("zoo export CHECKPOINT"):
        command("export", checkpoint, path.parent / "one.safetensors", "-c", path)


def _training_data(catalog: Catalog, times: Times) -> None:
    with times.step("split by model, 70/15/15, in this process"):
        create_split(catalog, "main")
    with times.step("zoo split create, stratified"):
        command("split", "create", "again", "--stratify", "optimizer", "-c", catalog.path)
    with times.step("dataset of the training role"):
        data = catalog.dataset(None, target="test_accuracy", split="main", role="train")
    with times.step("one epoch, shuffled batches of 256", "networks") as row:
        row["count"] = len(data)
        assert sum(len(batch.target) for batch in data.batches(256, seed=0)) == len(data)
    with times.step("one state dict by id"):
        catalog.state_dict(catalog.sql("select max(checkpoint_id) from checkpoints")[0][0].as_py())
    with times.step("population of all, every weight summed"):
        catalog.population().weights.sum()


def page(results: dict[str, Any]) -> str:
    """The measured times as a page of Markdown."""
    lines = [
        "<!-- Made by `python tests/benchmarks/large_zoo.py --page` from the JSON file beside it; do not edit. -->",
        "",
        f"# A zoo of {results['checkpoints']:,} checkpoints",
        "",
        f"{results['models']:,} models of {results['parameters']:,} parameters with {len(EPOCHS)} checkpoints each. "
        f"{results['cores']} cores, load of the machine {results['load_average']}, Python {results['python']}. "
        "Commands are processes of their own, start of Python included. CPU seconds stand beside those of the clock, "
        "since other work was running.",
        "",
        "| step | seconds | CPU seconds | |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['step']} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {row['note']} |"
        for row in results["steps"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where to build; a new one that is removed")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    parser.add_argument(
        "--page", type=Path, help="write the page of this JSON file beside it, and measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.page:
        made = page(json.loads(arguments.page.read_text(encoding="utf-8")))
        arguments.page.with_suffix(".md").write_text(made, encoding="utf-8")
        return
    times = Times()
    print(f"{'step':<44}{'seconds':>9}{'CPU':>9}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(Path(folder), arguments.models, times)
    if arguments.json:
        about = {
            "models": arguments.models,
            "checkpoints": arguments.models * len(EPOCHS),
            "parameters": WIDTH,
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**about, "steps": times.rows}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
