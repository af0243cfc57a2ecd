"""What all baselines share: settings, groups, alignment, order of networks, artifacts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from zooplatform.datasets import WeightDataset
from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.interfaces import Condition
from zooplatform.plugins import load_plugins
from zooplatform.symmetry import match, permute
from zooplatform_kde.networks import collect

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Zoo

REGISTRY = load_plugins()
NAMES = [n for n in REGISTRY.generators if REGISTRY.generators.owner(n).name == "kde"]
TRAINED = [name for name in NAMES if name != "random-init"]


def made(name: str) -> Any:
    return REGISTRY.generators.create(name)


def rows(batches: Any) -> list[tuple[str, str, torch.Tensor]]:
    return [
        (batch.dataset, batch.blueprint.config["activation"], row)
        for batch in batches
        for row in batch.weights
    ]


def test_these_are_there() -> None:
    assert sorted(NAMES) == [
        "activation-pca", "chunk-kde", "cluster-mean", "cluster-pca", "diffusion", "layer-bootstrap", "noise",
        "pca", "random-init", "retrieval", "subsample", "zoo-mean",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_checked(name: str, shared: Zoo) -> None:
    generator = made(name)
    assert {"debug", "default"} <= generator.CONFIGS.keys()
    known = generator.SETTINGS()
    for config in generator.CONFIGS.values():
        assert config.keys() <= known.describe().keys()
    with pytest.raises(ConfigError, match=r"algin.*Did you mean 'align'"):
        generator.fit(shared.data, config={"algin": True}, seed=0)
    with pytest.raises(ConfigError, match="align = 'yes'; use true or false"):
        generator.fit(shared.data, config={"align": "yes"}, seed=0)


@pytest.mark.parametrize(
    ("name", "key", "value", "text"),
    [
        ("noise", "sigma", -1, "too small"),
        ("noise", "sigma", float("inf"), "a number"),
        ("pca", "components", "many", "or 'auto'"),
        ("pca", "components", 2.5, "a whole number"),
        ("cluster-mean", "clusters", 0, "1 or more"),
        ("cluster-mean", "clusters", True, "a whole number"),
        ("chunk-kde", "anchors", 0.0, "share above 0"),
        ("chunk-kde", "bandwidth", -0.1, "too small"),
        ("subsample", "keep", 1000, "more than draws"),
        ("diffusion", "learning_rate", 0.0, "not above 0"),
        ("diffusion", "levels", 1, "2 or more"),
        ("random-init", "builds", 1, "2 or more"),
    ],
)
def test_values_are_checked(name: str, key: str, value: Any, text: str, shared: Zoo) -> None:
    with pytest.raises(ConfigError, match=text):
        made(name).fit(shared.data, config={key: value}, seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_group_is_learnt_and_drawn(name: str, several: Zoo) -> None:
    generator = made(name)
    report = generator.fit(several.data, config=generator.CONFIGS["debug"], seed=0)
    assert report.metrics["num_groups"] == 4
    assert report.metrics["num_train"] == len(several.data.train)
    found = rows(generator.sample(40, seed=0))
    kinds = {(dataset, activation) for dataset, activation, _ in found}
    assert kinds == {(d, a) for d in ("mnist", "notmnist") for a in ("tanh", "relu")}
    asked = Condition(dataset="mnist", build_config={"activation": "relu"})
    only = rows(generator.sample(40, seed=0, condition=asked))
    assert {(dataset, activation) for dataset, activation, _ in only} == {("mnist", "relu")}
    # Networks of several kinds come in the order of their numbers, 32 at a time or not.
    assert [one[:2] for one in rows(generator.sample(35, seed=0))] == [
        one[:2] for one in found[:35]
    ]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(rows(generator.sample(35, seed=0)), found))  # noqa: B905


@pytest.mark.parametrize("name", TRAINED)
def test_the_right_data_set_is_answered_better_than_by_the_wrong(name: str, several: Zoo) -> None:
    """Networks of the other data set are at chance: its classes have other numbers and its images are negatives."""
    generator = made(name)
    generator.fit(several.data, config=dict(generator.CONFIGS["debug"]), seed=0)
    asked = Condition(dataset="mnist", build_config={"activation": "tanh"})
    (batch,) = generator.sample(4, seed=0, condition=asked, temperature=0.0)
    number = several.data.blueprints.index(
        next(b for b in several.data.blueprints if b.config["activation"] == "tanh")
    )
    right = several.accuracy(batch.weights, number, "mnist")
    wrong = several.accuracy(batch.weights, number, "notmnist")
    assert sum(wrong) / 4 < 0.35
    if name in ("retrieval", "noise", "layer-bootstrap"):
        assert sum(right) / 4 > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_running_variances_stay_positive(name: str, normed: Zoo) -> None:
    generator = made(name)
    generator.fit(normed.data, config=dict(generator.CONFIGS["debug"]), seed=0)
    for batch in generator.sample(12, seed=0, temperature=30.0):
        vector = batch.blueprint.vector
        (field,) = [f for f in vector.fields if f.spec.name.endswith("running_var")]
        part = batch.weights[:, field.offset : field.offset + field.spec.num_elements]
        assert bool((part > 0).all())
        assert len(batch.blueprint.aside) == vector.aside_bytes == 8


@pytest.mark.parametrize("name", [name for name in NAMES if name != "activation-pca"])
def test_aligned_networks_are_learnt_from(name: str, shared: Zoo) -> None:
    """The functions stay, so what copies a network is as accurate; what averages is another one."""
    generator, plain = made(name), made(name)
    config = dict(generator.CONFIGS["debug"])
    if name in ("chunk-kde", "subsample"):
        config["anchors"] = 1.0  # the best are of one initialisation, and aligned as they are
    generator.fit(shared.data, config={**config, "align": True}, seed=0)
    plain.fit(shared.data, config=config, seed=0)
    aligned = torch.cat([b.weights for b in generator.sample(6, seed=0)])
    other = torch.cat([b.weights for b in plain.sample(6, seed=0)])
    assert torch.equal(aligned, other) == (name == "random-init")
    if name == "retrieval":
        assert shared.accuracy(aligned) == pytest.approx(shared.accuracy(other), abs=0.005)


def test_alignment_undoes_permutations(shared: Zoo) -> None:
    """Networks whose hidden units were put into a random order are learnt from as if they were not."""
    (networks,), _ = collect(shared.data, align=True, seed=0)
    reference = networks.stored[networks.order[0]]
    best = networks.facts[int(networks.order[0])].checkpoint_id
    assert torch.equal(reference, shared.weights(best))
    plain = torch.stack([shared.weights(one) for one in networks.ids])
    assert bool(
        ((networks.stored - reference).norm(dim=1) <= (plain - reference).norm(dim=1) + 1e-4).all()
    )
    vector = networks.blueprint.vector
    moved = permute(reference[None], vector, torch.Generator().manual_seed(0))
    assert torch.equal(match(moved, reference, vector)[0], reference)


def test_only_options_of_a_backend_are_taken(shared: Zoo) -> None:
    generator = made("noise")
    generator.fit(shared.data, config={}, seed=0)
    with pytest.raises(ConfigError, match=r"no option 'bandwidth'. Known: sigma"):
        next(generator.sample(1, seed=0, options={"bandwidth": 1}))
    with pytest.raises(ConfigError, match="sigma = 'much'"):
        next(generator.sample(1, seed=0, options={"sigma": "much"}))
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}):
        with pytest.raises(ConfigError):
            generator.sample(1, seed=0, **wrong)
    with pytest.raises(ConfigError, match="0 or more"):
        generator.sample(-1, seed=0)
    assert list(generator.sample(0, seed=0)) == []


def test_networks_that_are_not_finite_are_left_out(
    shared: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = WeightDataset.read

    def broken(self: WeightDataset, indices: Any) -> Any:
        batch = read(self, indices)
        batch.weights[0, 3] = torch.nan
        return batch

    monkeypatch.setattr(WeightDataset, "read", broken)
    generator = made("zoo-mean")
    report = generator.fit(shared.data, config={}, seed=0)
    assert report.metrics["num_train"] == len(shared.data.train) - 1
    assert any("1 training networks left out" in note for note in report.notes)
    one = shared.catalog.dataset([shared.data.train.ids[0]], target=None)
    with pytest.raises(ConfigError, match="No training network has finite weights"):
        made("pca").fit(replace(shared.data, train=one), config={}, seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_is_enough(name: str, normed: Zoo, tmp_path: Path) -> None:
    generator = made(name)
    generator.fit(normed.data, config=dict(generator.CONFIGS["debug"]), seed=0)
    generator.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "generator.json", "generator.safetensors",
    ]  # fmt: skip
    loaded = made(name)
    loaded.load(tmp_path)
    for one, other in zip(generator.sample(9, seed=4), loaded.sample(9, seed=4), strict=True):
        assert torch.equal(one.weights, other.weights)
        assert one.details == other.details
        assert one.blueprint.to_json() == other.blueprint.to_json()
    examples = normed.data.images["digits"].examples(2)
    assert next(loaded.sample(1, seed=0, condition=Condition(images=examples))).dataset == "digits"
    wrong = made("pca" if name != "pca" else "noise")
    with pytest.raises(ArtifactError, match=f"generator '{name}', not '{wrong.NAME}'"):
        wrong.load(tmp_path)


def test_tensors_have_to_be_those_of_the_description(shared: Zoo, tmp_path: Path) -> None:
    generator = made("zoo-mean")
    generator.fit(shared.data, config={}, seed=0)
    generator.save(tmp_path)
    save_file({"0.mean": torch.zeros(3)}, tmp_path / "generator.safetensors")
    with pytest.raises(ArtifactError, match="does not hold the tensors"):
        made("zoo-mean").load(tmp_path)


@pytest.mark.parametrize("name", ["zoo-mean", "cluster-mean", "pca", "cluster-pca", "diffusion"])
def test_other_architectures_cannot_be_reconstructed(name: str, shared: Zoo, normed: Zoo) -> None:
    generator = made(name)
    generator.fit(shared.data, config=dict(generator.CONFIGS["debug"]), seed=0)
    other = normed.data.blueprints[0]
    with pytest.raises(
        ConfigError, match=f"not fitted on the architecture {other.architecture_id}"
    ):
        generator.reconstruct(torch.zeros(1, other.vector.width), other)
