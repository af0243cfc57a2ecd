"""Clusters are the initialisations that networks share, and their means work where the mean of all does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform_kde.clusters import ClusterMean
from zooplatform_kde.config import ClusterSettings
from zooplatform_kde.gaussian import ClusterPca
from zooplatform_kde.kmeans import find_clusters, k_means, largest_first, silhouette
from zooplatform_kde.networks import collect
from zooplatform_kde.simple import ZooMean

if TYPE_CHECKING:
    from conftest import Zoo


def drawn(generator: object, n: int = 8, **kwargs: object) -> torch.Tensor:
    batches = list(generator.sample(n, **{"seed": 0, **kwargs}))  # type: ignore[attr-defined]
    return torch.cat([batch.weights for batch in batches])


def blobs(k: int, each: int, width: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around k centres, in any order, and which centre each is of."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn((k, 20), generator=draw)
    of = torch.arange(k).repeat(each)[torch.randperm(k * each, generator=draw)]
    return centres[of] + width * torch.randn((k * each, 20), generator=draw), of


def same_parts(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one[:, None] == one[None], other[:, None] == other[None])


# --- in real zoos -----------------------------------------------------------------------------------------------------


def test_clusters_are_the_initialisations_exactly(shared: Zoo) -> None:
    (networks,), _ = collect(shared.data, align=False, seed=0)
    found = find_clusters(networks, "auto", 64, seed=3)
    began = torch.tensor([shared.initialisation(one) for one in networks.ids])
    assert len(began.unique()) == 4
    assert found.number == 4
    assert same_parts(found.of, began)
    assert found.silhouette > 0.5
    assert torch.equal(find_clusters(networks, 4, 64, seed=1).of.bincount(), found.of.bincount())


def test_networks_of_independent_seeds_are_one_cluster(normed: Zoo) -> None:
    for networks in collect(normed.data, align=False, seed=0)[0]:
        assert find_clusters(networks, "auto", 64, seed=0).number == 1


def test_means_of_clusters_are_accurate_where_the_mean_of_all_is_not(shared: Zoo) -> None:
    means, mean = ClusterMean(), ZooMean()
    report = means.fit(shared.data, config={}, seed=0)
    mean.fit(shared.data, config={}, seed=0)
    assert report.metrics["num_clusters"] == 4
    assert report.metrics["explained_variance"] > 0.9
    weights = drawn(means, 12)
    assert min(shared.accuracy(weights)) > 0.85
    assert len(weights.unique(dim=0)) == 4
    (accuracy,) = shared.accuracy(drawn(mean, 1))
    assert accuracy < 0.5


def test_the_mean_is_one(shared: Zoo) -> None:
    generator = ZooMean()
    generator.fit(shared.data, config={}, seed=0)
    every = torch.stack([shared.weights(one) for one in shared.data.train.ids])
    torch.testing.assert_close(drawn(generator, 3), every.mean(0).expand(3, -1))


def test_temperature_and_top_k_choose_the_largest_clusters(shared: Zoo) -> None:
    generator = ClusterMean()
    generator.fit(shared.data, config={}, seed=0)
    sizes = generator._groups[0].tensors["sizes"]
    began = Counter(shared.initialisation(one) for one in shared.data.train.ids)
    assert sizes.tolist() == sorted(began.values(), reverse=True)
    largest = generator._groups[0].tensors["means"][0]
    assert torch.equal(drawn(generator, 4, temperature=0.0), largest.expand(4, -1))
    assert torch.equal(drawn(generator, 4, top_k=1), largest.expand(4, -1))
    assert len(drawn(generator, 12, top_k=2).unique(dim=0)) == 2


def test_reconstructions_are_the_nearest_means(shared: Zoo) -> None:
    generator = ClusterMean()
    generator.fit(shared.data, config={}, seed=0)
    held_out = torch.stack([shared.weights(one) for one in shared.data.validation.ids])
    made = generator.reconstruct(held_out, shared.data.blueprints[0])
    began = [shared.initialisation(one) for one in shared.data.validation.ids]
    assert same_parts(made.unique(dim=0, return_inverse=True)[1], torch.tensor(began))
    plain = ZooMean()
    plain.fit(shared.data, config={}, seed=0)
    other = plain.reconstruct(held_out, shared.data.blueprints[0])
    assert bool(((made - held_out).norm(dim=1) < 0.5 * (other - held_out).norm(dim=1)).all())


def test_a_normal_distribution_in_each_cluster(shared: Zoo) -> None:
    generator = ClusterPca()
    report = generator.fit(shared.data, config={}, seed=0)
    assert report.metrics["num_clusters"] == 4
    assert min(shared.accuracy(drawn(generator, 8))) > 0.8
    cold = drawn(generator, 8, temperature=0.0)
    assert len(cold.unique(dim=0)) == 1
    means = ClusterMean()
    means.fit(shared.data, config={}, seed=0)
    torch.testing.assert_close(cold[0], means._groups[0].tensors["means"][0])


def test_one_covariance_for_all_clusters(shared: Zoo) -> None:
    own, pooled = ClusterPca(), ClusterPca()
    own.fit(shared.data, config={"components": 2}, seed=0)
    report = pooled.fit(shared.data, config={"components": 15, "pooled": True}, seed=0)
    assert report.metrics["components"] == 15
    tensors = pooled._groups[0].tensors
    # Deviations of a network from the mean of its cluster lie in the span of the pooled axes.
    (networks,), _ = collect(shared.data, align=False, seed=0)
    of = torch.cdist(networks.weights, tensors["means"]).argmin(dim=1)
    left = networks.weights - tensors["means"][of]
    beside = left - left @ tensors["axes"].T @ tensors["axes"]
    assert beside.norm() < 0.35 * left.norm()
    assert min(shared.accuracy(drawn(pooled, 6))) > 0.8
    assert own._groups[0].values["components"] == [2, 2, 2, 2]


def test_clusters_without_spread_are_told_of(shared: Zoo) -> None:
    """A network of each of two runs."""
    generator = ClusterPca()
    runs = {shared.data.facts[one].model_id: one for one in shared.data.train.ids}
    few = shared.catalog.dataset(list(runs.values())[:2], target=None)
    report = generator.fit(replace(shared.data, train=few), config={"clusters": 2}, seed=0)
    assert any("2 clusters have one network and no spread" in note for note in report.notes)
    for row in drawn(generator, 5):
        assert any(torch.allclose(row, shared.weights(one)) for one in few.ids)


# --- the algorithm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 5, 100])
def test_separate_clusters_are_found_exactly(k: int) -> None:
    points, of = blobs(k, 6)
    for seed in range(3):
        found, cost = k_means(points, k, torch.Generator().manual_seed(seed))
        assert same_parts(found, of)
        centres = torch.stack([points[of == at].mean(dim=0) for at in range(k)])
        assert cost == pytest.approx(float((points - centres[of]).square().sum()), rel=1e-4)


def test_points_that_are_equal_are_one_cluster() -> None:
    found, cost = k_means(torch.ones(5, 3), 3, torch.Generator().manual_seed(0))
    assert found.tolist() == [0] * 5
    assert cost == 0


def test_silhouette_is_that_of_its_definition() -> None:
    points, of = blobs(3, 4, width=0.8)
    distances = torch.cdist(points.double(), points.double())
    scores = []
    for i in range(len(points)):
        own = [distances[i, j] for j in range(len(points)) if j != i and of[j] == of[i]]
        a = sum(own) / len(own)
        b = min(distances[i, of == at].mean() for at in range(3) if at != of[i])
        scores.append((b - a) / max(a, b))
    assert silhouette(distances, of) == pytest.approx(float(sum(scores) / len(scores)))
    assert silhouette(distances, torch.zeros(len(points), dtype=torch.int64)) == 0


def test_clusters_are_numbered_by_size() -> None:
    of = torch.tensor([2, 0, 2, 1, 2, 1])
    assert largest_first(of).tolist() == [0, 2, 0, 1, 0, 1]


def test_runs_are_clustered_and_not_checkpoints(shared: Zoo) -> None:
    """Two checkpoints of a run are always in one cluster, however many clusters there are."""
    (networks,), _ = collect(shared.data, align=False, seed=0)
    found = find_clusters(networks, 12, 64, seed=0)
    assert found.number == 12
    assert same_parts(found.of, networks.runs)
    assert find_clusters(networks, 50, 64, seed=0).number == 12
    assert ClusterSettings().clusters == "auto"
