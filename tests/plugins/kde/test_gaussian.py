"""Principal components span the networks, samples have their variance, and the likelihood is that of its formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform_kde.gaussian import PcaGaussian
from zooplatform_kde.principal import chosen_components, principal_components

if TYPE_CHECKING:
    from conftest import Zoo


def drawn(generator: PcaGaussian, n: int, **kwargs: object) -> torch.Tensor:
    return torch.cat([b.weights for b in generator.sample(n, **{"seed": 0, **kwargs})])  # type: ignore[arg-type]


def cloud(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Points whose variance falls from axis to axis, turned."""
    draw = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn((width, width), generator=torch.Generator().manual_seed(1)))[
        0
    ]
    values = torch.randn((n, width), generator=draw) * 0.7 ** torch.arange(width)
    return values @ turn + torch.arange(width)


@pytest.mark.parametrize(("n", "width"), [(9, 30), (200, 12)])
def test_components_are_those_of_a_singular_value_decomposition(n: int, width: int) -> None:
    points = cloud(n, width)
    found = principal_components(points, 5)
    centred = points.double() - points.double().mean(0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(found.std.double(), values[:5] / math.sqrt(n - 1), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        (found.axes.double() * axes[:5]).sum(1).abs(), torch.ones(5).double(), rtol=1e-5, atol=0
    )
    rest = float(values[5:].square().sum()) / (n - 1)
    assert found.rest == pytest.approx(rest / (width - 5), rel=1e-5)
    assert found.explained == pytest.approx(
        1 - rest * (n - 1) / float(values.square().sum()), rel=1e-5
    )
    fewer, direct = found.first(2), principal_components(points, 2)
    assert fewer.rest == pytest.approx(direct.rest, rel=1e-5)
    assert fewer.explained == pytest.approx(direct.explained, rel=1e-5)


def test_large_ones_are_found_in_fewer_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud(60, 40)
    exact = principal_components(points, 4)
    monkeypatch.setattr("zooplatform_kde.principal._EXACT", 30)
    near = principal_components(points, 4)
    torch.testing.assert_close(near.std, exact.std, rtol=1e-3, atol=0)
    torch.testing.assert_close(near.axes, exact.axes, rtol=0, atol=1e-2)


def test_the_likelihood_is_that_of_a_normal_distribution() -> None:
    points, others = cloud(400, 6), cloud(5, 6, seed=4)
    found = principal_components(points, 2)
    covariance = found.axes.T @ torch.diag(
        found.std.square() - found.rest
    ) @ found.axes + found.rest * torch.eye(6)
    normal = torch.distributions.MultivariateNormal(found.mean.double(), covariance.double())
    torch.testing.assert_close(found.log_likelihood(others), normal.log_prob(others.double()) / 6)


def test_the_number_of_components_is_that_of_the_likeliest() -> None:
    draw = torch.Generator().manual_seed(0)
    axes = torch.randn((3, 50), generator=draw)

    def points(n: int) -> torch.Tensor:
        noise = 0.1 * torch.randn((n, 50), generator=draw)
        return torch.randn((n, 3), generator=draw) @ axes + noise

    train, held_out = points(100), points(50)
    found = principal_components(train, 64)
    chosen, likelihood = chosen_components(found, "auto", held_out)
    assert len(chosen.std) == 4  # of 0, 1, 2, 4, 8, ...: the first that holds three
    assert likelihood == pytest.approx(float(chosen.log_likelihood(held_out).mean()))
    assert chosen_components(found, 3, held_out)[1] > likelihood  # type: ignore[operator]
    assert chosen_components(found, 3, held_out[:0])[1] is None
    assert len(chosen_components(found, "auto", held_out[:0])[0].std) == len(found.std)


def test_one_network_is_its_own_mean() -> None:
    found = principal_components(torch.arange(4.0)[None], 8)
    assert found.std.tolist() == []
    assert found.networks(torch.zeros(1, 0)).tolist() == [[0, 1, 2, 3]]
    same = principal_components(torch.ones(5, 4), 8)
    assert same.networks(torch.randn(1, len(same.std))).tolist() == [[1, 1, 1, 1]]


def test_samples_lie_in_the_span_and_have_its_variance(shared: Zoo) -> None:
    generator = PcaGaussian()
    report = generator.fit(shared.data, config={"components": 6}, seed=0)
    assert report.metrics["components"] == 6
    assert 0.5 < report.metrics["explained_variance"] < 1
    assert math.isfinite(report.metrics["validation_log_likelihood"])
    tensors = generator._groups[0].tensors
    made = drawn(generator, 400) - tensors["mean"]
    codes = made @ tensors["axes"].T
    torch.testing.assert_close(codes @ tensors["axes"], made, rtol=0, atol=1e-4)
    torch.testing.assert_close(codes.std(0), tensors["std"], rtol=0.2, atol=0)
    torch.testing.assert_close(drawn(generator, 5, temperature=0.0), tensors["mean"].expand(5, -1))
    half = drawn(generator, 9, temperature=0.5) - tensors["mean"]
    torch.testing.assert_close(half, made[:9] / 2, rtol=1e-4, atol=1e-5)


def test_all_components_span_every_training_network(shared: Zoo) -> None:
    generator = PcaGaussian()
    report = generator.fit(shared.data, config={"components": 500}, seed=0)
    assert report.metrics["components"] == len(shared.data.train) - 1
    assert report.metrics["explained_variance"] == pytest.approx(1, abs=1e-5)
    train = torch.stack([shared.weights(one) for one in shared.data.train.ids])
    made = generator.reconstruct(train, shared.data.blueprints[0])
    torch.testing.assert_close(made, train, rtol=0, atol=1e-3)
    held_out = torch.stack([shared.weights(one) for one in shared.data.validation.ids])
    other = generator.reconstruct(held_out, shared.data.blueprints[0])
    assert 0.1 < float((other - held_out).norm() / held_out.norm()) < 1


def test_without_validation_networks_of_a_group_nothing_is_said_of_them(shared: Zoo) -> None:
    facts = dict(shared.data.facts)
    for one in shared.data.validation.ids:
        facts[one] = replace(facts[one], dataset="elsewhere")
    generator = PcaGaussian()
    report = generator.fit(replace(shared.data, facts=facts), config={"components": "auto"}, seed=0)
    assert "validation_log_likelihood" not in report.metrics
    assert any("without training networks" in note for note in report.notes)
