"""Guarded members move a score, but not by more than they did where they were checked."""

from __future__ import annotations

import numpy as np
import pytest

from zooplatform_sne.fusion import Fusion, stacked_shares


def test_the_limit_is_a_multiple_of_the_median_difference() -> None:
    scores = np.array([[0.0, 1.0, 2.0], [0.2, 2.0, 1.5]])  # differences .2, 1, .5
    fusion = Fusion.fit(np.array([3.0, 0]), np.array([0, 2.0]), scores, share=0.5, guard=2.0)
    assert fusion.limit == pytest.approx(1.0)
    found = fusion(np.array([[0.0, 0.0, 5.0], [0.4, 9.0, -9.0]]))
    assert found == pytest.approx([0.2, 0.5, 4.5])


def test_far_beyond_the_limit_the_order_of_the_base_stays() -> None:
    draw = np.random.default_rng(0)
    base, wrong = draw.standard_normal(100), draw.standard_normal(100) - 50
    fusion = Fusion(base=np.array([1.0, 0]), guarded=np.array([0, 1.0]), share=1.0, limit=2.0)
    np.testing.assert_array_equal(np.argsort(fusion(np.stack([base, wrong]))), np.argsort(base))


def test_without_guarded_members_it_is_the_weighted_mean() -> None:
    scores = np.array([[1.0, 2.0], [3.0, 6.0]])
    fusion = Fusion.fit(np.array([1.0, 3.0]), np.zeros(2), scores, share=0.5, guard=4.0)
    assert fusion(scores) == pytest.approx([2.5, 5.0])


def test_stacking_finds_the_weights_that_are_best() -> None:
    draw = np.random.default_rng(0)
    wanted = draw.standard_normal(500)
    good = wanted + 0.1 * draw.standard_normal(500)
    scores = np.stack([draw.standard_normal(500), good, -wanted])
    shares = stacked_shares(scores, wanted)
    assert shares.sum() == pytest.approx(1)
    assert shares.min() >= 0
    assert shares[1] > 0.95
    # Two copies of a mixture that no other weights can beat: half of each.
    halves = np.stack([wanted + scores[0], wanted - scores[0]])
    assert stacked_shares(halves, wanted) == pytest.approx([0.5, 0.5], abs=1e-3)
