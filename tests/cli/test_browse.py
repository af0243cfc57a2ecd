"""`zoo ls`, `zoo show` and `zoo export` on a real catalog."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zooplatform.catalog import open_catalog
from zooplatform.interfaces import (
    CheckpointRecord,
    LineageRecord,
    ModelInfo,
    PopulationBatch,
    TensorSpec,
)
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Cli = Callable[..., Result]


def ids(path: Path, table: str, column: str) -> list[str]:
    with open_catalog(path) as catalog:
        rows: list[str] = (
            catalog.sql(f"select {column} from {table} order by 1").column(0).to_pylist()
        )
    return rows


def shown(cli: Cli, path: Path, given: str) -> dict[str, Any]:
    result = cli("show", given, "-c", path, "--json")
    assert result.exit_code == 0, result.stderr
    parts: dict[str, Any] = json.loads(result.stdout)
    return parts


# --- ls --------------------------------------------------------------------------------------------


def test_zoos_are_listed_with_their_counts(cli: Cli, mlp_path: Path) -> None:
    result = cli("ls", "-c", mlp_path)
    assert result.exit_code == 0, result.stderr
    header, _, row = result.stdout.splitlines()
    assert header.split()[:4] == ["zoo", "num_models", "num_checkpoints", "num_architectures"]
    assert row.split()[:6] == ["mlps", "4", "8", "1", "1.6", "kB"]
    assert "CC0-1.0" in row


def test_models_outside_of_any_zoo_are_not_passed_over(
    cli: Cli, mlp_path: Path, tmp_path: Path
) -> None:
    save_file({"w": np.ones(2)}, tmp_path / "lone.safetensors")
    copy = shutil.copytree(mlp_path, tmp_path / "copy")
    for path in (tmp_path / "new", copy):
        assert cli("ingest", tmp_path / "lone.safetensors", "-c", path).exit_code == 0
        listed = cli("ls", "-c", path)
        assert "1 model outside of any zoo: `zoo ls models` lists them." in listed.stderr
    assert "No zoos here. 1 model" in cli("ls", "-c", tmp_path / "new").stderr


def test_the_name_of_a_model_leads_to_its_id(cli: Cli, mlp_path: Path) -> None:
    model = json.loads(cli("ls", "models", "-c", mlp_path, "--json").stdout)[0]
    result = cli("show", model["name"], "-c", mlp_path)
    assert result.exit_code == 1
    assert f"It is a name; give the id: {model['model_id']}" in result.stderr


def test_numbers_among_hyperparameters_are_in_their_order(cli: Cli, tmp_path: Path) -> None:
    sample = sample_population("mlp")
    rows = [
        replace(row, model=replace(row.model, key=f"k{i}", config={"width": (10, 9, 100)[i % 3]}))
        for i, row in enumerate(sample.rows)
    ]
    with open_catalog(tmp_path / "catalog", create=True) as catalog:
        catalog.append(replace(sample, rows=rows), zoo="z")
    (found,) = shown(cli, tmp_path / "catalog", "z")["hyperparameters"]
    assert found["values"] == ["9", "10", "100"]


def test_json(cli: Cli, mlp_path: Path) -> None:
    (zoo,) = json.loads(cli("ls", "zoos", "-c", mlp_path, "--json").stdout)
    assert (zoo["zoo"], zoo["num_checkpoints"], zoo["size_bytes"]) == ("mlps", 8, 8 * 51 * 4)
    models = json.loads(cli("ls", "models", "-c", mlp_path, "--json").stdout)
    assert [model["name"] for model in models] == [f"mlp {number}" for number in range(4)]
    assert {model["num_checkpoints"] for model in models} == {2}
    checkpoints = json.loads(cli("ls", "checkpoints", "-c", mlp_path, "--json").stdout)
    assert [(row["model"], row["step"]) for row in checkpoints[:3]] == [
        ("mlp 0", 10),
        ("mlp 0", 20),
        ("mlp 1", 10),
    ]


def test_one_zoo_only(cli: Cli, tmp_path: Path) -> None:
    with open_catalog(tmp_path / "two", create=True) as catalog:
        catalog.append(sample_population("mlp"), zoo="mlps")
        catalog.append(sample_population("cnn", num_models=2), zoo="cnns")
    listed = json.loads(
        cli("ls", "models", "--zoo", "cnns", "-c", tmp_path / "two", "--json").stdout
    )
    assert {row["zoo"] for row in listed} == {"cnns"}
    assert len(listed) == 2
    result = cli("ls", "--zoo", "gnns", "-c", tmp_path / "two")
    assert result.exit_code == 1
    assert "No zoo 'gnns' in this catalog." in result.stderr


def test_limit_says_that_there_is_more(cli: Cli, mlp_path: Path) -> None:
    result = cli("ls", "checkpoints", "--limit", 3, "-c", mlp_path)
    assert len(result.stdout.splitlines()) == 2 + 3
    assert "The first 3 are listed; --limit 0 lists all." in result.stderr
    whole = cli("ls", "checkpoints", "--limit", 0, "-c", mlp_path)
    assert len(whole.stdout.splitlines()) == 2 + 8
    assert whole.stderr == ""


def test_an_empty_catalog_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    open_catalog(tmp_path / "empty", create=True).close()
    result = cli("ls", "-c", tmp_path / "empty")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No zoos here. Store some with `zoo ingest REF`." in result.stderr


# --- show ------------------------------------------------------------------------------------------


def test_a_zoo_whole(cli: Cli, mlp_path: Path) -> None:
    parts = shown(cli, mlp_path, "mlps")
    assert parts["kind"] == "zoo"
    assert parts["zoo"]["source"] == "made for tests"
    assert (parts["zoo"]["num_models"], parts["zoo"]["num_checkpoints"]) == (4, 8)
    (architecture,) = parts["architectures"]
    assert (architecture["num_parameters"], architecture["num_checkpoints"]) == (51, 8)
    accuracy = next(row for row in parts["metrics"] if row["name"] == "test_accuracy")
    values = [m.value for row in sample_population("mlp").rows for m in row.metrics]
    assert accuracy["num_checkpoints"] == 8
    assert accuracy["mean"] == pytest.approx(np.mean(values))
    assert (accuracy["min"], accuracy["max"]) == (min(values), max(values))
    rates = next(row for row in parts["hyperparameters"] if row["key"] == "learning_rate")
    assert (rates["num_models"], rates["num_values"]) == (4, 4)


def test_a_model_whole(cli: Cli, mlp_path: Path) -> None:
    (row,) = [
        row
        for row in json.loads(cli("ls", "models", "-c", mlp_path, "--json").stdout)
        if row["name"] == "mlp 1"
    ]
    parts = shown(cli, mlp_path, row["model_id"])
    assert parts["kind"] == "model"
    assert parts["model"]["seed"] == 1
    assert parts["hyperparameters"] == {"learning_rate": 0.05, "activation": "tanh"}
    assert [checkpoint["step"] for checkpoint in parts["checkpoints"]] == [10, 20]
    accuracies = [m["value"] for m in parts["metrics"] if m["name"] == "test_accuracy"]
    assert accuracies == [0.55, 0.57]


def test_a_checkpoint_whole(cli: Cli, mlp_path: Path) -> None:
    checkpoint_id = ids(mlp_path, "checkpoints", "checkpoint_id")[0]
    parts = shown(cli, mlp_path, checkpoint_id)
    assert parts["kind"] == "checkpoint"
    assert parts["checkpoint"]["num_parameters"] == 51
    assert parts["model"]["zoo"] == "mlps"
    with open_catalog(mlp_path) as catalog:
        state = catalog.state_dict(checkpoint_id)
    assert [tensor["name"] for tensor in parts["tensors"]] == list(state)
    for tensor in parts["tensors"]:
        values = state[tensor["name"]].double()
        assert tensor["shape"] == list(values.shape)
        assert tensor["mean"] == pytest.approx(values.mean().item())
        assert tensor["l2"] == pytest.approx(values.norm().item())
        assert tensor["layer_type"] == "linear"


def test_text_has_the_same_parts(cli: Cli, mlp_path: Path) -> None:
    checkpoint_id = ids(mlp_path, "checkpoints", "checkpoint_id")[0]
    result = cli("show", checkpoint_id, "-c", mlp_path)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split() == ["checkpoint_id", checkpoint_id]
    assert "\ntensors (4)\n" in result.stdout
    assert "layers.0.weight" in result.stdout
    zoo = cli("show", "mlps", "-c", mlp_path)
    assert zoo.stdout.startswith("zoo")
    assert "\nhyperparameters (2)\n" in zoo.stdout


def test_a_unique_beginning_is_enough(cli: Cli, mlp_path: Path) -> None:
    every = ids(mlp_path, "checkpoints", "checkpoint_id") + ids(mlp_path, "models", "model_id")
    wanted = every[0]
    length = next(
        n for n in range(1, 65) if sum(other.startswith(wanted[:n]) for other in every) == 1
    )
    assert shown(cli, mlp_path, wanted[:length])["checkpoint"]["checkpoint_id"] == wanted


def test_an_unknown_id(cli: Cli, mlp_path: Path) -> None:
    result = cli("show", "zzz", "-c", mlp_path)
    assert result.exit_code == 1
    assert "No zoo, model or checkpoint 'zzz' in this catalog. Run `zoo ls`" in result.stderr


def test_several_that_begin_so_are_listed(cli: Cli, tmp_path: Path) -> None:
    with open_catalog(tmp_path / "two", create=True) as catalog:
        catalog.append(sample_population("mlp"), zoo="zoo-one")
        catalog.append(sample_population("cnn"), zoo="zoo-two")
        catalog.append(sample_population("cnn", seed=1), zoo="zoo-")
    result = cli("show", "zoo", "-c", tmp_path / "two")
    assert result.exit_code == 1
    assert "Several ids begin with 'zoo': zoo zoo-, zoo zoo-one, zoo zoo-two." in result.stderr
    # A whole name wins over those that it begins.
    assert shown(cli, tmp_path / "two", "zoo-")["zoo"]["zoo"] == "zoo-"


def test_lineage_is_shown(cli: Cli, tmp_path: Path) -> None:
    weights = np.arange(6, dtype=np.float32).reshape(1, 6)
    batch = PopulationBatch(
        layout=(TensorSpec("fc.weight", "float32", (2, 3), 24),),
        weights=weights,
        rows=[
            CheckpointRecord(
                model=ModelInfo(
                    key="child",
                    name="child",
                    source="test:",
                    lineage=(LineageRecord(parent="hf-hub:org/base", relation="finetuned_from"),),
                )
            )
        ],
    )
    with open_catalog(tmp_path / "c", create=True) as catalog:
        (checkpoint_id,) = catalog.append(batch, zoo="children")
    edges = shown(cli, tmp_path / "c", checkpoint_id)["lineage"]
    assert ("finetuned_from", "hf-hub:org/base") in {
        (edge["relation"], edge["parent_id"]) for edge in edges
    }


# --- export ----------------------------------------------------------------------------------------


def test_export_by_the_beginning_of_an_id(cli: Cli, mlp_path: Path, tmp_path: Path) -> None:
    checkpoint_id = ids(mlp_path, "checkpoints", "checkpoint_id")[0]
    path = tmp_path / "out.safetensors"
    result = cli("export", checkpoint_id[:-1], path, "-c", mlp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{checkpoint_id}: ")
    assert str(path) in result.stdout
    with open_catalog(mlp_path) as catalog:
        state = catalog.state_dict(checkpoint_id)
    exported = load_file(path)
    assert set(exported) == set(state)
    for name, tensor in state.items():
        assert np.array_equal(exported[name], tensor.numpy())


def test_export_json(cli: Cli, mlp_path: Path, tmp_path: Path) -> None:
    checkpoint_id = ids(mlp_path, "checkpoints", "checkpoint_id")[0]
    path = tmp_path / "out.safetensors"
    result = cli("export", checkpoint_id, path, "-c", mlp_path, "--json")
    assert json.loads(result.stdout) == {
        "checkpoint_id": checkpoint_id,
        "path": str(path),
        "size_bytes": path.stat().st_size,
    }


def test_export_to_a_folder(cli: Cli, mlp_path: Path, tmp_path: Path) -> None:
    first = json.loads(cli("ls", "checkpoints", "-c", mlp_path, "--json").stdout)[0]
    words = ("export", first["checkpoint_id"], tmp_path / "folder", "-c", mlp_path, "--json")
    size = (json.loads(cli(*words).stdout))["size_bytes"]
    assert size == (tmp_path / "folder" / "model.safetensors").stat().st_size
    again = cli(*words)
    assert again.exit_code == 1
    assert "Add -y to replace it" in again.stderr
    assert cli(*words, "-y").exit_code == 0


def test_export_replaces_a_file_only_when_told(cli: Cli, mlp_path: Path, tmp_path: Path) -> None:
    checkpoint_id = ids(mlp_path, "checkpoints", "checkpoint_id")[0]
    path = tmp_path / "out.safetensors"
    path.write_text("mine")
    result = cli("export", checkpoint_id, path, "-c", mlp_path)
    assert result.exit_code == 1
    assert "is already there. Add -y to replace it." in result.stderr
    assert path.read_text() == "mine"
    assert cli("export", checkpoint_id, path, "-y", "-c", mlp_path).exit_code == 0
    assert load_file(path)


def test_export_to_what_cannot_be_written(cli: Cli, mlp_path: Path, tmp_path: Path) -> None:
    (checkpoint_id, *_) = ids(mlp_path, "checkpoints", "checkpoint_id")
    (tmp_path / "file").touch()
    for place in ("file/o.safetensors", "file/inner/folder"):
        result = cli("export", checkpoint_id, tmp_path / place, "-c", mlp_path)
        assert result.exit_code == 1
        assert "cannot be written" in result.stderr
    other = cli("export", checkpoint_id, tmp_path / "o.pt", "-c", mlp_path)
    assert other.exit_code == 1
    assert "a name that ends in .safetensors" in other.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_export_of_what_is_not_one_checkpoint(cli: Cli, mlp_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    zoo = cli("export", "mlps", path, "-c", mlp_path)
    assert zoo.exit_code == 1
    assert "'mlps' is a zoo, not a checkpoint. `zoo ls checkpoints --zoo mlps`" in zoo.stderr
    model = cli("export", ids(mlp_path, "models", "model_id")[0], path, "-c", mlp_path)
    assert model.exit_code == 1
    assert "has 2 checkpoints. Give the id of one" in model.stderr
    assert not path.exists()


def test_export_of_a_model_with_one_checkpoint(cli: Cli, tmp_path: Path) -> None:
    with open_catalog(tmp_path / "c", create=True) as catalog:
        catalog.append(sample_population("mlp", num_models=1, num_checkpoints=1), zoo="one")
    model_id = ids(tmp_path / "c", "models", "model_id")[0]
    result = cli("export", model_id, tmp_path / "o.safetensors", "-c", tmp_path / "c")
    assert result.exit_code == 0, result.stderr
