"""Generators that are fitted, stored and drawn from, and networks that are sampled into the catalog."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from zooplatform.artifacts import find_artifact, load_artifact
from zooplatform.catalog import open_catalog
from zooplatform.errors import CatalogError, ConfigError, PluginError, SourceError, UnknownIdError
from zooplatform.evaluation.predictions import predict
from zooplatform.evaluation.stored_fits import fit_predictor
from zooplatform.generation.drawing import condition_of, draw, example_images
from zooplatform.generation.sampling import sample_networks
from zooplatform.generation.stored_fits import fit_generator, fitted_ids
from zooplatform.interfaces import CheckpointRecord, Condition, ModelInfo
from zooplatform.plugins import load_plugins
from zooplatform.testing.stripes import SAMPLE_GENERATOR, stripes_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.testing import PluginInstaller

ALL = "select checkpoint_id from wide where zoo in ('stripes-rows', 'stripes-columns')"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(stripes_folder(), tmp_path / "stripes")


@pytest.fixture
def zoo(folder: Path, zoo_site: PluginInstaller) -> Iterator[Catalog]:
    zoo_site.install("normal", SAMPLE_GENERATOR)
    with open_catalog(folder / "zoo", registry=load_plugins(strict=True)) as catalog:
        yield catalog


@pytest.fixture
def fitted(zoo: Catalog, folder: Path) -> Artifact:
    return fit_generator(zoo, "normal", name="n", query=ALL, data_folder=folder, config="debug")


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_a_fit_says_on_what(zoo: Catalog, fitted: Artifact) -> None:
    data = fitted.data
    assert (fitted.kind, fitted.name, fitted.backend) == ("generator", "n", "normal")
    assert fitted.config == {"spread": 0.5}
    assert (data["query"], data["seed"]) == (ALL, 0)
    assert fitted.metrics == {"kinds": 4, "begun": 0, "fit_seconds": 0.5}
    assert data["notes"] == ["fitted"]
    train, validation = data["train"], data["validation"]
    assert (train["models"], validation["models"]) == (12, 2)  # of eight stacks of two
    assert train["checkpoints"] == 24
    counts = {name: item["checkpoints"] for name, item in data["datasets"].items()}
    assert sum(counts.values()) == 28
    assert set(counts) == {"rows", "columns"}
    images = data["datasets"]["rows"]["images"]
    assert (images["shape"], images["num_classes"], images["num_train"]) == ([1, 6, 6], 3, 54)
    lineage = zoo.sql("select distinct detail from lineage where parent_id = 'npz:rows.npz'")
    assert images["sha256"] in lineage[0][0].as_py()
    (architecture,) = data["architectures"]
    assert (architecture["name"], architecture["blueprints"]) == ("stripes", 2)
    assert data["licenses"] == {"CC0-1.0": 28}


def test_a_generator_gets_facts_blueprints_and_training_images(
    zoo: Catalog, fitted: Artifact
) -> None:
    (given,) = sys.modules["zoo_test_normal"].SEEN[-1:]
    assert list(given.facts) == [*given.train.ids, *given.validation.ids]
    assert given.train.target is None
    assert {name: len(images.y) for name, images in given.images.items()} == {
        "rows": 54,
        "columns": 54,
    }
    assert given.images["rows"].examples(2).shape == (3, 2, 1, 6, 6)
    assert given.folder.parent.name == "artifacts"
    module = given.build(given.blueprints[0])
    assert sum(value.numel() for value in module.parameters()) == 123
    models = {
        side: {given.facts[i].model_id for i in getattr(given, side).ids}
        for side in ("train", "validation")
    }
    assert not models["train"] & models["validation"]


def test_the_training_networks_can_be_found_again(zoo: Catalog, fitted: Artifact) -> None:
    (given,) = sys.modules["zoo_test_normal"].SEEN[-1:]
    assert fitted_ids(zoo, fitted) == list(given.train.ids)
    assert fitted_ids(zoo, fitted, "val") == list(given.validation.ids)
    # A copy of a training network is none of them, though the split goes by content.
    first = given.train.ids[0]
    config = zoo.reader.description(first).config
    record = CheckpointRecord(model=ModelInfo(key="copy", name="copy", source="test:"), step=1)
    (copy,) = zoo.add_state_dicts(
        [zoo.state_dict(first)], [record], zoo="stripes-rows", family="cnn", config=config
    )
    assert copy in zoo.dataset(ALL, target=None, split=fitted.data["split"], role="train").ids
    assert fitted_ids(zoo, fitted) == list(given.train.ids)


def test_images_that_cannot_be_had_are_left_out_and_said(zoo: Catalog, folder: Path) -> None:
    (folder / "rows.npz").unlink()
    made = fit_generator(zoo, "normal", name="n", query=ALL, data_folder=folder)
    assert made.data["datasets"]["rows"]["images"] is None
    assert made.data["datasets"]["columns"]["images"] is not None
    assert any(note.startswith("Images of rows left out") for note in made.data["notes"])
    with pytest.raises(SourceError, match="no file"):
        fit_generator(
            zoo, "normal", name="n", query=ALL, data_folder=folder, sources={"rows": "npz:no.npz"}
        )


def test_an_interrupted_fit_goes_on(zoo: Catalog, folder: Path) -> None:
    arguments: dict[str, Any] = {"query": ALL, "data_folder": folder, "settings": ["steps=9"]}

    def interrupt(what: str, done: int, total: int | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_generator(zoo, "normal", name="n", progress=interrupt, **arguments)
    (state,) = (zoo.path / "artifacts").glob("fit-*")
    made = fit_generator(zoo, "normal", name="n", **arguments)
    assert made.metrics["begun"] == 4
    assert not state.exists()
    again = fit_generator(zoo, "normal", name="n", **arguments)
    assert again.metrics["begun"] == 0


def test_what_cannot_be_fitted_is_refused_and_leaves_nothing(zoo: Catalog) -> None:
    with pytest.raises(ConfigError, match=r"no configuration 'debgu'.*Did you mean 'debug'"):
        fit_generator(zoo, "normal", name="n", query=ALL, config="debgu")
    with pytest.raises(ConfigError, match="no_such"):
        fit_generator(zoo, "normal", name="n", query=ALL, settings=["no_such=1"])
    with pytest.raises(PluginError, match=r"Unknown generator 'nromal'.*Did you mean 'normal'"):
        fit_generator(zoo, "nromal", name="n", query=ALL)
    with pytest.raises(ConfigError, match="Device 'abacus'"):
        fit_generator(zoo, "normal", name="n", query=ALL, device="abacus")
    with pytest.raises(CatalogError, match="holds no network"):
        fit_generator(zoo, "normal", name="n", query=f"{ALL} and epoch = 7")
    assert list((zoo.path / "artifacts").iterdir()) == []


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_drawing_stores_nothing(zoo: Catalog, fitted: Artifact) -> None:
    before = zoo.sql("select count(*) from checkpoints")[0][0].as_py()
    batches = list(draw(zoo, fitted, 5, condition=Condition(dataset="rows"), seed=2))
    assert [len(batch.weights) for batch in batches] == [1] * 5
    assert {batch.dataset for batch in batches} == {"rows"}
    assert zoo.sql("select count(*) from checkpoints")[0][0].as_py() == before
    loaded = load_artifact(zoo, fitted)
    again = draw(zoo, fitted, 5, condition=Condition(dataset="rows"), seed=2, generator=loaded)
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            "nan",
            r"Generator 'n' \(normal\) gave a network with weights that are not finite \(number 1\)",
        ),
        ("shape", r"gave networks of shape \(1, 126\); those of the layout .* have 127 values"),
        ("few", "gave 3 networks where 4 were asked for"),
        ("many", "gave more than 4 networks where 4"),
    ],
)
def test_what_is_no_network_is_refused(
    zoo: Catalog, fitted: Artifact, broken: str, said: str
) -> None:
    with pytest.raises(PluginError, match=said):
        list(draw(zoo, fitted, 4, options={"broken": broken}))


def test_requests_that_make_no_sense_are_refused(zoo: Catalog, fitted: Artifact) -> None:
    for wrong in ({"n": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}):
        arguments: dict[str, Any] = {"n": 1, **wrong}
        with pytest.raises(ConfigError, match=f"{next(iter(wrong.values()))}"):
            list(draw(zoo, fitted, arguments.pop("n"), **arguments))


def test_conditions_are_resolved_by_name(zoo: Catalog, fitted: Artifact) -> None:
    (known,) = fitted.data["architectures"]
    full = known["architecture_id"]
    assert condition_of(fitted) is None
    for given in ("stripes", full, full[:4]):
        assert condition_of(fitted, architecture=given) == Condition(architecture_id=full)
    with pytest.raises(ConfigError, match=f"none called 'resnet'. It knows stripes .{full}"):
        condition_of(fitted, architecture="resnet")
    with pytest.raises(
        ConfigError, match=r"not fitted on a data set 'mnist'\. It knows columns, rows"
    ):
        condition_of(fitted, dataset="mnist")


def test_examples_are_prepared_as_the_images_of_the_fit(
    zoo: Catalog, fitted: Artifact, folder: Path
) -> None:
    images, data = example_images(fitted, "npz:rows.npz", folder=folder, seed=1)
    assert images.shape == (3, 5, 1, 6, 6)
    assert data.name == "rows"
    # Bright in the stripe of their class.
    bright = images.mean(dim=(1, 2, 4)).reshape(3, 3, 2).mean(2)
    assert (bright.argmax(1) == torch.arange(3)).all()
    blind = replace(
        fitted, data={**fitted.data, "datasets": {"rows": {"checkpoints": 1, "images": None}}}
    )
    with pytest.raises(ConfigError, match="fitted without images"):
        example_images(blind, "npz:rows.npz", folder=folder)


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_sampled_networks_are_in_the_catalog_with_what_they_came_from(
    zoo: Catalog, fitted: Artifact
) -> None:
    report = sample_networks(
        zoo,
        "n",
        6,
        instruction="rows",
        seed=3,
        temperature=0.5,
        build_config={"activation": "relu"},
    )
    assert (report.new, report.zoo, report.license) == (6, "generated-n", "CC0-1.0")
    asked = Condition(instruction="rows", build_config={"activation": "relu"})
    drawn = list(draw(zoo, fitted, 6, condition=asked, seed=3, temperature=0.5))
    for at, one in enumerate(report.checkpoint_ids):
        module = zoo.build(one)
        assert type(module.get_submodule("_plain.main2")).__name__ == "ReLU"
        state = module.state_dict()
        flat = torch.cat([v.reshape(-1) for v in state.values() if v.dtype == torch.float32])
        assert torch.equal(flat, drawn[at].weights[0])
        assert state["layers.1.num_batches_tracked"] > 0
    rows = zoo.sql(
        "select m.*, z.source as zoo_source, z.license as zoo_license, l.parent_id, l.detail "
        "from models m join zoos z using (zoo_id) join lineage l on l.child_id = m.model_id "
        "where l.relation = 'generated_by' order by m.name"
    ).to_pylist()
    assert len(rows) == 6
    for at, row in enumerate(rows):
        assert row["parent_id"] == fitted.artifact_id
        assert (row["license"], row["zoo_license"], row["seed"]) == ("CC0-1.0", "CC0-1.0", 3)
        assert (row["source"], row["zoo_source"]) == ("generate:n", "generate:n")
        assert json.loads(row["config"]) == {"activation": "relu", "dataset": "rows"}
        detail = json.loads(row["detail"])
        expected = {
            "instruction": "rows", "seed": 3, "temperature": 0.5, "index": at, "backend": "normal",
            "generator": "n", "licenses": ["CC0-1.0"], "details": {"drawn": at},
            "build_config": {"activation": "relu"},
        }  # fmt: skip
        assert expected.items() <= detail.items()
    assert zoo.check(deep=True) == []


def test_the_same_request_gives_the_same_networks_once(
    zoo: Catalog, fitted: Artifact, folder: Path
) -> None:
    first = sample_networks(zoo, "n", 4, dataset="rows", seed=3)
    again = sample_networks(zoo, "n", 4, dataset="rows", seed=3)
    more = sample_networks(zoo, "n", 6, dataset="rows", seed=3)
    assert (again.new, again.checkpoint_ids) == (0, first.checkpoint_ids)
    assert again.differing == 0
    assert (more.new, more.checkpoint_ids[:4]) == (2, first.checkpoint_ids)
    others = [
        sample_networks(zoo, "n", 4, dataset="rows", seed=4),
        sample_networks(zoo, "n", 4, dataset="columns", seed=3),
        sample_networks(zoo, "n", 4, dataset="rows", seed=3, temperature=0.5),
        sample_networks(zoo, "n", 4, dataset="rows", seed=3, architecture="stripes"),
        sample_networks(
            zoo, "n", 4, dataset="rows", seed=3, images="npz:rows.npz", data_folder=folder
        ),
    ]
    every = [i for report in (first, *others) for i in report.checkpoint_ids]
    assert len(set(every)) == len(every)
    count = zoo.sql("select count(*) from wide where zoo = 'generated-n'")[0][0].as_py()
    assert count == len(every) + 2


def test_other_weights_under_the_same_request_are_noticed(
    zoo: Catalog, fitted: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another version of a plugin may give; what is stored stays."""
    first = sample_networks(zoo, "n", 3, dataset="rows", seed=3)
    before = zoo.state_dict(first.checkpoint_ids[1])["layers.0.weight"].clone()
    normal = sys.modules["zoo_test_normal"].Normal
    sample = normal.sample

    def other(self: Any, n: int, **asked: Any) -> Any:
        for number, batch in enumerate(sample(self, n, **asked)):
            yield batch._replace(weights=batch.weights + (number == 1))

    monkeypatch.setattr(normal, "sample", other)
    again = sample_networks(zoo, "n", 3, dataset="rows", seed=3)
    assert (again.new, again.differing) == (0, 1)
    assert again.checkpoint_ids == first.checkpoint_ids
    assert torch.equal(zoo.state_dict(first.checkpoint_ids[1])["layers.0.weight"], before)


def test_networks_of_several_kinds_keep_their_order(
    zoo: Catalog, fitted: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zooplatform.generation.sampling._COMMIT_NETWORKS", 3)
    said: list[tuple[str, int, int | None]] = []
    report = sample_networks(zoo, "n", 8, seed=1, progress=lambda *told: said.append(told))
    drawn = list(draw(zoo, fitted, 8, seed=1))
    for one, batch in zip(report.checkpoint_ids, drawn, strict=True):
        fact = zoo.reader.description(one)
        assert fact.config["activation"] == batch.blueprint.config["activation"]
        state = zoo.state_dict(one)
        assert torch.equal(state["layers.0.weight"].reshape(-1), batch.weights[0, :18])
    assert said[-1] == ("sample n", 8, 8)
    assert len(said) == 8


def test_a_judge_picks_among_candidates(zoo: Catalog, fitted: Artifact) -> None:
    judge = fit_predictor(zoo, "flat-linear", name="judge", query=ALL, target="test_accuracy")
    report = sample_networks(zoo, "n", 3, dataset="rows", seed=3, best_of=4, judge="judge")
    candidates = list(draw(zoo, fitted, 12, condition=Condition(dataset="rows"), seed=3))
    stored = [zoo.state_dict(one)["layers.0.weight"].reshape(-1) for one in report.checkpoint_ids]
    details = [
        json.loads(text.as_py())
        for text in zoo.sql(
            "select detail from lineage join models on model_id = child_id "
            "where relation = 'generated_by' order by name"
        ).column(0)
    ]
    predictor = load_artifact(zoo, judge)
    for at, detail in enumerate(details):
        said = detail["predictions"]
        assert len(said) == 4
        assert detail["prediction"] == max(said) == report.predictions[at]
        assert detail["candidate"] == 4 * at + said.index(max(said))
        assert torch.equal(stored[at], candidates[detail["candidate"]].weights[0, :18])
    values = predict(zoo, predictor, report.checkpoint_ids)
    assert values.tolist() == pytest.approx(list(report.predictions))
    # They are where predictions are looked for.
    column = zoo.sql("select predicted_test_accuracy from wide where zoo = 'generated-n'")
    assert sorted(column.column(0).to_pylist()) == pytest.approx(sorted(report.predictions))
    worst = fit_predictor(zoo, "flat-linear", name="loss", query=ALL, target="test_loss")
    assert worst.data["target"] == "test_loss"
    low = sample_networks(zoo, "n", 1, dataset="rows", seed=3, best_of=4, judge="loss")
    (detail,) = (
        json.loads(text.as_py())
        for text in zoo.sql(
            "select detail from lineage join checkpoints on model_id = child_id "
            "where relation = 'generated_by' and checkpoint_id = ?",
            [low.checkpoint_ids[0]],
        ).column(0)
    )
    assert detail["prediction"] == min(detail["predictions"])


def test_sampling_refuses_what_it_cannot_do(zoo: Catalog, fitted: Artifact) -> None:
    with pytest.raises(UnknownIdError, match=r"No generator 'm'.*Known: n"):
        sample_networks(zoo, "m", 1)
    with pytest.raises(ConfigError, match="best_of=4 needs a judge"):
        sample_networks(zoo, "n", 1, best_of=4)
    with pytest.raises(UnknownIdError, match="No predictor 'nobody'"):
        sample_networks(zoo, "n", 1, judge="nobody")
    with pytest.raises(ConfigError, match=r"knows nothing like that\. It knows columns"):
        sample_networks(zoo, "n", 1, instruction="onion soup")
    with pytest.raises(PluginError, match="not finite"):
        sample_networks(zoo, "n", 3, options={"broken": "nan"})
    assert zoo.sql("from wide where zoo = 'generated-n'").num_rows == 0


def test_licences_of_several_training_zoos_are_joined(zoo: Catalog, folder: Path) -> None:
    models = zoo.sql("select * exclude (commit_id) from models").to_pylist()
    for row, licence in zip(models, ["MIT", None] * 8, strict=True):
        row["license"] = licence
    zoo.commit("others", {"models": models}, replaces=["models"])
    fit_generator(zoo, "normal", name="n", query=ALL, data_folder=folder)
    assert sample_networks(zoo, "n", 1).license == "MIT AND unknown"


def test_a_fit_on_generated_networks_says_so(zoo: Catalog, fitted: Artifact) -> None:
    sample_networks(zoo, "n", 8, seed=1)
    everything = "select checkpoint_id from wide"
    made = fit_generator(zoo, "normal", name="m", query=everything)
    assert any("were generated themselves" in note for note in made.data["notes"])
    assert find_artifact(zoo, "m", "generator").artifact_id == made.artifact_id
