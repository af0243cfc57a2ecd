"""Networks drawn by what they do: those of independent seeds have a mean that works."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform_kde.activations import ActivationPca
from zooplatform_kde.gaussian import PcaGaussian

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Zoo


@pytest.fixture(scope="module")
def fitted(seeds: Zoo) -> ActivationPca:
    generator = ActivationPca()
    generator.fit(seeds.data, config={"components": 8}, seed=0)
    return generator


def drawn(generator: ActivationPca | PcaGaussian, n: int, **kwargs: float) -> torch.Tensor:
    return torch.cat([b.weights for b in generator.sample(n, seed=0, **kwargs)])  # type: ignore[arg-type]


def test_means_of_independent_seeds_work(seeds: Zoo, fitted: ActivationPca) -> None:
    aligned = PcaGaussian()
    aligned.fit(seeds.data, config={"components": 8, "align": True}, seed=0)
    by_weights = seeds.accuracy(drawn(aligned, 1, temperature=0))[0]
    by_activations = seeds.accuracy(drawn(fitted, 1, temperature=0))[0]
    trained = torch.tensor(
        seeds.accuracy(torch.stack([seeds.weights(one) for one in seeds.data.train.ids[:6]]))
    ).mean()
    assert by_activations > by_weights + 0.15
    assert by_activations > 0.8 * trained


def test_drawn_networks_work_and_differ(seeds: Zoo, fitted: ActivationPca) -> None:
    weights = drawn(fitted, 8)
    assert min(seeds.accuracy(weights)) > 0.4
    assert len(weights.unique(dim=0)) == 8
    assert torch.pdist(weights).min() > 1


def test_networks_come_back_from_their_components(seeds: Zoo) -> None:
    generator = ActivationPca()
    generator.fit(seeds.data, config={"components": 64, "positions": 99}, seed=0)
    own = torch.stack([seeds.weights(one) for one in seeds.data.train.ids[:4]])
    made = generator.reconstruct(own, seeds.data.blueprints[0])
    for before, after in zip(seeds.accuracy(own), seeds.accuracy(made), strict=True):
        assert after == pytest.approx(before, abs=0.02)
    # Held-out networks are not on the components, and what is left of them works all the same.
    held = torch.stack([seeds.weights(one) for one in seeds.data.validation.ids[:4]])
    assert min(seeds.accuracy(generator.reconstruct(held, seeds.data.blueprints[0]))) > 0.5


def test_it_draws_the_same_after_it_was_stored(fitted: ActivationPca, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again = ActivationPca()
    again.load(tmp_path)
    assert torch.equal(drawn(again, 3), drawn(fitted, 3))


def test_a_larger_ridge_gives_smaller_weights(fitted: ActivationPca) -> None:
    few = torch.cat([b.weights for b in fitted.sample(3, seed=0, options={"ridge": 0.1})])
    assert few.square().mean() < 0.9 * drawn(fitted, 3).square().mean()


def test_what_it_needs_is_said(seeds: Zoo) -> None:
    with pytest.raises(ConfigError, match="those of the data set 'digits' are not there"):
        ActivationPca().fit(replace(seeds.data, images={}), config={}, seed=0)
    with pytest.raises(ConfigError, match="always does so by what they put out"):
        ActivationPca().fit(seeds.data, config={"align": True}, seed=0)
    with pytest.raises(ConfigError, match="ridge = 0"):
        ActivationPca().fit(seeds.data, config={"ridge": 0.0}, seed=0)


def test_each_cluster_has_a_distribution_of_its_own(shared: Zoo) -> None:
    generator = ActivationPca()
    report = generator.fit(shared.data, config={"clusters": "auto", "components": 2}, seed=0)
    assert report.metrics["num_clusters"] == 4
    one = ActivationPca()
    one.fit(shared.data, config={"components": 2}, seed=0)

    batches = list(generator.sample(12, seed=0))
    weights = torch.cat([b.weights for b in batches])
    clusters = [detail["cluster"] for b in batches for detail in b.details]
    assert set(clusters) == {0, 1, 2, 3}
    # What a network does is that of its own cluster: means of the others lie farther.
    own = torch.stack([seed_mean(shared, at) for at in range(4)])
    began = torch.cdist(weights, own).argmin(dim=1)
    assert len({(at, int(to)) for at, to in zip(clusters, began, strict=True)}) == 4
    # Where beginnings are shared there is nothing to be blurred by.
    accuracy = torch.tensor(shared.accuracy(weights)).mean()
    assert accuracy > torch.tensor(shared.accuracy(drawn(one, 12))).mean() + 0.02

    before = weights.clone()
    kept = generator.reconstruct(weights, shared.data.blueprints[0])
    assert torch.equal(weights, before)
    assert min(shared.accuracy(kept)) > accuracy - 0.1
    only = torch.cat([b.weights for b in generator.sample(6, seed=0, top_k=1)])
    assert len({int(at) for at in torch.cdist(only, own).argmin(dim=1)}) == 1


def test_networks_come_back_as_those_of_their_data_set(several: Zoo) -> None:
    generator = ActivationPca()
    generator.fit(several.data, config={"clusters": "auto", "components": 4}, seed=0)
    for number, name in enumerate(several.data.train.ids[:8]):
        fact = several.data.facts[name]
        own = several.weights(name)[None]
        made = generator.reconstruct(own, several.data.blueprints[fact.blueprint])
        before, after = (
            several.accuracy(one, fact.blueprint, fact.dataset)[0] for one in (own, made)
        )
        assert after > 0.8 * before, (number, fact.dataset)


def seed_mean(zoo: Zoo, at: int) -> torch.Tensor:
    """Mean of the training networks of one initialisation."""
    seeds = sorted({zoo.initialisation(one) for one in zoo.data.train.ids})
    own = [one for one in zoo.data.train.ids if zoo.initialisation(one) == seeds[at]]
    return torch.stack([zoo.weights(one) for one in own]).mean(dim=0)
