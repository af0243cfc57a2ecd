"""Networks that are fitted to functions: what they learn, what is stored, what is refused."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from zooplatform.errors import ConfigError, SourceError
from zooplatform.growing import grow, load_recipe
from zooplatform.growing.data import read_data
from zooplatform.growing.functions import read_function
from zooplatform.growing.grow import ZooGrower
from zooplatform.growing.initialise import initialise
from zooplatform.growing.recipe import DataRecipe
from zooplatform.growing.runs import plan_runs
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

# Twelve networks in three stacks, a second.
SMALL = ("runs=12", "stack=5", "epochs=6", "keep=[0, 6]", "data.train=512", "data.test=300")


def wave(config: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """The function that a model says it was fitted to, written out again."""
    return config["amplitude"] * torch.sin(config["frequency"] * x + config["phase"])


def points(count: int) -> torch.Tensor:
    """Points (count, 1) that are neither those of training nor of testing."""
    generator = torch.Generator().manual_seed(99)
    return math.pi * (2 * torch.rand(count, 1, generator=generator) - 1)


def test_the_networks_of_the_recipe_are_their_functions(catalog: Catalog) -> None:
    """As the recipe says it, on fewer networks: each gives its wave between the points it learnt."""
    report = grow(load_recipe("inr-sine", ["runs=4"]), catalog)
    assert [done.engine for done in report.done] == ["grouped"]
    rows = catalog.sql(
        "select w.*, m.config from wide w join models m using (model_id)"
    ).to_pylist()
    assert len(rows) == 4
    x = points(400)
    for row in rows:
        network = catalog.build(row["checkpoint_id"])
        assert sum(p.numel() for p in network.parameters()) == 1153
        config = json.loads(row["config"])
        with torch.no_grad():
            errors = (network(x) - wave(config, x)).square()
        assert float(errors.mean()) < 1e-3  # the wave itself has a mean square of a half
        assert 0.5 <= config["frequency"] <= 10
        assert row["frequency"] == config["frequency"]
        assert row["step"] == 512
    assert len({row["frequency"] for row in rows}) == 4


def test_losses_are_those_of_the_rebuilt_networks(catalog: Catalog) -> None:
    settings = [*SMALL, "hyperparameters.phase={uniform = [0.0, 3.0]}"]
    recipe = load_recipe("inr-sine", [*settings, "hyperparameters.amplitude=[0.5, 2.0]"])
    grow(recipe, catalog)
    data = read_data("function:sine", recipe.data)
    rows = catalog.sql(
        "select w.*, m.config from wide w join models m using (model_id)"
    ).to_pylist()
    assert len(rows) == 24
    for row in rows:
        network, config = catalog.build(row["checkpoint_id"]), json.loads(row["config"])
        for split in ("train", "test"):
            x = data.inputs(split)
            with torch.no_grad():
                loss = (network(x) - wave(config, x)).square().mean().item()
            assert row[f"{split}_loss"] == pytest.approx(loss, rel=1e-3, abs=1e-7)
    assert {json.loads(row["config"])["amplitude"] for row in rows} == {0.5, 2.0}
    first, last = ([row["test_loss"] for row in rows if row["epoch"] == epoch] for epoch in (0, 6))
    assert sum(last) < 0.5 * sum(first)


def test_the_frequency_is_a_reported_metric(catalog: Catalog) -> None:
    grow(load_recipe("inr-sine", [*SMALL, "runs=3"]), catalog)
    metrics = catalog.sql(
        "select distinct name, dataset, split, origin from metrics where name in "
        "('frequency', 'test_loss', 'train_loss') or name like '%accuracy' order by 1"
    ).to_pylist()
    assert [tuple(metric.values()) for metric in metrics] == [
        ("frequency", "sine", "", "reported"),
        ("test_loss", "sine", "test", "measured"),
        ("train_loss", "sine", "train", "measured"),
    ]
    edge = catalog.sql("from lineage where relation = 'trained_on' limit 1").to_pylist()[0]
    assert edge["parent_id"] == "function:sine"
    dataset = catalog.dataset("select checkpoint_id from checkpoints", target="frequency")
    assert len(dataset) == 6


def test_a_network_does_not_depend_on_its_stack() -> None:
    """Every row of a stack learns its own wave: alone it ends in the same place."""
    registry = load_plugins(strict=True)
    ends = {}
    for stack in (1, 12):
        recipe = load_recipe("inr-sine", [*SMALL, f"stack={stack}"])
        grower = ZooGrower(recipe, read_data("function:sine", recipe.data), registry)
        for one in grower.stacks:
            moment = grower.train(one, torch.device("cpu"))[-1]
            for place, run in enumerate(one.runs):
                ends[stack, run.index] = moment.test.loss[place]
                assert moment.test.accuracy is None
    for index in range(12):
        assert ends[1, index] == pytest.approx(ends[12, index], rel=0.02)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_engines_agree(engine: str) -> None:
    registry = load_plugins(strict=True)
    losses = []
    for name in ("grouped", engine):
        recipe = load_recipe(
            "inr-sine", [*SMALL, "runs=3", "epochs=2", "keep=[2]", f"engine={name}"]
        )
        grower = ZooGrower(recipe, read_data("function:sine", recipe.data), registry)
        (stack,) = grower.stacks
        losses.append(grower.train(stack, torch.device("cpu"))[-1].test.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_points_lie_where_the_documentation_says() -> None:
    data = read_function("function:sine", DataRecipe(source=("function:sine",), train=5, test=50))
    halves = [-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi]
    torch.testing.assert_close(data.train.flatten(), torch.tensor(halves))
    assert data.test.shape == (50, 1)
    assert float(data.test.abs().max()) <= math.pi
    other = DataRecipe(source=("function:sine",), train=5, test=50, seed=1)
    assert read_function("function:sine", other).sha256 != data.sha256


def test_siren_weights_have_their_bounds() -> None:
    adapter = load_plugins(strict=True).architectures.create("cnn")
    config = {"preset": "siren", "inputs": 1, "hidden": 64, "w0": 10.0}
    module = initialise(lambda: adapter.build(config), "siren", seed=3, std=1.0)
    first, second, third = (p for p in module.parameters() if p.dim() > 1)
    bound = math.sqrt(6 / 64) / 10
    assert 0.9 < float(first.detach().abs().max()) <= 1
    for weight in (second, third):
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
    assert all(not p.any() for p in module.parameters() if p.dim() == 1)
    with pytest.raises(ConfigError, match=r"init 'siren' is for networks whose activations"):
        initialise(lambda: torch.nn.Linear(3, 3), "siren", seed=0, std=1.0)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (["data.source=function:cosine"], SourceError, "Known: function:sine"),
        (["data.train=0"], ConfigError, "data.train is 0"),
        (["data.size=16"], ConfigError, "function:sine is a function"),
        (['hyperparameters={init = "siren"}'], ConfigError, "needs hyperparameters.frequency"),
        (["architecture.outputs=2"], ConfigError, "gives 2 outputs"),
        (["data.source=sklearn:digits", "data.train=500"], ConfigError, "data.size and the arch"),
        (["hyperparameters.activation=relu"], ConfigError, "init 'siren' is for networks"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    catalog: Catalog, settings: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        grow(load_recipe("inr-sine", [*SMALL, *settings]), catalog)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("hyperparameters.frequency=0", "frequency is 0; it must be a number above 0"),
        ("hyperparameters.phase='up'", "phase is 'up'; it must be a number."),
        ("hyperparameters={phase = 1.0}", "phase belongs to hyperparameters.frequency"),
    ],
)
def test_impossible_waves_are_refused(setting: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_runs(load_recipe("inr-sine", [setting]))
    assert words in str(caught.value)


def test_images_have_no_frequency(catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match="sklearn:digits holds images, which have none"):
        grow(load_recipe("digits-demo", ["hyperparameters.frequency=1.0"]), catalog)
