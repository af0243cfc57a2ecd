"""Scores against scipy, and the bootstrap against copies of rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zooplatform.errors import ConfigError
from zooplatform.evaluation.bootstrap import resampled_taus
from zooplatform.evaluation.scores import (
    group_draws,
    kendall_tau,
    mae,
    mse,
    paired_difference,
    r2,
    scores,
    spearman,
    tau_draws,
)

# Few values, so that there are ties of every kind; and any values.
VALUES = st.one_of(st.integers(0, 3).map(float), st.floats(-1e9, 1e9))
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=40)


@given(pairs=PAIRS)
@settings(deadline=None, max_examples=200)
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_ranks_are_compared_as_scipy_does(pairs: list[tuple[float, float]]) -> None:
    x, y = map(np.array, zip(*pairs, strict=True))
    expected = stats.kendalltau(x, y).statistic
    np.testing.assert_allclose(kendall_tau(x, y), expected, atol=1e-12)
    if len(x) > 2:
        np.testing.assert_allclose(spearman(x, y), stats.spearmanr(x, y).statistic, atol=1e-9)


def test_errors_are_those_of_the_definition() -> None:
    target, prediction = [1.0, 2.0, 3.0, 6.0], [1.0, 2.5, 3.0, 5.0]
    assert mae(target, prediction) == pytest.approx(1.5 / 4)
    assert mse(target, prediction) == pytest.approx(1.25 / 4)
    assert r2(target, prediction) == pytest.approx(1 - 1.25 / 14)
    assert r2(target, [3.0] * 4) == 0


def test_what_is_not_defined_is_nan() -> None:
    found = scores([0.1] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], range(5), draws=10)
    assert all(np.isnan([found.kendall_tau, *found.kendall_tau_ci, found.spearman, found.r2]))
    assert np.isnan(kendall_tau([1, 2, 3], [7, 7, 7]))
    assert found.mae == pytest.approx(2.9)
    assert found.mse == pytest.approx(2.9**2 + 2)  # off by 2.9 in the mean, and by the variance


def test_a_draw_is_the_figure_of_its_copies() -> None:
    draw = np.random.default_rng(0)
    target = draw.integers(0, 9, 60).astype(float)
    prediction = target + draw.integers(0, 9, 60)
    groups = np.repeat([f"run {i}" for i in range(20)], 3)
    found = tau_draws(target, prediction, groups, seed=3, draws=25)
    names, group_of = np.unique(groups, return_inverse=True)
    counts = group_draws(len(names), 3, 25)
    assert (counts.sum(axis=0) == len(names)).all()
    for at in range(25):
        rows = np.repeat(np.arange(60), counts[group_of, at].astype(int))
        expected = stats.kendalltau(target[rows], prediction[rows]).statistic
        assert found[at] == pytest.approx(expected, abs=1e-12)


def test_the_interval_counts_runs_and_not_rows() -> None:
    """Ten equal copies of each row tell nothing new, unless they pass for runs of their own."""
    draw = np.random.default_rng(1)
    target = draw.normal(size=60)
    prediction = target + draw.normal(size=60)
    once = scores(target, prediction, np.arange(60), seed=5)
    tenfold = [np.repeat(values, 10) for values in (target, prediction, np.arange(60))]
    assert scores(*tenfold, seed=5).kendall_tau_ci == pytest.approx(once.kendall_tau_ci, abs=0.02)
    naive = scores(tenfold[0], tenfold[1], np.arange(600), seed=5)
    low, high = naive.kendall_tau_ci
    assert high - low < 0.5 * (once.kendall_tau_ci[1] - once.kendall_tau_ci[0])


def test_the_interval_holds_what_it_says() -> None:
    """Of intervals of many samples, about 95 % hold the tau of the whole (0.5 for correlation sin(pi/4))."""
    draw = np.random.default_rng(2)
    rho = np.sin(np.pi / 4)
    held = 0
    for at in range(200):
        x = draw.normal(size=80)
        y = rho * x + np.sqrt(1 - rho**2) * draw.normal(size=80)
        low, high = scores(x, y, np.arange(80), seed=at, draws=200).kendall_tau_ci
        held += low <= 0.5 <= high
    assert 0.87 <= held / 200 <= 0.99


def test_a_seed_gives_the_same_and_another_something_else() -> None:
    draw = np.random.default_rng(3)
    target, prediction = draw.normal(size=(2, 50))
    first, same, other = (
        scores(target, prediction, np.arange(50), seed=seed, draws=50) for seed in (0, 0, 1)
    )
    assert first == same
    assert first.kendall_tau_ci != other.kendall_tau_ci
    assert first.kendall_tau == other.kendall_tau


def test_the_order_of_rows_does_not_matter() -> None:
    draw = np.random.default_rng(4)
    target, prediction = draw.normal(size=(2, 90))
    groups = np.arange(90) // 3
    order = draw.permutation(90)
    found = scores(target[order], prediction[order], groups[order], draws=50)
    expected = scores(target, prediction, groups, draws=50)
    np.testing.assert_allclose(found.kendall_tau_ci, expected.kendall_tau_ci, rtol=1e-12)


def test_differences_are_paired() -> None:
    draw = np.random.default_rng(5)
    target = draw.normal(size=300)
    noise = draw.normal(size=300)
    good, bad = target + noise, target + 1.2 * noise
    found = paired_difference(target, good, bad, np.arange(300))
    assert found.difference == pytest.approx(kendall_tau(target, good) - kendall_tau(target, bad))
    assert found.ci[0] > 0
    assert found.wins > 0.975
    # Far tighter than the intervals of the two figures, which overlap.
    apart = [scores(target, p, np.arange(300)).kendall_tau_ci for p in (good, bad)]
    assert apart[0][0] < apart[1][1]
    none = paired_difference(target, good, good, np.arange(300))
    assert (none.difference, none.ci, none.wins) == (0, (0, 0), 0)


@pytest.mark.parametrize(
    ("target", "prediction", "groups", "text"),
    [
        ([1.0, 2.0], [1.0], [0, 1], "cannot be compared"),
        ([], [], [], "at least one"),
        ([1.0, float("nan")], [1.0, 2.0], [0, 1], "1 of 2 targets are not finite .* row 1"),
        ([1.0, 2.0], [float("inf"), 2.0], [0, 1], "predictions are not finite"),
        ([1.0, 2.0], [1.0, 2.0], [0], "2 rows have 1 groups"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    target: list[float], prediction: list[float], groups: list[int], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        scores(target, prediction, groups)
    with pytest.raises(ConfigError, match="0 draws"):
        scores([1.0, 2.0], [1.0, 2.0], [0, 1], draws=0)


def test_a_cell_of_a_thousand_rows_takes_a_second() -> None:
    draw = np.random.default_rng(6)
    target, prediction = draw.normal(size=(2, 1000))
    start = time.process_time()
    scores(target, prediction, np.arange(1000) // 3, draws=1000)
    assert time.process_time() - start < 3  # 0.3 s on one core; a loop over draws takes longer


# --- many predictions at once -----------------------------------------------------------------------------------------


def test_many_taus_at_once_are_those_of_one_by_one() -> None:
    draw = np.random.default_rng(0)
    runs = draw.permutation(np.repeat(np.arange(40), 3))
    target = draw.integers(0, 30, 120).astype(float)
    predictions = np.stack([target + draw.normal(size=120) * s for s in (1, 9)]).round()
    found = resampled_taus(target, predictions, runs, draws=50, seed=3)
    for at, prediction in enumerate(predictions):
        assert found.value[at] == pytest.approx(kendall_tau(target, prediction), abs=1e-12)
        np.testing.assert_allclose(
            found.draws[at], tau_draws(target, prediction, runs, 3, 50), atol=1e-12
        )
    constant = resampled_taus(target, np.ones((1, 120)), runs, draws=5, seed=0)
    assert (constant.value == 0).all()
    assert (constant.draws == 0).all()
    assert np.isnan(resampled_taus(np.ones(120), predictions, runs, draws=5, seed=0).value).all()


def test_blocks_of_pairs_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    runs, target = np.repeat(np.arange(30), [1, 5] * 15), draw.random(90)
    given = (target, target[None] + draw.normal(size=(2, 90)), runs)
    whole = resampled_taus(*given, draws=20, seed=0)
    monkeypatch.setattr("zooplatform.evaluation.bootstrap._PAIRS", 700)
    np.testing.assert_array_equal(resampled_taus(*given, draws=20, seed=0).draws, whole.draws)
