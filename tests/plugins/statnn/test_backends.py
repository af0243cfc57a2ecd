"""Every baseline: it learns, repeats, survives its files, and refuses what it cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fitting import FitData, network_batches
from zooplatform.interfaces import LayerSpec, NetworkBatch, TensorSpec
from zooplatform.layout import VectorLayout
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset

REGISTRY = load_plugins()
NAMES = [name for name in REGISTRY.predictors if REGISTRY.predictors.owner(name).name == "statnn"]
ANY_ARCHITECTURE = {"aggregate", "aggregate-rich", "aggregate-mlp", "deepsets"}

# Quick settings, and the tau on the validation networks that they pass with room to spare. Weights as one vector know
# no symmetry: 108 networks teach them little.
QUICK: dict[str, tuple[dict[str, Any], float]] = {
    "statnn": ({"rounds": 150}, 0.6),
    "statnn-mlp": ({"epochs": 20}, 0.6),
    "rich": ({"rounds": 100, "features": 0.2}, 0.6),
    "rich-mlp": ({"epochs": 15}, 0.6),
    "aggregate": ({"rounds": 150}, 0.55),
    "aggregate-rich": ({"rounds": 100, "features": 0.2}, 0.55),
    "aggregate-mlp": ({"epochs": 15}, 0.6),
    "flat-linear": ({}, 0.1),
    "flat-mlp": ({"epochs": 5}, 0.1),
    "deepsets": ({"epochs": 15, "width": 16}, 0.4),
    "nfn": ({"epochs": 12, "width": 8}, 0.4),
}


def batch_of(data: FitData) -> NetworkBatch:
    (_, batch), *_ = network_batches(data.validation)
    return batch


def test_every_backend_has_quick_settings() -> None:
    assert sorted(QUICK) == sorted(NAMES)
    assert len(NAMES) == 11


@pytest.mark.parametrize("name", NAMES)
def test_learns_repeats_and_survives_its_files(
    name: str, data: Callable[..., FitData], tmp_path: Path
) -> None:
    config, least = QUICK[name]
    given = data()
    predictor = REGISTRY.predictors.create(name)
    report = predictor.fit(given, target="test_accuracy", config=config, seed=3)
    assert report.metrics["val_kendall_tau"] > least
    batch = batch_of(given)
    predicted, embedded = predictor.predict(batch), predictor.embed(batch)
    assert predicted.shape == (len(batch.weights),)
    assert predicted.dtype == torch.float64
    assert ((predicted >= 0) & (predicted <= 1)).all()
    error = (predicted.numpy() - given.validation.targets[: len(predicted)]).__abs__().mean()
    assert error == pytest.approx(report.metrics["val_mae"])
    assert embedded.dtype == torch.float32
    assert embedded.ndim == 2
    assert embedded.isfinite().all()
    alone = predictor.predict(batch._replace(weights=batch.weights[5:6], ids=batch.ids[5:6]))
    torch.testing.assert_close(alone, predicted[5:6], atol=1e-5, rtol=1e-5)

    again = REGISTRY.predictors.create(name)
    again.fit(data(), target="test_accuracy", config=config, seed=3)
    assert torch.equal(again.predict(batch), predicted)

    predictor.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".txt"}
    loaded = REGISTRY.predictors.create(name)
    loaded.load(tmp_path)
    assert torch.equal(loaded.predict(batch), predicted)
    assert torch.equal(loaded.embed(batch), embedded)


@pytest.mark.parametrize("name", ["statnn-mlp", "rich-mlp", "aggregate"])
def test_free_targets_keep_their_unit(name: str, data: Callable[..., FitData]) -> None:
    given = data("test_loss")
    predictor = REGISTRY.predictors.create(name)
    predictor.fit(given, target="test_loss", config=QUICK[name][0], seed=0)
    predicted = predictor.predict(batch_of(given))
    assert predicted.max() > 1  # losses exceed what a bounded target could reach
    mean = given.train.targets.mean()
    assert predicted.mean().item() == pytest.approx(mean, rel=0.5)


def test_a_search_keeps_its_best_trial(data: Callable[..., FitData]) -> None:
    single = REGISTRY.predictors.create("statnn")
    one = single.fit(data(), target="test_accuracy", config={"rounds": 60}, seed=1)
    searched = REGISTRY.predictors.create("statnn")
    config = {**searched.CONFIGS["tuned"], "rounds": 60, "trials": 5}
    many = searched.fit(data(), target="test_accuracy", config=config, seed=1)
    assert many.metrics["trials"] == 5
    assert many.metrics["val_kendall_tau"] >= one.metrics["val_kendall_tau"]
    changed = many.metrics["val_kendall_tau"] > one.metrics["val_kendall_tau"]
    assert bool(many.notes) == changed


def test_members_are_averaged(data: Callable[..., FitData]) -> None:
    given = data()
    found = {}
    for members in (1, 2):
        predictor = REGISTRY.predictors.create("statnn-mlp")
        config = {"epochs": 3, "members": members, "width": 16}
        report = predictor.fit(given, target="test_accuracy", config=config, seed=0)
        assert report.metrics["members"] == members
        found[members] = predictor.embed(batch_of(given))
    assert found[2].shape[1] == 2 * found[1].shape[1]
    torch.testing.assert_close(found[2][:, :16], found[1])


def test_time_ends_a_fit(data: Callable[..., FitData]) -> None:
    predictor = REGISTRY.predictors.create("nfn")
    given = data(max_minutes=1 / 60)
    report = predictor.fit(given, target="test_accuracy", config={"epochs": 100_000}, seed=0)
    assert report.seconds < 20
    predictor.predict(batch_of(given))


# --- architectures --------------------------------------------------------------------------------


def other_architecture(given: FitData) -> NetworkBatch:
    """The validation networks without the bias of their last layer: as good as another architecture."""
    batch = batch_of(given)
    layout = batch.vector.layout[:-1]
    left_out = batch.vector.layout[-1].name
    layers = [
        replace(layer, tensors=tuple(name for name in layer.tensors if name != left_out))
        for layer in batch.vector.layers()
    ]
    vector = VectorLayout(layout, layers)
    return NetworkBatch(batch.weights[:, : vector.width], vector)


@pytest.mark.parametrize("name", NAMES)
def test_another_architecture(name: str, data: Callable[..., FitData]) -> None:
    given = data()
    predictor = REGISTRY.predictors.create(name)
    few = {key: 3 for key in ("rounds", "epochs") if key in QUICK[name][0]}
    quick = {**QUICK[name][0], **few}
    predictor.fit(given, target="test_accuracy", config=quick, seed=0)
    batch = other_architecture(given)
    if name in ANY_ARCHITECTURE:
        assert predictor.predict(batch).isfinite().all()
    else:
        with pytest.raises(ConfigError, match="aggregate, aggregate-rich or aggregate-mlp"):
            predictor.predict(batch)


@pytest.mark.parametrize("name", ["statnn", "nfn", "deepsets", "aggregate-mlp"])
def test_several_architectures(name: str, two_architectures: FitData, tmp_path: Path) -> None:
    predictor = REGISTRY.predictors.create(name)
    config = {"rounds": 5, "min_leaf": 1} if name == "statnn" else {"epochs": 2, "width": 8}
    report = predictor.fit(two_architectures, target="test_accuracy", config=config, seed=0)
    assert any("2 architectures" in note for note in report.notes) == (name not in ANY_ARCHITECTURE)
    predictor.save(tmp_path)
    loaded = REGISTRY.predictors.create(name)
    loaded.load(tmp_path)
    seen = set()
    for _, batch in network_batches(two_architectures.validation):
        assert torch.equal(predictor.predict(batch), loaded.predict(batch))
        seen.add(batch.architecture_id)
    assert len(seen) == 2


def test_no_validation_network_of_an_architecture(
    two_architectures: FitData, one_of_two: WeightDataset
) -> None:
    given = replace(two_architectures, validation=one_of_two)
    with pytest.raises(ConfigError, match="the validation networks have none of"):
        REGISTRY.predictors.create("statnn").fit(given, target="test_accuracy", config={}, seed=0)


def test_nfn_reads_chains_only(digits: Catalog) -> None:
    (vector,) = digits.dataset(
        "SELECT checkpoint_id FROM checkpoints LIMIT 1"
    ).architectures.values()
    norm = TensorSpec("norm.weight", "float32", (8,), 32)
    layers = [*vector.layers(), LayerSpec(9, "norm", "norm", ("norm.weight",))]
    with_norm = VectorLayout((*vector.layout, norm), layers)
    predictor = REGISTRY.predictors.create("nfn")
    with pytest.raises(ConfigError, match=r"norm\.weight is of a layer of type norm.*Use rich"):
        predictor.read(NetworkBatch(torch.zeros(1, with_norm.width), with_norm))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("rich", {"leafs": 3}, "no setting 'leafs'.*Did you mean 'leaves'"),
        ("rich", {"leaves": 2.5}, "leaves = 2.5 is no int"),
        ("rich", {"learning_rate": 0}, r"learning_rate = 0.0 is not in \(0, 1\]"),
        ("rich-mlp", {"dropout": 1}, "dropout = 1.0 is too large"),
        ("rich-mlp", {"epochs": 0}, "epochs = 0 is too small"),
        ("rich-mlp", {"epochs": True}, "epochs = True is no int"),
        ("rich-mlp", {"scaling": "log"}, "scaling = 'log' is not one of"),
        ("deepsets", {"scaling": "robust"}, "scaling = 'robust' is not one of none"),
        ("nfn", {"variant": "x"}, "variant = 'x' is not one of hnp, np"),
        ("flat-linear", {"penalty": -1}, "penalty = -1.0 is too small"),
        ("statnn", {"target_transform": "probit"}, "is not one of auto, logit, none"),
    ],
)
def test_settings_are_checked(
    name: str, config: dict[str, Any], message: str, data: Callable[..., FitData]
) -> None:
    predictor = REGISTRY.predictors.create(name)
    with pytest.raises(ConfigError, match=message):
        predictor.fit(data(), target="test_accuracy", config=config, seed=0)


def test_targets_are_checked(data: Callable[..., FitData], digits: Catalog) -> None:
    predictor = REGISTRY.predictors.create("statnn")
    with pytest.raises(ConfigError, match=r"target_transform = 'logit' needs values of test_loss"):
        predictor.fit(
            data("test_loss"), target="test_loss", config={"target_transform": "logit"}, seed=0
        )
    query = "SELECT checkpoint_id, if(epoch < 2, NULL, test_accuracy) AS partly FROM wide"
    lacking = digits.dataset(query, target="partly", missing="keep")
    with pytest.raises(ConfigError, match="networks have no finite partly"):
        predictor.fit(
            FitData(train=lacking, validation=lacking), target="partly", config={}, seed=0
        )


@pytest.mark.parametrize("name", NAMES)
def test_nothing_without_a_fit(name: str, data: Callable[..., FitData], tmp_path: Path) -> None:
    predictor = REGISTRY.predictors.create(name)
    batch = batch_of(data())
    for ask in (predictor.predict, predictor.embed):
        with pytest.raises(ConfigError, match=f"'{name}' is not fitted"):
            ask(batch)
    with pytest.raises(ConfigError, match="nothing to save"):
        predictor.save(tmp_path)


@pytest.fixture
def saved(data: Callable[..., FitData], tmp_path: Path) -> Path:
    predictor = REGISTRY.predictors.create("statnn-mlp")
    predictor.fit(data(), target="test_accuracy", config={"epochs": 1}, seed=0)
    predictor.save(tmp_path)
    return tmp_path


def _no_record(folder: Path) -> None:
    (folder / "predictor.json").unlink()


def _cut_tensors(folder: Path) -> None:
    path = folder / "predictor.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _cut_record(folder: Path) -> None:
    path = folder / "predictor.json"
    path.write_text(path.read_text()[:100])


def _other_format(folder: Path) -> None:
    path = folder / "predictor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def _no_scale(folder: Path) -> None:
    path = folder / "predictor.safetensors"
    tensors = {
        name: value.clone() for name, value in load_file(path).items() if "scale" not in name
    }
    save_file(tensors, path)


def _other_shapes(folder: Path) -> None:
    path = folder / "predictor.json"
    record = json.loads(path.read_text())
    record["models"][0]["settings"]["width"] = 10
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_record, "FileNotFoundError"),
        (_cut_record, "JSONDecodeError"),
        (_cut_tensors, "SafetensorError"),
        (_other_format, "it is format 99"),
        (_no_scale, "the scale of the inputs is missing"),
        (_other_shapes, "its tensors do not fit its settings"),
    ],
)
def test_damaged_files_are_named(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ArtifactError, match=message) as caught:
        REGISTRY.predictors.create("statnn-mlp").load(saved)
    assert str(saved) in str(caught.value)
    assert "Fit it again" in str(caught.value)


def test_files_of_another_backend(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="of 'statnn-mlp', this reads format 1 of 'rich-mlp'"):
        REGISTRY.predictors.create("rich-mlp").load(saved)


@pytest.mark.parametrize("text", ["", "tree\n", "tree\nnum_class=1\nend of trees\n"])
def test_damaged_trees(text: str, data: Callable[..., FitData], tmp_path: Path) -> None:
    predictor = REGISTRY.predictors.create("statnn")
    predictor.fit(data(), target="test_accuracy", config={"rounds": 5}, seed=0)
    predictor.save(tmp_path)
    (tmp_path / "trees-0.txt").write_text(text)
    with pytest.raises(ArtifactError, match="the text of the trees is damaged"):
        REGISTRY.predictors.create("statnn").load(tmp_path)
