"""What generators are told of networks: blueprints, data sets, metrics, and the images that they were trained on."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.catalog import open_catalog
from zooplatform.errors import ArchitectureError, ConfigError, SourceError, UnknownIdError
from zooplatform.fitting import Blueprint
from zooplatform.generation.facts import (
    dataset_name,
    joined_licence,
    licences,
    network_facts,
)
from zooplatform.generation.images import (
    VALIDATION_SHARE,
    available_images,
    preparations,
    task_images,
)
from zooplatform.generation.networks import Builder, state_of
from zooplatform.plugins import load_plugins
from zooplatform.testing.stripes import grow_stripes, stripes_folder, write_images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The images, beside a catalog `zoo` of networks that were trained on them."""
    return shutil.copytree(stripes_folder(), tmp_path / "stripes")


@pytest.fixture
def stripes(folder: Path) -> Iterator[Catalog]:
    with open_catalog(folder / "zoo") as catalog:
        yield catalog


def ids_of(catalog: Catalog, where: str = "true") -> list[str]:
    found = catalog.sql(f"select checkpoint_id from wide where {where} order by checkpoint_id")
    ids: list[str] = found.column(0).to_pylist()
    return ids


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_are_what_the_catalog_says(stripes: Catalog) -> None:
    ids = ids_of(stripes)
    known = network_facts(stripes, ids)
    assert list(known.facts) == ids
    assert known.generated == 0
    rows = {row["checkpoint_id"]: row for row in stripes.sql("from wide").to_pylist()}
    for one, fact in known.facts.items():
        row = rows[one]
        assert fact.checkpoint_id == one
        assert (fact.model_id, fact.epoch) == (row["model_id"], row["epoch"])
        assert fact.dataset == row["zoo"].removeprefix("stripes-")
        assert fact.metrics["test_accuracy"] == row["test_accuracy"]
        assert fact.license == "CC0-1.0"
        blueprint = known.blueprints[fact.blueprint]
        assert blueprint.config["activation"] == fact.config["activation"]
        assert blueprint.architecture_id == row["architecture_id"]
    assert [b.config["activation"] for b in known.blueprints] == ["relu", "tanh"]
    assert licences(known.facts.values()) == {"CC0-1.0": len(ids)}


def test_what_was_measured_counts_before_what_was_reported(stripes: Catalog) -> None:
    one = ids_of(stripes)[0]
    measured = network_facts(stripes, [one]).facts[one].metrics["test_accuracy"]
    rows = [
        {"checkpoint_id": one, "dataset": data, "split": split, "name": name, "value": value, "origin": origin}
        for data, split, name, value, origin in (
            ("zzz", "test", "test_accuracy", 0.125, "reported"),
            ("", "", "test_accuracy", 0.25, "predicted"),
            ("", "val", "accuracy", 0.5, "reported"),
        )
    ]  # fmt: skip
    stripes.commit("more metrics", {"metrics": rows})
    metrics = network_facts(stripes, [one]).facts[one].metrics
    assert metrics["test_accuracy"] == measured != 0.125
    assert metrics["val_accuracy"] == 0.5


def test_a_blueprint_builds_a_network_strictly_and_survives_json(stripes: Catalog) -> None:
    builder = Builder(stripes.recogniser)
    data = stripes.dataset(None, target=None)
    known = network_facts(stripes, data.ids)
    x = torch.rand(5, 1, 6, 6)
    for at, one in enumerate(data.ids[:6]):
        blueprint = known.blueprints[known.facts[one].blueprint]
        again = Blueprint.from_json(json.loads(json.dumps(blueprint.to_json())))
        module = builder.load(again, data[at].weights)
        assert not module.training
        assert torch.equal(module(x), stripes.build(one)(x))
    with pytest.raises(ArchitectureError, match="no network of stripes, which has 127 values"):
        builder.load(known.blueprints[0], torch.zeros(126))


def test_the_bytes_aside_are_those_of_a_training_network(stripes: Catalog) -> None:
    ids = ids_of(stripes, "epoch = 2")
    known = network_facts(stripes, ids)
    for blueprint in known.blueprints:
        steps = state_of(blueprint, torch.zeros(127))["layers.1.num_batches_tracked"]
        assert steps.dtype == torch.int64
        assert steps.item() == 16  # two epochs of 60 images, eight at a time


def test_the_order_of_blueprints_depends_on_what_they_are_alone(stripes: Catalog) -> None:
    ids = ids_of(stripes)
    one, other = network_facts(stripes, ids), network_facts(stripes, ids[::-1])
    assert [b.config for b in one.blueprints] == [b.config for b in other.blueprints]
    assert {i: f.blueprint for i, f in one.facts.items()} == {
        i: f.blueprint for i, f in other.facts.items()
    }


def test_what_is_not_there_or_was_not_recognised_is_refused(folder: Path) -> None:
    plugins = load_plugins(allow=("cnn",))  # without the one that takes any tensors for a network
    with open_catalog(folder / "zoo", registry=plugins) as catalog:
        with pytest.raises(UnknownIdError, match="'nothing'"):
            network_facts(catalog, ["nothing"])
        (one,) = catalog.add_state_dicts(
            [{"a": torch.zeros(3)}], [_record("stray")], zoo="strays", family=""
        )
        with pytest.raises(ArchitectureError, match=f"Checkpoint {one}: no architecture adapter"):
            network_facts(catalog, [one])


def _record(key: str, **config: Any) -> Any:
    from zooplatform.interfaces import CheckpointRecord, ModelInfo

    return CheckpointRecord(
        model=ModelInfo(key=key, name=key, source="test:", config=config), step=1
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("npz:mnist.npz", "mnist"),
        ("npz:some/where/mnist.npz", "mnist"),
        ("images/usps.npz", "usps"),
        ("folder:images/usps/", "usps"),
        ("sklearn:digits", "digits"),
        ("torchvision:FashionMNIST", "fashionmnist"),
        ("hub:org/Cifar10@main", "cifar10"),
    ],
)
def test_the_name_of_a_data_set_follows_from_its_source(source: str, name: str) -> None:
    assert dataset_name(source) == name


def test_licences_are_joined() -> None:
    assert joined_licence(["CC0-1.0"]) == "CC0-1.0"
    assert joined_licence(["MIT", "CC-BY-4.0"]) == "CC-BY-4.0 AND MIT"
    assert joined_licence(["MIT", "unknown"]) == "MIT AND unknown"
    assert joined_licence(["unknown"]) is None
    assert joined_licence([]) is None


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_are_found_again_and_split_in_three(stripes: Catalog, folder: Path) -> None:
    found = task_images(stripes, ids_of(stripes), folder=folder)
    assert list(found) == ["columns", "rows"]
    for name, data in found.items():
        sizes = [len(part.y) for part in (data.train, data.validation, data.test)]
        assert sizes == [54, 6, 30]
        assert data.shape == (1, 6, 6)
        assert data.num_classes == 3
        every = torch.cat([part.x for part in (data.train, data.validation, data.test)])
        assert len(torch.unique(every.flatten(1), dim=0)) == 90
        assert data.images.name == name
        assert len(data.images.y) == 54
        assert data.image_data().shape == data.shape
        trained = ids_of(stripes, f"zoo = 'stripes-{name}' and epoch = 2")
        # The figures that were stored when the networks were trained.
        for one in trained[:2]:
            (stored,) = stripes.sql(
                "select test_accuracy from wide where checkpoint_id = ?", [one]
            ).column(0)
            said = stripes.build(one)(data.test.x).argmax(1)
            assert (said == data.test.y).double().mean().item() == pytest.approx(stored.as_py())
    assert VALIDATION_SHARE == 0.1


def test_a_source_can_lie_elsewhere_but_must_be_the_same(
    stripes: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(stripes)
    (folder / "rows.npz").rename(folder / "moved.npz")
    with pytest.raises(
        SourceError, match=r"no file .*rows\.npz\. Say where the images of 'rows' are"
    ):
        task_images(stripes, ids, folder=folder)
    found, notes = available_images(stripes, ids, folder=folder)
    assert list(found) == ["columns"]
    assert len(notes) == 1
    assert notes[0].startswith("Images of rows left out: ")
    again = task_images(stripes, ids, folder=folder, sources={"rows": "npz:moved.npz"})
    assert list(again) == ["columns", "rows"]
    with pytest.raises(ConfigError, match=r"images of npz:columns\.npz are not those"):
        task_images(stripes, ids, folder=folder, sources={"rows": "npz:columns.npz"})
    with pytest.raises(ConfigError, match="not those that the networks"):
        available_images(stripes, ids, folder=folder, sources={"rows": "npz:columns.npz"})
    with pytest.raises(ConfigError, match="'mnist' is no data set of these networks"):
        task_images(stripes, ids, folder=folder, sources={"mnist": "npz:moved.npz"})
    monkeypatch.setenv("ZOO_DATA_FOLDER", str(folder))
    assert list(task_images(stripes, ids, names=["columns"])) == ["columns"]


def test_preparations_of_other_sizes_are_refused(stripes: Catalog, folder: Path) -> None:
    """Networks of one data set that take images of two sizes."""
    settings = ("name='large'", "data.size=12", "architecture.input=[1, 12, 12]", "runs=2")
    grow_stripes(stripes, folder, *settings)
    ids = ids_of(stripes)
    with pytest.raises(ConfigError, match="of several sizes"):
        task_images(stripes, ids, folder=folder)
    found, notes = available_images(stripes, ids, folder=folder)
    assert found == {}
    assert len(notes) == 2
    large = ids_of(stripes, "zoo = 'large-rows'")
    assert task_images(stripes, large, folder=folder)["rows"].shape == (1, 12, 12)


def test_test_images_that_others_trained_on_are_left_out(stripes: Catalog, folder: Path) -> None:
    """Another zoo split the same images by another seed."""
    grow_stripes(stripes, folder, "name='other'", "data.seed=5", "runs=2")
    ids = ids_of(stripes)
    (first, second) = preparations(stripes, ids)["rows"].variants
    assert (first.networks, second.networks) == (16, 4)
    data = task_images(stripes, ids, folder=folder)["rows"]
    other = task_images(stripes, ids_of(stripes, "zoo = 'other-rows'"), folder=folder)["rows"]
    seen = {row.numpy().tobytes() for part in (other.train, other.validation) for row in part.x}
    assert 0 < len(data.test.y) < 30
    assert not any(row.numpy().tobytes() in seen for row in data.test.x)
    assert f"{30 - len(data.test.y)} of its test images" in data.notes[0]
    assert "16 of 20 networks" in data.notes[0]


def test_a_last_look_is_at_images_that_no_recipe_used(stripes: Catalog, folder: Path) -> None:
    everything = ids_of(stripes)  # 60 of 90 images trained on, 30 tested on
    with pytest.raises(ConfigError, match=r"'columns': .* none is left for a last look"):
        task_images(stripes, everything, folder=folder, final=True)

    grow_stripes(stripes, folder, "name='few'", "data.train=40", "runs=2")
    few = ids_of(stripes, "zoo = 'few-rows'")
    usual = task_images(stripes, few, folder=folder)["rows"]
    last = task_images(stripes, few, folder=folder, final=True)["rows"]
    assert torch.equal(usual.train.x, last.train.x)
    assert torch.equal(usual.validation.x, last.validation.x)
    parts = (last.train, last.validation, usual.test, last.test)
    assert [len(part.y) for part in parts] == [36, 4, 30, 20]
    assert len(torch.unique(torch.cat([part.x for part in parts]).flatten(1), dim=0)) == 90
    whole = task_images(stripes, everything, folder=folder)["rows"]
    classes = {
        row.numpy().tobytes(): int(y)
        for part in (whole.train, whole.validation)
        for row, y in zip(*part, strict=True)
    }
    assert [classes[row.numpy().tobytes()] for row in last.test.x] == last.test.y.tolist()

    # What another recipe used is no news any more.
    grow_stripes(stripes, folder, "name='other'", "data.train=40", "data.seed=5", "runs=2")
    both = ids_of(stripes, "zoo in ('few-rows', 'other-rows')")
    other = task_images(stripes, ids_of(stripes, "zoo = 'other-rows'"), folder=folder)["rows"]
    left = task_images(stripes, both, folder=folder, final=True)["rows"].test
    seen = {
        row.numpy().tobytes()
        for part in (other.train, other.validation, other.test)
        for row in part.x
    }
    assert 0 < len(left.y) < 20
    assert not any(row.numpy().tobytes() in seen for row in left.x)


def test_networks_without_lineage_have_no_images(stripes: Catalog, folder: Path) -> None:
    first = ids_of(stripes)[0]
    (one,) = stripes.add_state_dicts(
        [stripes.state_dict(first)],
        [_record("stray", dataset="mystery")],
        zoo="strays",
        family="cnn",
        config=stripes.reader.description(first).config,
    )
    found, notes = available_images(stripes, [one], folder=folder)
    assert found == {}
    assert "no lineage says which images its networks were trained on" in notes[0]


def test_older_lineages_say_less_and_the_hash_decides(folder: Path) -> None:
    """They keep only how many images were tested on: enough where nothing else was changed."""
    with open_catalog(folder / "zoo") as catalog:
        ids = ids_of(catalog, "zoo = 'stripes-rows'")
        edges = catalog.sql("select * exclude (commit_id) from lineage").to_pylist()
        for edge in edges:
            detail = json.loads(edge["detail"])
            del detail["data"]
            edge["detail"] = json.dumps(detail)
        catalog.commit("older", {"lineage": edges}, replaces=["lineage"])
        assert preparations(catalog, ids)["rows"].variants[0].recipe.test == 30
        with pytest.raises(ConfigError, match="not those that the networks"):  # they were resized
            task_images(catalog, ids, folder=folder)


def test_written_images_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_images(tmp_path / name)
    for file in ("rows.npz", "columns.npz"):
        one, two = (np.load(tmp_path / name / file)["x"] for name in ("one", "two"))
        assert (one == two).all()
