"""Source `ray-zoo:`: trees as Ray Tune writes them, of networks that are really trained."""

from __future__ import annotations

import json
import math
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch

from zooplatform.errors import SourceError
from zooplatform.layout import model_id
from zooplatform_zoos.ray import RayZoo

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog


def trial_name(number: int, run: Any) -> str:
    lr = run.config["optim::lr"]
    return (
        f"NN_tune_trainable_a1b2c_{number:05d}_{number}_optim::lr={lr}_2022-05-31_10-00-0{number}"
    )


def write_trial(
    folder: Path,
    run: Any,
    *,
    digits: int = 6,
    first_line: int = 0,
    first_checkpoint: int = 0,
    percent: bool = False,
    counter: str | None = "training_iteration",
    params: str = "params.json",
    legacy: bool = False,
    extra: dict[int, dict[str, Any]] | None = None,
) -> Path:
    """A trial; line and checkpoint numbers start where the arguments say."""
    folder.mkdir(parents=True)
    (folder / params).write_text(json.dumps(run.config))
    lines = []
    for epoch, result in enumerate(run.results):
        line: dict[str, Any] = dict(result)
        if percent:
            line = {k: v * 100 if k.endswith("acc") else v for k, v in line.items()}
        if counter:
            line[counter] = epoch + first_line
        line |= {"trial_id": "a1b2c_00000", "time_this_iter_s": 1.5, "done": False, "pid": 7}
        line |= {"config": run.config, **(extra or {}).get(epoch, {})}
        lines.append(json.dumps(line))
    (folder / "result.json").write_text("\n".join(lines) + "\n")
    for epoch, state in enumerate(run.states):
        number = epoch + first_checkpoint
        checkpoint = folder / f"checkpoint_{number:0{digits}d}"
        checkpoint.mkdir()
        new = not legacy
        torch.save(state, checkpoint / "checkpoints", _use_new_zipfile_serialization=new)
        torch.save({"state": {}, "param_groups": []}, checkpoint / "optimizer")
    return folder


@pytest.fixture
def zoo(tmp_path: Path, runs: list[Any]) -> Path:
    root = tmp_path / "tune_zoo_digits"
    for number, run in enumerate(runs):
        write_trial(root / trial_name(number, run), run)
    # The grid, whose objects were dumped with str.
    (root / "config.json").write_text(
        json.dumps({"seed": "<ray.tune.search.sample.Categorical object at 0x7f1>", "gpus": 0})
    )
    (root / "dataset.pt").write_bytes(b"images, not weights")
    return root


def read(ref: Path, rows: Any, **options: Any) -> Any:
    return rows(list(RayZoo().batches(str(ref), **options)))


def test_weights_metrics_and_identity(zoo: Path, runs: list[Any], rows: Any, same: Any) -> None:
    found = read(zoo, rows)
    assert len(found) == 9
    assert not found.failed
    for number, run in enumerate(runs):
        name = trial_name(number, run)
        for epoch in range(3):
            assert same(found.state(name, epoch), run.states[epoch])
            metrics = found.metrics(name, epoch)
            assert metrics["test_accuracy"] == run.results[epoch]["test_acc"]
            assert metrics["test_loss"] == run.results[epoch]["test_loss"]
            assert ("train_loss" in metrics) == (epoch > 0)
            assert set(metrics) <= {"test_accuracy", "test_loss", "train_loss"}
            record = found.record(name, epoch)
            assert record.epoch == epoch
            assert record.model.seed == run.config["seed"]
            assert record.model.config == run.config
    assert any("optimizer" in note for note in found.notes)


def test_rebuilt_accuracy(zoo: Path, runs: list[Any], zoo_catalog: Catalog, evaluate: Any) -> None:
    """Through the catalog: activation and the names that dropout shifts come out right."""
    report = zoo_catalog.ingest(f"ray-zoo:{zoo}")
    assert len(report.checkpoint_ids) == 9
    stored = zoo_catalog.sql(
        "select c.checkpoint_id, r.value from checkpoints c join metrics r"
        " on r.checkpoint_id = c.checkpoint_id and r.name = 'test_accuracy'"
    ).to_pylist()
    assert len(stored) == 9
    for row in stored:
        assert evaluate(zoo_catalog.build(row["checkpoint_id"])) == row["value"]
    layouts = zoo_catalog.sql("select count(*) n from architectures").to_pylist()
    assert layouts == [{"n": 2}]
    again = zoo_catalog.ingest(f"ray-zoo:{zoo}")
    assert not again.checkpoint_ids
    assert again.skipped


@pytest.mark.parametrize(
    "shape",
    [
        {"digits": 1, "legacy": True},
        {"first_line": 1},
        {"first_line": 1, "first_checkpoint": 1},
        {"counter": "epoch", "percent": True},
        {"counter": None},
        {"params": "config.json"},
    ],
    ids=["short-legacy", "offset-1", "both-from-1", "epoch-percent", "uncounted", "config"],
)
def test_conventions_are_detected(
    tmp_path: Path, runs: list[Any], rows: Any, same: Any, shape: dict[str, Any]
) -> None:
    root = tmp_path / "zoo"
    write_trial(root / "t0", runs[0], **shape)
    found = read(root, rows)
    assert len(found) == 3
    first = shape.get("first_checkpoint", 0)
    for epoch in range(3):
        step = epoch + first
        assert same(found.state("t0", step), runs[0].states[epoch])
        assert found.record("t0", step).epoch == epoch
        accuracy = found.metrics("t0", step)["test_accuracy"]
        assert accuracy == pytest.approx(runs[0].results[epoch]["test_acc"], rel=1e-12)
    config = found.record("t0", first).model.config
    assert config["model::nlin"] == "tanh"
    percent = bool(shape.get("percent"))
    assert (config.get("source::accuracy_unit") == "percent") == percent
    assert any("percent" in note for note in found.notes) == percent


def test_no_epoch_zero_line(tmp_path: Path, runs: list[Any], rows: Any) -> None:
    """Lines from 1 and checkpoints from 0, as many iterations as the last checkpoint: numbers agree."""
    trial = write_trial(tmp_path / "zoo" / "t0", runs[0])
    lines = (trial / "result.json").read_text().splitlines()
    (trial / "result.json").write_text("\n".join(lines[1:]) + "\n")
    found = read(tmp_path / "zoo", rows)
    assert not found.metrics("t0", 0)
    assert found.metrics("t0", 2)["test_accuracy"] == runs[0].results[2]["test_acc"]
    assert any("no result line for checkpoint_000000" in note for note in found.notes)


def test_damaged_lines_nan_and_sparse_metrics(tmp_path: Path, runs: list[Any], rows: Any) -> None:
    extra = {
        1: {"test_loss": math.nan, "hessian": {"trace": 2.5, "top": [1.0, 0.5]}},
        2: {"curve_mc_mean": 0.25, "note": "text", "stopped": True},
    }
    trial = write_trial(tmp_path / "zoo" / "t0", runs[0], extra=extra)
    assert "NaN" in (trial / "result.json").read_text()
    with (trial / "result.json").open("a") as file:
        file.write('{"training_iteration": 3, "test_ac')
    found = read(tmp_path / "zoo", rows)
    metrics = found.metrics("t0", 1)
    assert math.isnan(metrics["test_loss"])
    assert metrics["hessian/trace"] == 2.5
    assert metrics["hessian/top/1"] == 0.5
    assert "hessian/trace" not in found.metrics("t0", 2)
    assert found.metrics("t0", 2)["curve_mc_mean"] == 0.25
    assert not {"note", "stopped", "pid", "done"} & set(found.metrics("t0", 2))
    assert any("line 4 is damaged" in note for note in found.notes)


def test_tune_objects_come_from_the_result_lines(
    tmp_path: Path, runs: list[Any], rows: Any
) -> None:
    trial = write_trial(tmp_path / "zoo" / "t0", runs[0], params="config.json")
    grid = dict(runs[0].config, seed="<ray.tune.search.sample.Integer object at 0x7fab>")
    grid["model::head"] = {"type": "linear", "bias": False}
    grid["scheduler"] = "<function step at 0x7f00>"
    (trial / "config.json").write_text(json.dumps(grid))
    found = read(tmp_path / "zoo", rows)
    config = found.record("t0", 0).model.config
    assert config["seed"] == 0
    assert config["model::head::type"] == "linear"
    assert "scheduler" not in config
    assert any("scheduler" in note for note in found.notes)


def test_missing_weights_are_reported(zoo: Path, runs: list[Any], rows: Any) -> None:
    name = trial_name(0, runs[0])
    (zoo / name / "checkpoint_000001" / "checkpoints").unlink()
    (zoo / "unfinished").mkdir()
    (zoo / "unfinished" / "result.json").write_text("")
    found = read(zoo, rows)
    assert len(found) == 8
    failed = {ref.rpartition("/")[2]: text for ref, text in found.failed}
    assert "only optimizer" in failed["checkpoint_000001"]
    assert "no checkpoint folder" in failed["unfinished"]


def test_resume(zoo: Path, runs: list[Any], rows: Any) -> None:
    all_keys = {(r.model.key, r.step) for _, _, r in read(zoo, rows).rows.values()}
    done = frozenset(sorted(all_keys)[:5])
    rest = read(zoo, rows, done=done)
    assert {(r.model.key, r.step) for _, _, r in rest.rows.values()} == all_keys - done


def test_moving_the_zoo_keeps_identities(zoo: Path, tmp_path: Path, rows: Any) -> None:
    before = {r.model.key for _, _, r in read(zoo, rows).rows.values()}
    moved = tmp_path / "elsewhere" / zoo.name
    moved.parent.mkdir()
    zoo.rename(moved)
    assert {r.model.key for _, _, r in read(moved, rows).rows.values()} == before


def test_fine_tuned_models_know_their_parent(
    tmp_path: Path, runs: list[Any], rows: Any, zoo_catalog: Catalog
) -> None:
    root = tmp_path / "vit"
    for name in ("base_a", "base_b"):
        write_trial(root / "pretraining" / name, runs[0], params="config.json")
    run = type(runs[1])(
        {
            **runs[1].config,
            "pretraining::model::path": "/netscratch/u/zoos/pretraining/base_b/checkpoint_000002/checkpoints",
        },
        runs[1].states,
        runs[1].results,
    )
    write_trial(root / "finetuning" / "base_b" / "model_1", run, params="config.json")
    lost = type(run)(
        {**run.config, "pretraining::model::path": "/x/other"}, run.states, run.results
    )
    write_trial(root / "finetuning" / "base_b" / "model_2", lost, params="config.json")
    found = read(root, rows)
    parent = found.record("pretraining/base_b", 0).model
    (edge,) = found.record("finetuning/base_b/model_1", 2).model.lineage
    assert (edge.parent, edge.relation) == (model_id(parent.key, parent.revision), "finetuned_from")
    assert edge.detail["checkpoint"] == 2
    (outside,) = found.record("finetuning/base_b/model_2", 0).model.lineage
    assert outside.parent == "ray-zoo:/x/other"
    assert any("is not in this zoo" in note for note in found.notes)
    zoo_catalog.ingest(f"ray-zoo:{root}")
    edges = zoo_catalog.sql(
        "select p.name parent, c.name child from lineage l join models p on p.model_id = l.parent_id"
        " join models c on c.model_id = l.child_id where relation = 'finetuned_from'"
    ).to_pylist()
    assert edges == [{"parent": "pretraining/base_b", "child": "finetuning/base_b/model_1"}]


def wild_park(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Networks of different depth and width, each checkpoint with its own configuration."""
    states = {}
    for number, channels in enumerate(([4, 8], [8, 8, 16], [4, 8])):
        folder = root / f"run_{number}" / "checkpoint_000005"
        folder.mkdir(parents=True)
        (root / f"run_{number}" / "result.json").write_text('{"training_iteration": 5}\n')
        torch.manual_seed(number)
        widths = [3, *channels]
        state = {}
        for i in range(len(channels)):
            conv = torch.nn.Conv2d(widths[i], widths[i + 1], 3)
            state |= {f"layers.{i}.{k}": v for k, v in conv.state_dict().items()}
        fc = torch.nn.Linear(widths[-1], 10)
        state |= {f"fc.{k}": v for k, v in fc.state_dict().items()}
        config = {"n_layers": len(channels), "channels": channels, "activation": "relu"}
        content = {
            "model": {f"module.{k}": v for k, v in state.items()},
            "optimizer": {"state": {}},
            "config": config,
            "last_result": {"test/acc": 0.5 + number / 10, "done": True},
            "iteration": 5,
        }
        torch.save(content, folder / "checkpoint.pt")
        states[f"run_{number}"] = state
    return states


def test_wild_park(tmp_path: Path, rows: Any, same: Any, zoo_catalog: Catalog) -> None:
    states = wild_park(tmp_path / "cifar10_zooV2")
    found = read(tmp_path / "cifar10_zooV2", rows)
    assert not found.failed
    assert len({batch.layout for batch in found.batches if batch.layout}) == 2
    for number, (name, state) in enumerate(states.items()):
        assert same(found.state(name, 5), state)
        assert found.metrics(name, 5) == {"test_accuracy": 0.5 + number / 10}
        config = found.record(name, 5).model.config
        assert config["n_layers"] == len(config["channels"])
    report = zoo_catalog.ingest(f"ray-zoo:{tmp_path / 'cifar10_zooV2'}")
    assert len(report.checkpoint_ids) == 3


@pytest.mark.parametrize(
    "kind",
    ["code", "zip-code", "truncated", "html", "expanded", "twins", "flip", "deep", "zip-deep"],
)
def test_hostile_checkpoints(zoo: Path, runs: list[Any], rows: Any, bomb: Any, kind: str) -> None:
    """Nothing runs, the checkpoint is reported with its path, the others come through."""
    path = zoo / trial_name(0, runs[0]) / "checkpoint_000001" / "checkpoints"
    if kind == "code":
        path.write_bytes(pickle.dumps({"module_list.0.weight": bomb.value}))
    elif kind == "zip-code":
        torch.save({"a": torch.ones(3), "b": bomb.value}, path)
    elif kind == "deep":
        path.write_bytes(b"\x80\x02})" + b"\x85" * 3_000_000 + b"K\x01s.")
    elif kind == "zip-deep":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.")
            archive.writestr("archive/version", b"3\n")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "html":
        path.write_text("<html>not found</html>")
    elif kind == "expanded":
        torch.save({"a": torch.ones(1).expand(10**9)}, path)
    elif kind == "twins":
        import warnings
        import zipfile

        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(archive.namelist()[0], b"other")
    elif kind == "flip":
        data = bytearray(path.read_bytes())
        at = data.find(runs[0].states[1]["module_list.0.weight"].numpy().tobytes())
        data[at] ^= 1
        path.write_bytes(data)
    found = read(zoo, rows)
    assert len(found) == 8
    ((ref, text),) = found.failed
    assert ref.endswith("checkpoint_000001")
    assert str(path) in text
    assert not bomb.path.exists()


def test_no_trials(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="checkpoint_N"):
        list(RayZoo().batches(str(tmp_path)))
    with pytest.raises(SourceError, match="no such folder"):
        list(RayZoo().batches(str(tmp_path / "nowhere")))
