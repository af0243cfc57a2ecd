"""Copies are copies bit for bit, noise is as large as said, untrained networks are as their constructor draws them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from zooplatform.interfaces import Condition
from zooplatform_kde.simple import Noise, RandomInit, Retrieval, tensor_std

if TYPE_CHECKING:
    from conftest import Zoo


def batches(generator: object, n: int = 8, **kwargs: object) -> list:
    return list(generator.sample(n, **{"seed": 0, **kwargs}))  # type: ignore[attr-defined]


def test_retrieval_gives_training_networks_bit_for_bit(shared: Zoo) -> None:
    generator = Retrieval()
    generator.fit(shared.data, config={}, seed=0)
    seen = set()
    for batch in batches(generator, 20):
        for row, details in zip(batch.weights, batch.details, strict=True):
            (parent,) = details["parents"]
            assert parent in shared.data.train.ids
            assert torch.equal(row, shared.weights(parent))
            seen.add(parent)
    assert len(seen) > 5


def test_the_best_are_those_of_the_lowest_training_loss(shared: Zoo) -> None:
    generator = Retrieval()
    generator.fit(shared.data, config={}, seed=0)
    losses = {one: shared.data.facts[one].metrics["train_loss"] for one in shared.data.train.ids}
    best = sorted(losses, key=lambda one: losses[one])
    (cold,) = batches(generator, 3, temperature=0.0)
    assert [one["parents"] for one in cold.details] == [[best[0]]] * 3
    few = {one["parents"][0] for b in batches(generator, 30, top_k=3) for one in b.details}
    assert few == set(best[:3])


def test_without_metrics_they_are_ranked_by_images_and_never_by_test_accuracy(shared: Zoo) -> None:
    facts = {
        one: replace(fact, metrics={"test_accuracy": fact.metrics["test_accuracy"]})
        for one, fact in shared.data.facts.items()
    }
    known, bare = Retrieval(), Retrieval()
    known.fit(shared.data, config={}, seed=0)
    bare.fit(replace(shared.data, facts=facts), config={}, seed=0)
    values = bare._groups[0].values
    assert values["ranked_by"] == "loss on training images"
    # 450 of the 500 training images stand for all of them.
    place = {one: at for at, one in enumerate(known._groups[0].values["ids"])}
    moved = [abs(place[one] - at) for at, one in enumerate(values["ids"])]
    assert max(moved) <= 6
    nothing = Retrieval()
    nothing.fit(replace(shared.data, facts=facts, images={}), config={}, seed=0)
    assert nothing._groups[0].values["ids"] == list(shared.data.train.ids)


def test_noise_at_temperature_0_is_a_copy(shared: Zoo) -> None:
    generator = Noise()
    generator.fit(shared.data, config={}, seed=0)
    (cold,) = batches(generator, 2, temperature=0.0)
    assert torch.equal(cold.weights[0], shared.weights(cold.details[0]["parents"][0]))
    (still,) = batches(generator, 4, options={"sigma": 0.0})
    for row, details in zip(still.weights, still.details, strict=True):
        assert torch.equal(row, shared.weights(details["parents"][0]))


def test_noise_is_in_proportion_to_each_tensor(shared: Zoo) -> None:
    generator = Noise()
    generator.fit(shared.data, config={"sigma": 0.2}, seed=0)
    (batch,) = batches(generator, 24, temperature=0.5)
    vector = batch.blueprint.vector
    for field in vector.fields:
        part = slice(field.offset, field.offset + field.spec.num_elements)
        ratios = []
        for row, details in zip(batch.weights, batch.details, strict=True):
            parent = shared.weights(details["parents"][0])
            ratios.append((row - parent)[part] / parent[part].std(unbiased=False))
        spread = float(torch.cat(ratios).std())
        assert spread == pytest.approx(
            0.1, rel=5 / (2 * len(ratios) * field.spec.num_elements) ** 0.5
        )
    assert batch.details[0]["sigma"] == pytest.approx(0.1)


def test_equal_values_get_noise_by_their_size(shared: Zoo) -> None:
    vector = shared.data.blueprints[0].vector
    found = tensor_std(torch.full((vector.width,), 2.0), vector)
    assert torch.equal(found, torch.full_like(found, 2.0))


def test_untrained_networks_are_as_their_constructor_draws_them(normed: Zoo) -> None:
    generator = RandomInit()
    report = generator.fit(normed.data, config={}, seed=0)
    made = torch.cat([b.weights for b in batches(generator, 40)])
    assert len(made.unique(dim=0)) == 40
    vector = normed.data.blueprints[0].vector
    (group, _) = generator._groups
    kinds = {name: kind[0] for name, kind in group.values["kinds"].items()}
    conv, norm = "layers.0.weight", "layers.1"
    assert kinds[conv] == "uniform"
    assert kinds[f"{norm}.weight"] == kinds[f"{norm}.running_var"] == "constant"
    assert report.metrics["tensors_drawn"] == sum(k != "constant" for k in kinds.values())
    for field in vector.fields:
        if field.aside:
            continue
        part = made[:, field.offset : field.offset + field.spec.num_elements]
        if field.spec.name in (f"{norm}.weight", f"{norm}.running_var"):
            assert torch.equal(part, torch.ones_like(part))
        elif kinds[field.spec.name] == "uniform":
            # torch draws between plus and minus 1 / sqrt(inputs), for biases too.
            weight = vector.by_name[field.spec.name.rpartition(".")[0] + ".weight"]
            inputs = torch.Size(weight.spec.shape[1:]).numel()
            assert float(part.abs().max()) == pytest.approx(inputs**-0.5, rel=0.05)
            assert float(part.abs().max()) <= 1.01 * inputs**-0.5


def test_normal_draws_are_told_from_uniform_ones(shared: Zoo) -> None:
    def build(blueprint: object) -> nn.Module:
        network = shared.data.build(blueprint)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0.5, 0.2)
        return network

    generator = RandomInit()
    generator.fit(replace(shared.data, build=build), config={"builds": 16}, seed=0)
    for name, (kind, centre, spread) in generator._groups[0].values["kinds"].items():
        assert kind == "normal", name
        assert centre == pytest.approx(0.5, abs=0.06)
        assert spread == pytest.approx(0.2, abs=0.05)


def test_fitting_leaves_the_random_numbers_of_the_process(shared: Zoo) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generator = RandomInit()
    generator.fit(shared.data, config={"builds": 4}, seed=0)
    batches(generator, 2)
    assert torch.equal(torch.rand(3), expected)


def test_the_instruction_chooses_what_is_retrieved(several: Zoo) -> None:
    generator = Retrieval()
    generator.fit(several.data, config={}, seed=0)
    for words, dataset in (("relu for handwritten digits", "mnist"), ("letters, relu", "notmnist")):
        for batch in batches(generator, 6, condition=Condition(instruction=words)):
            assert batch.dataset == dataset
            assert batch.blueprint.config["activation"] == "relu"
            for details in batch.details:
                fact = several.data.facts[details["parents"][0]]
                assert (fact.dataset, fact.config["activation"]) == (dataset, "relu")
