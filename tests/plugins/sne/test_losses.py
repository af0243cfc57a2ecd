"""Losses against numbers worked by hand."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform_sne.losses import LOSSES, TargetScale, kendall_tau, loss_of, pairwise_rank

BOUNDED = TargetScale(bounded=True)


def test_cross_entropy_takes_soft_targets() -> None:
    # z = 0 is a probability of 1/2 whatever the target; z = log 3 is one of 3/4.
    scores = torch.tensor([0.0, log(3)])
    targets = torch.tensor([0.3, 0.75])
    expected = (log(2) + 0.75 * log(4 / 3) + 0.25 * log(4)) / 2
    assert loss_of("bce", scores, targets, BOUNDED).item() == pytest.approx(expected, abs=1e-6)


def test_squared_error_is_on_the_logit() -> None:
    scores = torch.tensor([0.0, 1.0])
    targets = torch.tensor([0.5, 0.75])  # logits 0 and log 3
    assert loss_of("mse", scores, targets, BOUNDED).item() == pytest.approx((log(3) - 1) ** 2 / 2)


def test_targets_of_zero_and_one_have_a_finite_logit() -> None:
    scale = TargetScale(bounded=True, clip=0.1)
    assert scale.scores(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([-log(9), log(9)])


def test_huber_is_linear_beyond_delta() -> None:
    scores, targets = torch.tensor([0.5, 4.0]), torch.tensor([0.5, 0.5])
    # 0.5^2 / 2, and 1 * (4 - 1 / 2)
    assert loss_of("huber", scores, targets, BOUNDED).item() == pytest.approx((0.125 + 3.5) / 2)
    # delta 2: 0.125, and 2 * (4 - 1)
    wide = loss_of("huber", scores, targets, BOUNDED, delta=2.0)
    assert wide.item() == pytest.approx((0.125 + 6.0) / 2)


def test_rank_counts_ordered_pairs_only() -> None:
    scores, targets = torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0.9, 0.1, 0.1])
    # pairs (0, 1) right by 1 and (0, 2) wrong by 4; (1, 2) is a tie
    expected = (log(1 + exp(-1)) + log(1 + exp(4))) / 2
    assert pairwise_rank(scores, targets).item() == pytest.approx(expected)


def test_rank_of_one_network_is_zero() -> None:
    assert pairwise_rank(torch.tensor([3.0]), torch.tensor([0.2])).item() == 0.0


def test_rank_huber_is_their_weighted_sum() -> None:
    scores, targets = torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.75])
    expected = log(3) - 0.5  # |log 3| > delta: log 3 - 1 / 2, over two networks
    total = loss_of("rank-huber", scores, targets, BOUNDED, rank=0.25)
    assert total.item() == pytest.approx(expected / 2 + 0.25 * log(2))
    assert loss_of("auto", scores, targets, BOUNDED, rank=0.25).item() == total.item()


def test_free_targets_are_standardised() -> None:
    scale = TargetScale.of(np.array([10.0, 14.0]))
    assert (scale.bounded, scale.mean, scale.std) == (False, 12.0, 2.0)
    scores, targets = torch.tensor([0.0, 0.0]), torch.tensor([10.0, 16.0])  # scores -1 and 2
    assert loss_of("mse", scores, targets, scale).item() == pytest.approx(2.5)
    assert scale.predictions(scale.scores(targets)).tolist() == [10.0, 16.0]


def test_constant_targets_have_a_scale() -> None:
    scale = TargetScale.of(np.full(3, 7.0))
    assert scale.predictions(torch.zeros(1)).item() == 7.0


def test_the_kind_of_target_is_seen_or_said() -> None:
    accuracies = np.array([0.1, 0.9])
    assert TargetScale.of(accuracies).bounded
    assert not TargetScale.of(accuracies, kind="free").bounded
    with pytest.raises(ConfigError, match=r"from -1 to 2; bounded ones lie in \[0, 1\]"):
        TargetScale.of(np.array([-1.0, 2.0]), kind="bounded")
    with pytest.raises(ConfigError, match="1 of 2 targets are not finite"):
        TargetScale.of(np.array([np.nan, 2.0]))


def test_a_scale_survives_its_description() -> None:
    scale = TargetScale(bounded=False, mean=0.1, std=3.0, clip=0.01)
    assert TargetScale.from_description(scale.describe()) == scale


def test_losses_that_do_not_fit_are_refused() -> None:
    pair = torch.zeros(2), torch.zeros(2)
    with pytest.raises(ConfigError, match=f"Unknown loss 'l1'. Known: {', '.join(LOSSES)}"):
        loss_of("l1", *pair, BOUNDED)
    with pytest.raises(ConfigError, match="bce needs targets in"):
        loss_of("bce", *pair, TargetScale(bounded=False))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_its_minimum_near_the_target(name: str) -> None:
    targets = torch.tensor([0.2, 0.6, 0.9])
    right = BOUNDED.scores(targets)
    best = loss_of(name, right, targets, BOUNDED, rank=0.1)
    assert best < loss_of(name, right.flip(0), targets, BOUNDED, rank=0.1)


def _tau_by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    dx, dy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    return float((dx * dy).sum() / np.sqrt((dx**2).sum() * (dy**2).sum()))


def test_tau_by_hand() -> None:
    assert kendall_tau(np.array([1, 2, 3]), np.array([1, 2, 3])) == pytest.approx(1)
    assert kendall_tau(np.array([1, 2, 3]), np.array([3, 1, 2])) == pytest.approx(-1 / 3)
    # one tie in x: pairs 3, untied in x 2, both agree: 2 / sqrt(2 * 3)
    assert kendall_tau(np.array([1, 1, 2]), np.array([1, 2, 3])) == pytest.approx(2 / 6**0.5)
    assert kendall_tau(np.array([1, 1, 1]), np.array([1, 2, 3])) == 0.0


@pytest.mark.parametrize("n", [2, 7, 64, 301])
@pytest.mark.parametrize("values", [3, 50, 10_000])
def test_tau_equals_the_count_over_all_pairs(n: int, values: int) -> None:
    draw = np.random.default_rng(n * values)
    x, y = draw.integers(0, values, n).astype(float), draw.integers(0, values, n).astype(float)
    x[0], y[0], x[1], y[1] = 0, 0, 1, 1  # never constant
    assert kendall_tau(x, y) == pytest.approx(_tau_by_pairs(x, y), abs=1e-12)
