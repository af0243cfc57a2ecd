"""Every built-in population source keeps the contract, on a small zoo written in its format."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from zooplatform.plugins import load_plugins
from zooplatform.testing import PopulationSourceContract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.catalog import Catalog

REGISTRY = load_plugins()
NAMES = [
    spec.name
    for spec in REGISTRY.sources.specs()
    if spec.population and REGISTRY.sources.owner(spec.name).distribution == "zooplatform"
]


def network(seed: int) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def vector(seed: int) -> Any:
    import torch

    return torch.cat([value.flatten() for value in network(seed).state_dict().values()])


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def small_cnn(folder: Path) -> Path:
    shapes = {"conv/bias": (4,), "conv/kernel": (3, 3, 1, 4), "fc/bias": (2,), "fc/kernel": (4, 2)}
    rows, at = [], 0
    for name, shape in shapes.items():
        end = at + int(np.prod(shape))
        rows.append({"varname": name, "start_idx": at, "end_idx": end, "shape": str(shape)})
        at = end
    weights = np.random.default_rng(0).standard_normal((4, at)).astype(np.float32)
    np.save(folder / "weights.npy", weights)
    table(folder / "layout.csv", rows)
    table(
        folder / "metrics.csv",
        [
            {
                "": row,
                "config.activation": "tanh",
                "modeldir": f"run_{row // 2}",
                "step": row % 2,
                "test_accuracy": 0.5,
            }
            for row in range(4)
        ],
    )
    return folder


def ray(folder: Path) -> Path:
    import torch

    for trial in range(2):
        place = folder / "tune_zoo" / f"NN_tune_trainable_a1b2c_{trial:05d}_{trial}_seed={trial}"
        place.mkdir(parents=True)
        (place / "params.json").write_text(json.dumps({"seed": trial, "model::nlin": "tanh"}))
        lines = [{"training_iteration": epoch, "test_acc": 0.4} for epoch in range(2)]
        (place / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for epoch in range(2):
            checkpoint = place / f"checkpoint_{epoch:06d}"
            checkpoint.mkdir()
            torch.save(network(10 * trial + epoch).state_dict(), checkpoint / "checkpoints")
    return folder / "tune_zoo"


def model_dataset(folder: Path) -> Path:
    import torch

    def part(seeds: list[int]) -> SimpleNamespace:
        names = [f"run_{seed}" for seed in seeds]
        return SimpleNamespace(
            data_in=[network(seed).state_dict() for seed in seeds],
            labels=[f"{name}#_#epoch_3" for name in names],
            paths=names,
            epochs=[3] * len(seeds),
            properties={"test_acc": [0.5] * len(seeds)},
        )

    content = {"trainset": part([0, 1]), "testset": part([2])}
    torch.save(content, folder / "dataset_train_test.pt")
    return folder / "dataset_train_test.pt"


def pdiff(folder: Path) -> Path:
    import torch

    place = folder / "dataset" / "cifar10" / "mlp" / "checkpoint"
    place.mkdir(parents=True)
    for number in range(3):
        name = f"{number:04d}_acc0.{700 + number}_seed{1000 + number % 2}_mlp.pth"
        torch.save(network(number).state_dict(), place / name)
    return folder / "dataset"


def transformer(folder: Path) -> Path:
    import torch

    rows = []
    for epoch, accuracy in (("10", 6100), ("20", 7200), ("best", 7300)):
        name = f"run_0_{epoch}_{accuracy}.pt"
        torch.save(network(accuracy).state_dict(), folder / name)
        rows.append(
            {
                "ckpt_epoch": epoch,
                "ckpt_file": f"/elsewhere/{name}",
                "dataset": "mnist",
                "test_accuracy": accuracy / 10000,
            }
        )
    table(folder / "metadata" / "mnist.csv", rows)
    return folder


def nws(folder: Path) -> Path:
    for run in range(2):
        weights = folder / "data" / f"net_{run}" / "weights"
        weights.mkdir(parents=True)
        for epoch in range(2):
            vector(10 * run + epoch).double().numpy().tofile(weights / f"{epoch:03d}.bin")
        np.zeros(10).tofile(weights.parent / "error.bin")
    rows = [{"path": f"data/net_{n}", "weightn_conv": 15, "weightn_fc": 8} for n in range(2)]
    table(folder / "nws_main.csv", rows)
    return folder


def vectors(folder: Path) -> Path:
    import torch

    shapes = {name: list(value.shape) for name, value in network(0).state_dict().items()}
    layout = {"tensors": [{"name": name, "shape": shape} for name, shape in shapes.items()]}
    (folder / "layout.json").write_text(json.dumps(layout))
    padded = torch.stack([torch.nn.functional.pad(vector(seed), (0, 9)) for seed in range(3)])
    torch.save({"mnist": (padded,)}, folder / "vectors.pt")
    return folder / "vectors.pt"


CASES: dict[str, Callable[[Path], Path]] = {
    "small-cnn-zoo": small_cnn,
    "ray-zoo": ray,
    "model-dataset": model_dataset,
    "pdiff-zoo": pdiff,
    "transformer-zoo": transformer,
    "nws-zoo": nws,
    "vector-zoo": vectors,
}


@pytest.mark.parametrize("name", NAMES)
class TestContract(PopulationSourceContract):
    @pytest.fixture
    def source(self, name: str) -> Any:
        return REGISTRY.sources.create(name)

    @pytest.fixture
    def reference(self, name: str, tmp_path: Path) -> str:
        if name not in CASES:
            pytest.fail(f"source {name!r} has no case here; write one")
        folder = tmp_path / "zoo"
        folder.mkdir()
        return str(CASES[name](folder))

    def test_a_catalog_gives_back_what_the_source_read(
        self, name: str, source: Any, reference: str, batches: list[Any], catalog: Catalog
    ) -> None:
        scheme = REGISTRY.sources.spec(name).scheme
        report = catalog.ingest(f"{scheme}:{reference}")
        assert report.failed == ()
        expected = [row.tobytes() for batch in batches for row in batch.weights]
        stored = [
            b"".join(value.numpy().tobytes() for value in catalog.state_dict(item).values())
            for item in report.checkpoint_ids
        ]
        assert sorted(stored) == sorted(expected)
        assert catalog.ingest(f"{scheme}:{reference}").bytes_stored == 0
