"""The generator as users have it: fitted on trained networks, told in words, asked for networks, stored."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.interfaces import Condition
from zooplatform.plugins import load_plugins
from zooplatform_igpg.generator import IgpgGenerator
from zooplatform_igpg.prepared import variances

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.fitting import GeneratorData
    from zooplatform.interfaces import GeneratedBatch

TOLD: dict[str, Any] = {
    "dim": 32, "depth": 1, "heads": 2, "epochs": 6, "center": "basin", "learning_rate": 5e-3,
    "captions": 16, "understanding_steps": 250, "understanding_captions": 1200,
    "tokenizer": {"base": "debug"}, "rows": 16,
}  # fmt: skip
QUICK = TOLD | {"epochs": 2, "understanding_steps": 60, "understanding_captions": 300}


@pytest.fixture(scope="module")
def fitted(stripes: GeneratorData) -> IgpgGenerator:
    generator = IgpgGenerator()
    report = generator.fit(stripes, config=TOLD, seed=0)
    assert report.metrics["understood/dataset"] > 0.9
    assert report.metrics["num_train"] == 48
    assert (
        report.metrics["validation_nll"] < 2.8
    )  # of log 16 = 2.77: differences are close to noise
    assert report.metrics["basins"] >= 4
    assert 1 < report.metrics["perplexity/level-0"] < 17
    assert report.metrics["tokens"] > 0
    assert 1 < report.metrics["bits_per_weight"] < 3
    return generator


def _drawn(generator: IgpgGenerator, n: int = 6, **more: Any) -> list[GeneratedBatch]:
    return list(generator.sample(n, **({"seed": 0} | more)))


def _weights(batches: list[GeneratedBatch]) -> torch.Tensor:
    return torch.cat([batch.weights for batch in batches])


def _accuracy(data: GeneratorData, batches: list[GeneratedBatch], task: str) -> float:
    """Mean accuracy of networks on the training images of a data set."""
    x, y = data.images[task].x, data.images[task].y
    found = []
    for batch in batches:
        for weights in batch.weights:
            module = data.build.load(batch.blueprint, weights)  # type: ignore[attr-defined]
            with torch.no_grad():
                found.append(float((module(x).argmax(dim=1) == y).float().mean()))
    return sum(found) / len(found)


def _nearest(data: GeneratorData, batches: list[GeneratedBatch]) -> set[str]:
    """Of which data set the training network is that lies nearest to each."""
    found = set()
    for batch in batches:
        for weights in batch.weights:
            same = [
                (float((data.train[at].weights - weights).norm()), data.facts[one].dataset)
                for at, one in enumerate(data.train.ids)
            ]
            found.add(min(same)[1])
    return found


# --- conditions -------------------------------------------------------------------------------------------------------


def test_the_right_instruction_gives_networks_that_work_and_the_wrong_one_others(
    fitted: IgpgGenerator, stripes: GeneratorData
) -> None:
    """In words that no training instruction had, too."""
    for text, task, other in (
        ("a network for rows", "rows", "columns"),
        ("I would like something that finds out which of the rows is bright", "rows", "columns"),
        ("columns!", "columns", "rows"),
        ("could there be a classifier of pictures whose columns matter, please", "columns", "rows"),
    ):
        batches = _drawn(fitted, condition=Condition(instruction=text), temperature=0.3)
        assert {batch.dataset for batch in batches} == {task}
        right = _accuracy(stripes, batches, task)
        assert right > 0.75
        assert _accuracy(stripes, batches, other) < right - 0.1
        assert _nearest(stripes, batches) == {task}
        details = batches[0].details[0]
        assert details["dataset"] == task
        assert details["instruction"] == text
        assert details["seen"]
        json.dumps(details)


def test_an_instruction_about_something_else_is_answered_with_what_is_known(
    fitted: IgpgGenerator, stripes: GeneratorData
) -> None:
    known = _drawn(fitted, condition=Condition(instruction="a network for rows, tanh"))
    sure = known[0].details[0]["confidence"]
    batches = _drawn(
        fitted, condition=Condition(instruction="onion soup for eight guests"), temperature=0.3
    )
    assert _accuracy(stripes, batches, batches[0].dataset) > 0.75  # no noise
    assert batches[0].details[0]["confidence"] < 0.5 < sure


def test_the_activation_and_the_architecture_are_chosen(
    fitted: IgpgGenerator, stripes: GeneratorData
) -> None:
    for activation in ("relu", "tanh"):
        (batch,) = _drawn(fitted, condition=Condition(instruction=f"columns with {activation}"))
        assert batch.blueprint.config["activation"] == activation
        asked = Condition(dataset="rows", build_config={"activation": activation})
        (batch,) = _drawn(fitted, condition=asked)
        assert batch.blueprint.config["activation"] == activation
        assert batch.dataset == "rows"
    whole = stripes.blueprints[0].architecture_id
    (batch,) = _drawn(fitted, condition=Condition(architecture_id=whole[:8]))
    assert batch.blueprint.architecture_id == whole


def test_images_are_taken_for_the_data_set_that_they_look_like(
    fitted: IgpgGenerator, stripes: GeneratorData
) -> None:
    for task in ("rows", "columns"):
        images = stripes.images[task].examples(5, seed=77)
        batches = _drawn(fitted, condition=Condition(images=images), temperature=0.3)
        assert batches[0].dataset == task
        assert _accuracy(stripes, batches, task) > 0.75


def test_what_cannot_be_met_is_refused_with_what_is_known(fitted: IgpgGenerator) -> None:
    for condition, text in (
        (Condition(dataset="mnist"), "Known: columns, rows"),
        (Condition(architecture_id="feed"), "stripes"),
        (Condition(build_config={"activation": "gelu"}), "relu"),
        (Condition(images=torch.rand(2, 3)), "classes, examples"),
    ):
        with pytest.raises(ConfigError, match=text):
            fitted.sample(1, condition=condition, seed=0)


def test_options_that_mean_nothing_are_refused(fitted: IgpgGenerator) -> None:
    for options, text in (
        ({"topp": 0.5}, "Known: basin, flat, guidance"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": "much"}, "top_p is 'much'"),
        ({"level": 9}, "level is 9"),
        ({"basin": 50}, "basin is 50"),
        ({"spread": -1}, "spread is -1"),
    ):
        with pytest.raises(ConfigError, match=text):
            fitted.sample(1, seed=0, options=options)
    with pytest.raises(ConfigError, match="n is -1"):
        fitted.sample(-1, seed=0)
    assert list(fitted.sample(0, seed=0)) == []


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_networks_are_spread_over_their_basins(fitted: IgpgGenerator) -> None:
    batches = _drawn(fitted, 40, condition=Condition(dataset="rows"))
    basins = [one["basin"] for batch in batches for one in batch.details]
    assert len(set(basins)) >= 2
    assert [len(batch.weights) for batch in batches] == [16, 16, 8]
    (batch,) = _drawn(fitted, 8, condition=Condition(dataset="rows"), options={"basin": 0})
    assert len({one["basin"] for one in batch.details}) == 1


def test_temperature_zero_is_the_same_network_of_a_basin_every_time(fitted: IgpgGenerator) -> None:
    asked = {"condition": Condition(dataset="rows"), "options": {"basin": 0}}
    greedy = _weights(_drawn(fitted, temperature=0.0, **asked))
    assert greedy.std(dim=0).max() == 0
    assert torch.equal(greedy, _weights(_drawn(fitted, temperature=0.0, seed=5, **asked)))
    spreads = [
        float(_weights(_drawn(fitted, 16, temperature=t, **asked)).std(dim=0).mean())
        for t in (0.2, 1.0)
    ]
    assert 0 < spreads[0] < spreads[1]
    narrow = _weights(_drawn(fitted, 16, top_k=1, **asked))
    assert torch.equal(narrow[:6], greedy)
    assert (
        float(_weights(_drawn(fitted, 16, **_with(asked, top_p=0.2))).std(dim=0).mean())
        < spreads[1]
    )


def test_the_spread_moves_networks_between_the_centre_and_beyond(fitted: IgpgGenerator) -> None:
    asked = {"condition": Condition(dataset="rows"), "options": {"basin": 0}}
    drawn = {s: _weights(_drawn(fitted, **_with(asked, spread=s))) for s in (0.0, 0.5, 1.0)}
    centre = drawn[0.0][:1]
    assert torch.equal(drawn[0.0], centre.expand(6, -1))
    blueprint = _drawn(fitted, 1, **asked)[0].blueprint
    plain = ~variances(blueprint.vector)
    torch.testing.assert_close(
        (drawn[0.5] - centre)[:, plain], 0.5 * (drawn[1.0] - centre)[:, plain]
    )
    assert (drawn[0.0][:, ~plain] > 0).all()
    assert torch.equal(drawn[1.0], _weights(_drawn(fitted, **asked)))


def _with(asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    return asked | {"options": asked["options"] | more}


def test_the_first_networks_are_the_same_however_many_follow(fitted: IgpgGenerator) -> None:
    many = _weights(_drawn(fitted, 20))
    assert torch.equal(_weights(_drawn(fitted, 3)), many[:3])
    assert torch.equal(_weights(_drawn(fitted, 17)), many[:17])
    assert not torch.equal(_weights(_drawn(fitted, 3, seed=1)), many[:3])
    assert len(many.unique(dim=0)) == 20


def test_variances_of_normalisation_stay_positive(
    fitted: IgpgGenerator, stripes: GeneratorData
) -> None:
    batches = _drawn(fitted, 16, temperature=3.0)
    for batch in batches:
        field = batch.blueprint.vector.by_name["layers.1.running_var"]
        own = batch.weights[:, field.offset : field.offset + field.spec.num_elements]
        assert own.min() > 0
        assert batch.blueprint.aside == stripes.blueprints[0].aside or batch.blueprint.aside


def test_guidance_levels_and_progress(fitted: IgpgGenerator) -> None:
    plain = _weights(_drawn(fitted))
    assert not torch.equal(_weights(_drawn(fitted, options={"guidance": 4.0})), plain)
    assert not torch.equal(_weights(_drawn(fitted, options={"level": 0})), plain)
    assert torch.equal(_weights(_drawn(fitted, options={"level": 3})), plain)  # the best by default


def test_held_out_networks_are_reconstructed(fitted: IgpgGenerator, stripes: GeneratorData) -> None:
    for index in range(4):
        one = stripes.validation[index]
        fact = stripes.facts[one.checkpoint_id]
        blueprint = stripes.blueprints[fact.blueprint]
        again = fitted.reconstruct(one.weights[None], blueprint)[0]
        error = (again - one.weights).norm() / one.weights.norm()
        assert 0 < error < 0.4
    other = replace(blueprint, vector=type(blueprint.vector)(blueprint.vector.layout[:1]))
    with pytest.raises(ConfigError, match="was fitted on"):
        fitted.reconstruct(one.weights[None], other)


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_the_same_call_gives_the_same_generator_and_another_seed_another(
    stripes: GeneratorData,
) -> None:
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(drawn))
        generator = IgpgGenerator()
        generator.fit(stripes, config=QUICK, seed=seed)
        drawn.append(_weights(_drawn(generator)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("stop", [2, 4])
def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(
    stripes: GeneratorData, tmp_path: Path, stop: int
) -> None:
    whole = IgpgGenerator()
    config = QUICK | {"epochs": 3}
    expected = whole.fit(stripes, config=config, seed=0)
    calls: list[str] = []

    def interrupt(what: str, done: int, total: int | None) -> None:
        calls.extend([what] if what.startswith("igpg") else [])
        if len(calls) == stop - 1:
            raise KeyboardInterrupt

    kept = replace(stripes, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        IgpgGenerator().fit(replace(kept, progress=interrupt), config=config, seed=0)
    with pytest.raises(ConfigError, match="another fit"):
        IgpgGenerator().fit(kept, config=config | {"dim": 16}, seed=0)
    heard: list[str] = []
    again = IgpgGenerator()
    report = again.fit(
        replace(kept, progress=lambda what, done, total: heard.append(what)), config=config, seed=0
    )
    assert len([what for what in heard if what.startswith("igpg")]) == 3 - (stop - 1) + 1
    assert not any("k-means" in what for what in heard)  # the tokenizer was there already
    assert torch.equal(_weights(_drawn(again)), _weights(_drawn(whole)))
    assert report.metrics["validation_nll"] == expected.metrics["validation_nll"]


def test_a_fit_without_validation_networks_or_images_is_possible(stripes: GeneratorData) -> None:
    generator = IgpgGenerator()
    empty = replace(stripes, images={})
    report = generator.fit(empty, config=QUICK, seed=0)
    assert "No images of columns, rows" in report.notes[-1]
    (batch,) = _drawn(generator, condition=Condition(instruction="rows"))
    assert batch.dataset in ("rows", "columns")


@pytest.mark.parametrize(
    "changed",
    [
        {"codec": "klt", "klt_codes": 16, "patch": 1},
        {"center": "none", "basins": 0, "augment": 1},
        {"center": "none", "basins": 0, "align": True},
        {"center": "mean", "class_tokens": True, "images": "filters"},
        {"describe_architecture": "text", "places": "counted", "level_condition": False},
        {"context": 16, "window": 4, "rope": False, "kv_heads": 2},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_every_variant_fits_draws_and_is_stored(
    stripes: GeneratorData, tmp_path: Path, changed: dict[str, Any]
) -> None:
    generator = IgpgGenerator()
    generator.fit(stripes, config=QUICK | changed, seed=0)
    asked = {"condition": Condition(instruction="rows, tanh")}
    weights = _weights(_drawn(generator, **asked))
    assert weights.isfinite().all()
    generator.save(tmp_path)
    loaded = IgpgGenerator()
    loaded.load(tmp_path)
    assert torch.equal(_weights(_drawn(loaded, **asked)), weights)
    one = stripes.train[0]
    blueprint = stripes.blueprints[stripes.facts[one.checkpoint_id].blueprint]
    assert torch.equal(
        loaded.reconstruct(one.weights[None], blueprint),
        generator.reconstruct(one.weights[None], blueprint),
    )


def test_codes_can_be_chosen_for_the_function(stripes: GeneratorData, tmp_path: Path) -> None:
    """With what the tokenizer needs for it; a stored generator is given that again."""
    changed = {"center": "none", "basins": 0, "tokenizer": {"base": "debug", "feedback": True}}
    generator = IgpgGenerator()
    generator.fit(stripes, config=QUICK | changed, seed=0)
    generator.save(tmp_path)
    loaded = IgpgGenerator()
    loaded.load(tmp_path)
    one = stripes.validation[0]
    fact = stripes.facts[one.checkpoint_id]
    blueprint, weights = stripes.blueprints[fact.blueprint], one.weights[None]
    plain = loaded.reconstruct(weights, blueprint)
    kept = loaded.reconstruct(weights, blueprint, data=stripes)
    assert torch.equal(generator.reconstruct(weights, blueprint), kept)
    x = stripes.images[fact.dataset].x
    changes = []
    for rows in (plain, kept):
        with torch.no_grad():
            load = stripes.build.load  # type: ignore[attr-defined]  # the builder of the platform
            said, wanted = load(blueprint, rows[0])(x), load(blueprint, one.weights)(x)
        changes.append(float((said - wanted).square().mean()))
    assert changes[1] < changes[0]


# --- storing ----------------------------------------------------------------------------------------------------------


def test_it_is_stored_without_code_and_comes_back_the_same(
    fitted: IgpgGenerator, stripes: GeneratorData, tmp_path: Path
) -> None:
    fitted.save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    described = json.loads((tmp_path / "generator.json").read_text())
    assert described["config"]["learning_rate"] == 5e-3
    assert described["config"]["weight_decay"] > 0  # written out, though not given
    loaded = IgpgGenerator()
    loaded.load(tmp_path)
    for asked in (
        {},
        {"condition": Condition(instruction="a network for columns")},
        {"condition": Condition(images=stripes.images["rows"].examples(5))},
    ):
        assert torch.equal(_weights(_drawn(loaded, **asked)), _weights(_drawn(fitted, **asked)))


def test_other_files_are_refused(fitted: IgpgGenerator, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    path = tmp_path / "generator.json"
    described = json.loads(path.read_text())
    for broken, text in (
        (described | {"format": 9}, "format 9"),
        (described | {"cells": [[0]]}, "is damaged"),
        (described | {"blueprints": []}, "is damaged"),
        ([], "holds no table"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(ArtifactError, match=text):
            IgpgGenerator().load(tmp_path)
    path.write_text(json.dumps(described))
    (tmp_path / "generator.safetensors").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        IgpgGenerator().load(tmp_path)


def test_nothing_can_be_done_before_fitting(stripes: GeneratorData, tmp_path: Path) -> None:
    generator = load_plugins().generators.create("igpg")
    assert isinstance(generator, IgpgGenerator)
    blueprint = stripes.blueprints[0]
    for call in (
        lambda: generator.sample(1, seed=0),
        lambda: generator.save(tmp_path),
        lambda: generator.reconstruct(torch.zeros(1, blueprint.vector.width), blueprint),
    ):
        with pytest.raises(ConfigError, match="not fitted"):
            call()
