"""Sources `pdiff-zoo:` and `transformer-zoo:`: what file names and CSV files say of checkpoints."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import pytest
import torch

from zooplatform.errors import SourceError
from zooplatform_zoos.pdiff import PdiffZoo, parse_name
from zooplatform_zoos.transformer import TransformerZoo

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog


@pytest.mark.parametrize(
    ("stem", "found"),
    [
        ("0001_acc0.9123_seed0007_tag", {"number": 1, "accuracy": 0.9123, "seed": 7, "tag": "tag"}),
        (
            "0300_acc0.5_seed20_cifar10_resnet18_class5_",
            {"number": 300, "accuracy": 0.5, "seed": 20, "tag": "cifar10_resnet18", "class": 5},
        ),
        (
            "0002_class513_acc1.0_seed1_vit",
            {"number": 2, "accuracy": 1.0, "seed": 1, "tag": "vit", "class": 513},
        ),
        ("generated_model_000", None),
        ("0001_seed3_tag", None),
    ],
)
def test_file_names(stem: str, found: dict[str, Any] | None) -> None:
    assert parse_name(stem) == found


def test_pdiff(
    tmp_path: Path, runs: list[Any], rows: Any, same: Any, zoo_catalog: Catalog, evaluate: Any
) -> None:
    """One fine-tune run with BatchNorm counters (int64) kept, and two binary tasks."""
    root = tmp_path / "dataset"
    folder = root / "digits" / "tiny" / "checkpoint"
    folder.mkdir(parents=True)
    states = []
    for number, (state, result) in enumerate(zip(runs[0].states, runs[0].results, strict=True)):
        full = {**state, "bn.num_batches_tracked": torch.tensor(number)}
        torch.save(full, folder / f"{number:04d}_acc{result['test_acc']:.4f}_seed0042_tiny.pth")
        states.append(full)
    for bits in (5, 6):
        torch.save(states[0], folder / f"0000_acc0.5000_seed0042_tiny_class{bits}_.pth")
    torch.save(states[0], folder / "original.pth")
    found = rows(list(PdiffZoo().batches(str(root))))
    name = "digits/tiny/checkpoint/tiny_seed42"
    assert len(found) == 5
    for number, state in enumerate(states):
        assert same(found.state(name, number), state)
        accuracy = found.metrics(name, number)["test_accuracy"]
        assert accuracy == pytest.approx(runs[0].results[number]["test_acc"], abs=5e-5)
    assert found.record(name, 0).model.seed == 42
    assert found.record(name, 0).model.config["category"] == "digits"
    assert found.record(f"{name}_class5", 0).model.config["classes"] == [0, 2]
    ((ref, text),) = found.failed
    assert ref.endswith("original.pth")
    assert "nowhere else" in text
    report = zoo_catalog.ingest(f"pdiff-zoo:{root}")
    assert len(report.checkpoint_ids) == 5
    assert len(report.failed) == 1


def test_pdiff_refuses_code_and_goes_on(
    tmp_path: Path, runs: list[Any], rows: Any, bomb: Any
) -> None:
    torch.save(runs[0].states[0], tmp_path / "0000_acc0.1_seed1_t.pth")
    torch.save({"a": bomb.value}, tmp_path / "0001_acc0.1_seed1_t.pth")
    found = rows(list(PdiffZoo().batches(str(tmp_path))))
    assert len(found) == 1
    assert "refused" in found.failed[0][1]
    assert not bomb.path.exists()


def test_pdiff_without_named_files(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(SourceError, match="NNNN_acc"):
        list(PdiffZoo().batches(str(tmp_path)))


@pytest.fixture
def transformers(tmp_path: Path) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    """Two runs of a real encoder layer at epoch 75 and at their best; one file lacks its line."""
    root = tmp_path / "mnist"
    (root / "metadata").mkdir(parents=True)
    (root / "ckpts").mkdir()
    states, lines = {}, []
    for run in ("eager-sun-1", "calm_sea_2"):
        for epoch, accuracy in (("75", 0.9134), ("best", 0.92)):
            torch.manual_seed(len(states))
            layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            name = f"{run}_{epoch}_{round(accuracy * 10000)}.pt"
            torch.save(layer.state_dict(), root / "ckpts" / name)
            states[name] = dict(layer.state_dict())
            lines.append(
                {
                    "run": run,
                    "lr": "0.001",
                    "seed": "3",
                    "num_layers": "1",
                    "ckpt_epoch": epoch,
                    "ckpt_file": f"/elsewhere/ckpts/{name}",
                    "test_top1_accuracy": str(accuracy),
                }
            )
    lines.pop()
    lines.append(dict(lines[0], ckpt_file="../../gone_75_1.pt"))
    with (root / "metadata" / "mnist.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return root, states


def test_transformers(
    transformers: tuple[Path, dict[str, dict[str, torch.Tensor]]],
    rows: Any,
    same: Any,
    zoo_catalog: Catalog,
) -> None:
    root, states = transformers
    found = rows(list(TransformerZoo().batches(str(root))))
    assert len(found) == 4
    for name, state in states.items():
        run, epoch, accuracy = name.removesuffix(".pt").rsplit("_", 2)
        step = None if epoch == "best" else 75
        assert same(found.state(run, step), state)
        assert found.metrics(run, step) == {"test_accuracy": int(accuracy) / 10000}
        assert found.record(run, step).epoch == step
    config = found.record("eager-sun-1", 75).model.config
    assert (config["lr"], config["seed"], config["metadata"]) == (0.001, 3, "mnist")
    ((ref, text),) = found.failed
    assert ref.endswith("line 5")
    assert "gone_75_1.pt" in text
    assert any("no CSV line names it" in note for note in found.notes)
    report = zoo_catalog.ingest(f"transformer-zoo:{root}")
    assert len(report.checkpoint_ids) == 4
    assert not zoo_catalog.ingest(f"transformer-zoo:{root}").checkpoint_ids


def test_transformers_need_both(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="both are needed"):
        list(TransformerZoo().batches(str(tmp_path)))
