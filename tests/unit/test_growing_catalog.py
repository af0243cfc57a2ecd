"""Grown zoos in the catalog: what is stored, and that it goes on after any end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.catalog import Catalog, open_catalog
from zooplatform.errors import ConfigError, SourceError, UnknownBackendError
from zooplatform.growing import grow, load_recipe
from zooplatform.growing.images import read_images

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from zooplatform.growing.grow import StackDone

RECIPE = """\
name = "grown"
license = "CC0-1.0"
runs = 6
epochs = 3
keep = [0, 1, 3]
stack = 2
seed = 7

[data]
source = "npz:images.npz"
test = 40

[architecture]
family = "mlp"
hidden = [8]

[hyperparameters]
activation = ["relu", "tanh"]
optimizer = "sgd"
learning_rate = { log_uniform = [0.01, 0.5] }
dropout = { uniform = [0.0, 0.3] }
fraction = { choice = [0.5, 1.0] }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe and images that can be learnt: bright quadrants."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 4, 240)
    x = generator.integers(0, 120, (240, 6, 6))
    for image, kind in zip(x, y, strict=True):
        image[3 * (kind // 2) :][:3, 3 * (kind % 2) :][:, :3] += 100
    np.savez(tmp_path / "images.npz", x=x.astype(np.uint8), y=y)
    (tmp_path / "grown.toml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(catalog: Catalog) -> dict[tuple[str, float], bytes]:
    """Weights by model name and epoch."""
    rows = catalog.sql("select checkpoint_id, model, epoch from wide").to_pylist()
    weights = catalog.population([row["checkpoint_id"] for row in rows]).weights
    return {
        (row["model"], row["epoch"]): weights[i].numpy().tobytes() for i, row in enumerate(rows)
    }


def test_a_recipe_becomes_a_zoo(folder: Path, catalog: Catalog) -> None:
    report = grow(load_recipe("grown.toml"), catalog)
    assert (report.zoos, report.networks, report.networks_left) == (["grown"], 6, 0)
    assert len(report.checkpoint_ids) == 18
    zoo = catalog.sql("from zoos").to_pylist()[0]
    assert (zoo["zoo_id"], zoo["license"]) == ("grown", "CC0-1.0")
    models = catalog.sql("select * from models order by name").to_pylist()
    assert [model["name"] for model in models] == [f"grown-{i:05d}" for i in range(6)]
    assert [model["seed"] for model in models] == list(range(7, 13))
    config = json.loads(models[0]["config"])
    assert config["activation"] == "relu"
    assert config["stack"] == "00000"
    assert config["optimizer"] == "sgd"
    assert config["num_train"] in (100, 200)
    assert config["dataset"] == "images"
    stacks = catalog.sql(
        "select value, count(*) as n from hyperparameters where key = 'stack' group by 1"
    )
    assert sorted(stacks.column("n").to_pylist()) == [1, 1, 2, 2]
    lineage = catalog.sql("from lineage where relation = 'trained_on'").to_pylist()
    assert {edge["parent_id"] for edge in lineage} == {"npz:images.npz"}


def test_metrics_are_those_of_the_rebuilt_networks(folder: Path, catalog: Catalog) -> None:
    recipe = load_recipe("grown.toml", ["hyperparameters.fraction=1.0"])
    grow(recipe, catalog)
    data = read_images("npz:images.npz", recipe.data)
    rows = catalog.sql("from wide order by model, epoch").to_pylist()
    assert len(rows) == 18
    for row in rows:
        network = catalog.build(row["checkpoint_id"])
        for split, images in (("test", data.test), ("train", data.train)):
            with torch.no_grad():
                logits = network(images.x)
            accuracy = (logits.argmax(1) == images.y).double().mean().item()
            loss = torch.nn.functional.cross_entropy(logits, images.y).item()
            assert row[f"{split}_accuracy"] == pytest.approx(accuracy, abs=1e-12)
            assert row[f"{split}_loss"] == pytest.approx(loss, abs=1e-5)
    last = [row["test_accuracy"] for row in rows if row["epoch"] == 3]
    assert max(last) > 0.7
    stored = catalog.sql("select distinct name, split, dataset, origin from metrics").to_pylist()
    assert {(m["dataset"], m["origin"]) for m in stored} >= {("images", "measured")}


def test_growing_again_changes_nothing(folder: Path, catalog: Catalog) -> None:
    recipe = load_recipe("grown.toml")
    grow(recipe, catalog)
    before = contents(catalog)
    report = grow(recipe, catalog)
    assert (report.networks, report.networks_known, report.done) == (0, 6, [])
    assert contents(catalog) == before


def test_more_runs_add_only_the_new_ones(folder: Path, catalog: Catalog) -> None:
    grow(load_recipe("grown.toml"), catalog)
    before = contents(catalog)
    report = grow(load_recipe("grown.toml", ["runs=9"]), catalog)
    assert (report.networks, report.networks_known) == (3, 6)
    after = contents(catalog)
    assert len(after) == 27
    assert {key: after[key] for key in before} == before


def test_another_recipe_gives_other_models_of_the_zoo(folder: Path, catalog: Catalog) -> None:
    grow(load_recipe("grown.toml"), catalog)
    report = grow(load_recipe("grown.toml", ["seed=8"]), catalog)
    assert (report.networks, report.networks_known) == (6, 0)
    count = catalog.sql("select count(distinct model_id) as n from models").column("n")
    assert count.to_pylist() == [12]


def test_each_data_set_becomes_a_zoo(folder: Path, catalog: Catalog) -> None:
    with np.load(folder / "images.npz") as file:
        np.savez(folder / "mirrored.npz", x=file["x"][:, ::-1], y=file["y"])
    sources = 'data.source=["npz:images.npz", "npz:mirrored.npz"]'
    report = grow(load_recipe("grown.toml", [sources, "runs=2"]), catalog)
    assert report.zoos == ["grown-images", "grown-mirrored"]
    assert report.networks == 4
    same = 'data.source=["npz:images.npz", "./images.npz"]'
    with pytest.raises(ConfigError, match="zoos of one name"):
        grow(load_recipe("grown.toml", [same]), catalog)


def test_a_killed_process_goes_on_without_a_duplicate(folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of training; the second process gives what one process would have."""
    command = [
        *(sys.executable, "-m", "zooplatform", "grow", "grown.toml", "-c", "killed"),
        *("--set", "runs=10", "--set", "epochs=12", "--set", "keep=[0, 12]"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("grown stack"):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    with open_catalog("killed") as catalog:
        stored = contents(catalog)
    assert 0 < len(stored) < 20
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, check=True)
    report = json.loads(done.stdout)
    assert report["networks_known"] == len(stored) // 2
    assert report["networks"] == 10 - len(stored) // 2
    with open_catalog("killed") as catalog, open_catalog("whole", create=True) as whole:
        resumed = contents(catalog)
        counts = catalog.sql("select count(*) as n from checkpoints").to_pylist()[0]["n"]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        settings = ["runs=10", "epochs=12", "keep=[0, 12]"]
        grow(load_recipe("grown.toml", settings), whole)
        torch.set_num_threads(threads)
        assert counts == 20
        assert resumed == contents(whole)
        assert catalog.check() == []


def test_time_that_is_up_leaves_whole_stacks(folder: Path, catalog: Catalog) -> None:
    recipe = load_recipe("grown.toml", ["runs=40", "epochs=400", "keep=[400]"])
    stored: list[StackDone] = []
    report = grow(recipe, catalog, max_minutes=0.02, on_stack=stored.append)
    assert report.networks_left > 0
    assert report.networks + report.networks_left == 40
    assert report.done == stored
    assert all(stack.networks == 2 for stack in stored)
    found = catalog.sql("select count(*) as n from checkpoints").to_pylist()[0]["n"]
    assert found == report.networks


def test_a_stack_that_takes_too_long_is_dropped(folder: Path, catalog: Catalog) -> None:
    recipe = load_recipe("grown.toml", ["runs=2", "epochs=100000", "keep=last"])
    begun = time.monotonic()
    report = grow(recipe, catalog, max_minutes=0.02)
    assert time.monotonic() - begun < 30
    assert (report.networks, report.networks_left) == (0, 2)
    assert catalog.sql("from checkpoints").num_rows == 0


def test_networks_with_counters_are_stored_whole(folder: Path, catalog: Catalog) -> None:
    recipe = load_recipe(
        "grown.toml",
        [
            'architecture={family = "cnn", preset = "resnet_small", channels = 1, size = 6, '
            "classes = 4, blocks = [1, 1], widths = [3, 4]}",
            "hyperparameters={learning_rate = 0.01}",
            "runs=2",
        ],
    )
    report = grow(recipe, catalog)
    assert {stack.engine for stack in report.done} == {"grouped"}
    data = read_images("npz:images.npz", recipe.data)
    row = catalog.sql("from wide where epoch = 3 limit 1").to_pylist()[0]
    state = catalog.state_dict(row["checkpoint_id"])
    assert state["bn1.num_batches_tracked"].item() == row["step"]
    with torch.no_grad():
        logits = catalog.build(row["checkpoint_id"])(data.test.x)
    accuracy = (logits.argmax(1) == data.test.y).double().mean().item()
    assert row["test_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (["architecture.family=cnns"], UnknownBackendError, "Did you mean 'cnn'?"),
        (['architecture={family = "cnn", preset = "unterthiner"}'], ConfigError, "(1, 6, 6)"),
        (
            ['architecture={family = "mlp", widths = [36, 3], preset = "mlp", input = [1, 6, 6]}'],
            ConfigError,
            "outputs of shape (3,), but the data have 4 classes",
        ),
        (["data.source=npz:no.npz"], SourceError, "there is no file"),
        (["hyperparameters.activation=swish"], ValueError, "swish"),
        (["engine=vmap"], ConfigError, "dropout with engine 'grouped' only"),
        (
            ["architecture.dropout=0.5", "hyperparameters={activation = 'relu'}"],
            ConfigError,
            "Set hyperparameters.dropout",
        ),
    ],
)
def test_what_cannot_be_grown_is_refused_before_training(
    folder: Path, catalog: Catalog, settings: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        grow(load_recipe("grown.toml", settings), catalog)
    assert words in str(caught.value)


def test_a_device_that_is_not_there(folder: Path, catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match=r"device 'abacus' cannot be used.*--device cpu"):
        grow(load_recipe("grown.toml"), catalog, device="abacus")


def test_the_command(folder: Path, cli: Callable[..., Result]) -> None:
    result = cli("grow", "grown.toml", "-c", "zoo", "--set", "runs=4", "--json")
    assert result.exit_code == 0
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["zoos"] == ["grown"]
    assert (report["networks"], report["networks_known"], report["networks_left"]) == (4, 0, 0)
    assert len(report["checkpoint_ids"]) == 12
    assert [stack["engine"] for stack in report["stacks"]] == ["grouped", "grouped"]
    again = cli("grow", "grown.toml", "-c", "zoo", "--set", "runs=4")
    assert again.stdout == "grown: 0 networks trained and stored in zoo; 4 were there before\n"
    other = cli("grow", "grown.toml", "-c", "zoo", "--set", "runs=4", "--seed", "3", "--json")
    assert json.loads(other.stdout)["networks"] == 4
    refused = cli("grow", "grown.toml", "-c", "zoo", "--set", "run=4")
    assert refused.exit_code == 1
    assert "Did you mean 'runs'?" in refused.stderr


def test_the_built_catalog_is_what_its_recipe_says(checkout: Path) -> None:
    """Every network of catalogs/digits gives the accuracy that is stored with it."""
    path = checkout / "catalogs" / "digits"
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size < 3_000_000
    with np.load(path / "test_images.npz") as images:
        x, y = torch.from_numpy(images["x"]), torch.from_numpy(images["y"])
    recipe = load_recipe(checkout / "catalogs" / "digits-demo.toml")
    with open_catalog(path) as catalog:
        rows = catalog.sql("from wide where zoo_id = 'digits'").to_pylist()
        assert len(rows) == recipe.num_runs * len(recipe.keep) >= 100
        assert {row["num_parameters"] for row in rows} == {1338}
        for row in rows:
            with torch.no_grad():
                hits = catalog.build(row["checkpoint_id"])(x).argmax(1) == y
            assert hits.sum().item() / len(y) == row["test_accuracy"]
    final = [row["test_accuracy"] for row in rows if row["epoch"] == 20]
    assert max(final) > 0.95
    assert min(final) < 0.3
