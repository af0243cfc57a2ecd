"""The diffusion model learns a distribution that no normal one is, and goes down from noise to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform_kde.config import DiffusionSettings
from zooplatform_kde.denoiser import denoised, kept_share, noise_error, train
from zooplatform_kde.diffusion import LatentDiffusion

if TYPE_CHECKING:
    from conftest import Zoo

SETTINGS = DiffusionSettings(steps=500, width=64, depth=2, levels=40, learning_rate=3e-3)


def randoms(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def test_the_signal_falls_from_level_to_level() -> None:
    share = kept_share(50)
    assert share.shape == (50,)
    assert share[0] > 0.99
    assert share[-1] < 0.01
    assert bool((share[1:] < share[:-1]).all())


def test_two_points_are_learnt() -> None:
    """A normal distribution of the same mean and variance would lie between them most of the time."""
    points = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 1)
    model, steps = train(points, SETTINGS, 0, more=lambda step: True)
    assert steps == 500
    bound = torch.full((2,), 1.2)
    made = torch.cat(
        [denoised(model, bound, 40, 1.0, randoms(96)[at : at + 32], 32) for at in (0, 32, 64)]
    )
    distances = torch.cdist(made, points[:2])
    near = distances.min(dim=1)
    assert float((near.values < 0.35).float().mean()) > 0.9
    assert 20 < int(near.indices.sum()) < 76
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        assert float(noise_error(model, points, 40, random)) < 0.5


def test_a_vector_does_not_depend_on_those_beside_it() -> None:
    points = torch.randn((16, 3), generator=torch.Generator().manual_seed(0))
    model, _ = train(points, replace(SETTINGS, steps=20), 0, more=lambda step: True)
    bound = torch.full((3,), 3.0)
    many = denoised(model, bound, 40, 1.0, randoms(5), 8)
    alone = denoised(model, bound, 40, 1.0, randoms(5)[2:3], 8)
    assert torch.equal(many[2:3], alone)
    assert bool((many.abs() <= 3).all())
    still = denoised(model, bound, 40, 0.0, randoms(2), 8)
    assert torch.equal(still[0], still[1])


def test_networks_of_clusters(shared: Zoo) -> None:
    """Where the means of clusters lie far apart, it keeps near to them; the normal distribution does not."""
    generator = LatentDiffusion()
    config = {"components": 3, "steps": 500, "width": 64, "depth": 2, "levels": 40}
    report = generator.fit(shared.data, config={**config, "learning_rate": 3e-3}, seed=0)
    assert report.metrics["components"] == 3
    assert report.metrics["noise_error"] < 0.5
    assert 0 < report.metrics["validation_noise_error"] < 1
    (batch,) = generator.sample(24, seed=0)
    accuracies = shared.accuracy(batch.weights)
    assert sum(one > 0.8 for one in accuracies) >= 16
    again = torch.cat([b.weights for b in generator.sample(3, seed=0)])
    assert torch.equal(again, batch.weights[:3])


def test_it_ends_when_the_time_is_over_and_tells_how_far_it_came(shared: Zoo) -> None:
    told: list[tuple[int, int | None]] = []

    def progress(what: str, done: int, total: int | None) -> None:
        told.append((done, total))

    generator = LatentDiffusion()
    hurried = replace(shared.data, max_minutes=1e-9, progress=progress)
    report = generator.fit(hurried, config={"components": 2}, seed=0)
    assert report.metrics["steps"] == 0
    assert any("time was over after 0 of 3000" in note for note in report.notes)
    assert (0, 3000) in told
    assert len(next(generator.sample(2, seed=0)).weights) == 2


def test_networks_without_spread_have_their_mean(shared: Zoo) -> None:
    one = shared.data.train.ids[0]
    data = replace(shared.data, train=shared.catalog.dataset([one], target=None))
    generator = LatentDiffusion()
    report = generator.fit(data, config={}, seed=0)
    assert any("no spread" in note for note in report.notes)
    (batch,) = generator.sample(2, seed=0)
    torch.testing.assert_close(batch.weights, shared.weights(one).expand(2, -1))
    made = generator.reconstruct(torch.zeros(1, batch.weights.shape[1]), shared.data.blueprints[0])
    torch.testing.assert_close(made[0], shared.weights(one))


def test_projections(shared: Zoo) -> None:
    generator = LatentDiffusion()
    generator.fit(shared.data, config={"components": 30, "steps": 1}, seed=0)
    train_networks = torch.stack([shared.weights(one) for one in shared.data.train.ids])
    made = generator.reconstruct(train_networks, shared.data.blueprints[0])
    torch.testing.assert_close(made, train_networks, rtol=0, atol=1e-3)
    assert float(made.norm()) == pytest.approx(float(train_networks.norm()), rel=1e-4)
