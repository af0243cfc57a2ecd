"""Recipes: what they may say, and what is refused with which words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from zooplatform.errors import ConfigError
from zooplatform.growing.ranges import Space, derive_seed
from zooplatform.growing.recipe import Recipe, builtin_recipes, load_recipe
from zooplatform.growing.runs import plan_runs

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
name = "small"
runs = 6
epochs = 5
keep = [0, "2-4"]
seed = 10

[data]
source = ["npz:a.npz", "sklearn:digits"]
size = 16

[architecture]
family = "cnn"
preset = "unterthiner"

[hyperparameters]
activation = ["relu", "tanh"]
learning_rate = { log_uniform = [1e-4, 1e-1] }
optimizer = { choice = ["sgd", "adam"] }
weight_decay = 0.001
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_recipe_is_read_whole(file: Path) -> None:
    recipe = load_recipe(file)
    assert (recipe.name, recipe.runs, recipe.epochs, recipe.seed) == ("small", 6, 5, 10)
    assert recipe.keep == (0, 2, 3, 4)
    assert recipe.data.source == ("npz:a.npz", "sklearn:digits")
    assert recipe.data.size == 16
    runs = plan_runs(recipe)
    assert [run.activation for run in runs] == ["relu", "tanh"] * 3
    assert [run.seed for run in runs] == [10, 11, 12, 13, 14, 15]
    assert all(1e-4 <= run.rule.learning_rate <= 1e-1 for run in runs)
    assert len({run.rule.learning_rate for run in runs}) == 6
    assert all(run.rule.weight_decay == 0.001 for run in runs)


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("runs=50", "runs", 50),
        ("keep=all", "keep", (0, 1, 2, 3, 4, 5)),
        ("keep=last", "keep", (5,)),
        ("keep=[5]", "keep", (5,)),
        ("initialisation=4", "initialisation", 4),
        ("initialisation=shared", "initialisation", "shared"),
        ("license='CC0-1.0'", "license", "CC0-1.0"),
        ("name=other", "name", "other"),
    ],
)
def test_the_command_line_replaces_values(
    file: Path, setting: str, name: str, value: object
) -> None:
    assert getattr(load_recipe(file, [setting]), name) == value


def test_nested_values_are_replaced_by_dotted_names(file: Path) -> None:
    recipe = load_recipe(
        file, ["data.source=npz:b.npz", "hyperparameters.dropout={uniform = [0.0, 0.5]}"]
    )
    assert recipe.data.source == ("npz:b.npz",)
    assert all(0 <= run.dropout <= 0.5 for run in plan_runs(recipe))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("run=5", "unknown key 'run'. Did you mean 'runs'?"),
        ("data.sizes=5", "unknown key 'data.sizes'. Did you mean 'data.size'?"),
        ("hyperparameters.lr=0.1", "unknown key 'hyperparameters.lr'"),
        ("runs=-1", "runs is -1; it must be a whole number of at least 0"),
        ("runs=many", "runs is 'many'"),
        ("epochs=2", "keep names epochs outside 0 to 2: [0, 2, 3, 4]"),
        ("keep=[1.5]", "keep holds 1.5"),
        ("keep=[]", "keep names epochs outside"),
        ("name='a/b'", "name is 'a/b'"),
        ("initialisation=0", "initialisation is 0"),
        ("engine=fast", "engine is 'fast'; it must be one of auto, grouped, vmap, loop"),
        ("data.test=0", "data.test is 0; it must be a positive number"),
        ("data.source=[]", "data.source is []"),
        ("data=5", "data is 5; it must be a dict"),
        ("architecture={}", "architecture.family is missing"),
        ("hyperparameters.learning_rate=[]", "learning_rate is an empty list"),
        ("hyperparameters.learning_rate={uniform = [2.0, 1.0]}", "it must be [low, high]"),
        ("hyperparameters.learning_rate={log_uniform = [0.0, 1.0]}", "positive numbers only"),
        ("hyperparameters.learning_rate={normal = [0.0, 1.0]}", "a range is one of"),
        ("hyperparameters.init={choice = []}", "init.choice is an empty list"),
    ],
)
def test_what_is_not_usable_is_refused(file: Path, setting: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(file, [setting])
    assert words in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("hyperparameters.learning_rate=0", "learning_rate is 0; it must be a number above 0"),
        ("hyperparameters.dropout=1", "dropout is 1; it must be a number at least 0 and below 1"),
        ("hyperparameters.fraction=1.5", "fraction is 1.5; it must be a number at most 1"),
        ("hyperparameters.batch_size=0.5", "batch_size is 0.5; it must be a whole number"),
        ("hyperparameters.init=zeros", "init is 'zeros'; it must be one of default, uniform"),
        ("hyperparameters.optimizer=lion", "Unknown optimizer 'lion'. Known: sgd, adam, adamw."),
        ("hyperparameters.weight_decay=true", "weight_decay is True; it must be a number"),
    ],
)
def test_impossible_hyperparameters_are_refused(file: Path, setting: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_runs(load_recipe(file, [setting]))
    assert words in str(error.value)


@pytest.mark.parametrize("setting", ["runs", "=5", "runs.more=5"])
def test_a_setting_is_key_and_value(file: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_recipe(file, [setting])


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml is not a TOML file"):
        load_recipe(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match=r"broken\.toml is not a TOML file"):
        load_recipe(path)
    path.write_text("name = 'x'", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'data' is missing"):
        load_recipe(path)
    with pytest.raises(ConfigError, match=r"nowhere: .*No such file.*digits-demo.*tiny-zoo"):
        load_recipe("nowhere")


def test_every_recipe_of_the_package_is_usable() -> None:
    names = builtin_recipes()
    assert set(names) == {
        "digits-demo",
        "digits-shared",
        "igpg-cnn",
        "igpg-deep",
        "igpg-resnet",
        "inr-sine",
        "sne-arch1",
        "sne-arch2",
        "sne16-arch1",
        "sne16-arch2",
        "tiny-zoo",
    }
    recipes = {name: load_recipe(name) for name in names}
    assert recipes["tiny-zoo"].num_runs == 1000
    assert recipes["tiny-zoo"].keep == tuple(range(51))
    assert len(recipes["sne-arch1"].data.source) == 4
    for name in names:
        small = load_recipe(name, ["runs=20"])
        assert len(plan_runs(small)) == 20


@pytest.mark.parametrize(
    ("name", "digest"), [("sne16-arch1", "f0caf047eda7002b"), ("sne16-arch2", "e21e1f8f7077beaf")]
)
def test_the_zoos_of_the_comparison_stay_what_they_are(name: str, digest: str) -> None:
    """Results were measured on the zoos of these recipes: a changed value makes other zoos."""
    assert load_recipe(name, ["data.folder=elsewhere"]).digest("images") == digest


def test_a_grid_is_gone_through_before_it_is_begun_again() -> None:
    space = Space({"a": [1, 2], "b": ["x", "y", "z"], "c": 5}, seed=0)
    assert space.grid_size == 6
    points = [tuple(space.run(index).items()) for index in range(12)]
    assert len(set(points[:6])) == 6
    assert points[:6] == points[6:]


def test_draws_have_their_distribution() -> None:
    space = Space(
        {
            "u": {"uniform": [2.0, 4.0]},
            "l": {"log_uniform": [1e-4, 1.0]},
            "c": {"choice": ["a", "b"]},
        },
        seed=3,
    )
    runs = [space.run(index) for index in range(2000)]
    uniform = [float(run["u"]) for run in runs]
    logs = [math.log10(float(run["l"])) for run in runs]
    assert min(uniform) >= 2
    assert max(uniform) <= 4
    assert sum(uniform) / 2000 == pytest.approx(3, abs=0.05)
    assert sum(logs) / 2000 == pytest.approx(-2, abs=0.1)
    assert sum(run["c"] == "a" for run in runs) == pytest.approx(1000, abs=100)


def test_more_runs_begin_with_the_same_runs(file: Path) -> None:
    few, many = (plan_runs(load_recipe(file, [f"runs={n}"])) for n in (6, 40))
    assert many[:6] == few
    other = plan_runs(load_recipe(file, ["seed=11"]))
    assert other[0].rule.learning_rate != few[0].rule.learning_rate


def test_the_digest_names_what_decides_the_weights(file: Path) -> None:
    def digest(*settings: str, data: str = "d") -> str:
        recipe: Recipe = load_recipe(file, settings)
        return recipe.digest(data)

    same = digest()
    assert digest("runs=90", "stack=3", "engine=vmap", "license=x", "train_metrics=5") == same
    for setting in ("seed=1", "epochs=6", "hyperparameters.weight_decay=0.1", "initialisation=2"):
        assert digest(setting) != same, setting
    assert digest(data="e") != same


def test_seeds_differ_by_every_part() -> None:
    seeds = {derive_seed(*parts) for parts in ((1, 2), (12,), (2, 1), ("1", 2, ""), (1, "2x"))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
