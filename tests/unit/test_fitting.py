"""Kendall's tau of the validation networks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zooplatform.errors import ConfigError
from zooplatform.fitting import kendall_tau


def by_pairs(a: np.ndarray, b: np.ndarray) -> float:
    """Tau-b by its definition."""
    above = np.triu_indices(len(a), 1)
    x = np.sign(a[:, None] - a[None])[above]
    y = np.sign(b[:, None] - b[None])[above]
    return float((x * y).sum() / math.sqrt((x != 0).sum()) / math.sqrt((y != 0).sum()))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 9, 31, 64, 100, 257])
@pytest.mark.parametrize("levels", [None, 2, 5])
def test_is_tau_b(size: int, levels: int | None) -> None:
    draw = np.random.default_rng(size)
    a, b = draw.standard_normal((2, size))
    if levels is not None:
        a, b = draw.integers(0, levels, (2, size)).astype(float)
        a[0], a[1], b[0], b[1] = 0, 1, 1, 0
    assert kendall_tau(a, b) == pytest.approx(by_pairs(a, b), abs=1e-12)


def test_agrees_with_scipy_on_many_values() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    a = draw.standard_normal(5000).round(1)
    b = a + draw.standard_normal(5000).round(1)
    assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_ends_and_refusals() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    assert math.isnan(kendall_tau([1], [1]))
    assert math.isnan(kendall_tau([1, 2], [float("nan"), 2]))
    with pytest.raises(ConfigError, match="2 and 3 values"):
        kendall_tau([1, 2], [1, 2, 3])
