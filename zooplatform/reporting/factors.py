"""Hyper-parameters as explanations: which of them go with how good the networks get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Factor", "factors"]

# A number with at most so many values is a category; a text with more is a name, not a setting.
_FEW, _MANY = 6, 24
# Groups of equal size that numbers are cut into: at most so many, of at least so many models.
_GROUPS, _GROUP = 10, 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factor:
    """A hyper-parameter that differs between models.

    Attributes:
        key: its name.
        levels: (value as text, results) by value, for categories; empty for numbers.
        x, y: value and result by model, for numbers.
        logarithmic: whether the numbers crowd at the low end of a wide range.
        explained: share of the variance of the results between the levels, or between groups of near numbers.
    """

    key: str
    levels: tuple[tuple[str, Floats], ...]
    x: Floats
    y: Floats
    logarithmic: bool
    explained: float

    def trend(self) -> tuple[Floats, Floats]:
        """Middle value and median result of each group of near numbers."""
        bins = _groups(self.x)
        labels = np.unique(bins)
        return (
            np.asarray([np.median(self.x[bins == b]) for b in labels]),
            np.asarray([np.median(self.y[bins == b]) for b in labels]),
        )


def factors(rows: list[dict[str, Any]], finals: list[dict[str, Any]]) -> list[Factor]:
    """Factors, the one that explains most first.

    Args:
        rows: `key`, `models` and `values` (texts) of each hyper-parameter that differs.
        finals: `model_id` and `value` of each result.
    """
    results = {row["model_id"]: row["value"] for row in finals}
    found = []
    for row in rows:
        pairs = [
            (value, results[model])
            for model, value in zip(row["models"], row["values"], strict=True)
            if model in results
        ]
        factor = _factor(row["key"], pairs)
        if factor is not None:
            found.append(factor)
    return sorted(found, key=lambda factor: (-factor.explained, factor.key))


def _factor(key: str, pairs: list[tuple[str, float]]) -> Factor | None:
    values = [value for value, _ in pairs]
    y = np.asarray([result for _, result in pairs], dtype=np.float64)
    distinct = set(values)
    if len(distinct) < 2:
        return None
    x = _numbers(values)
    if x is not None and len(distinct) > _FEW:
        crowded = x.min() > 0 and x.max() > 10 * x.min() and np.median(x) < 0.35 * x.max()
        return Factor(key, (), x, y, bool(crowded), _explained(_groups(x), y))
    if len(distinct) > _MANY:
        return None
    texts = np.asarray(values, dtype=object)
    order = sorted(distinct, key=lambda v: (0.0, v) if x is None else (float(v), v))
    levels = tuple((_short(value), y[texts == value]) for value in order)
    codes = np.asarray([order.index(value) for value in values])
    return Factor(key, levels, np.empty(0), np.empty(0), False, _explained(codes, y))


def _numbers(values: list[str]) -> Floats | None:
    """Finite numbers, or None where one is something else."""
    try:
        x = np.asarray([float(value) for value in values], dtype=np.float64)
    except ValueError:
        return None
    return x if np.isfinite(x).all() else None


def _short(value: str) -> str:
    """A number that float32 holds exactly, in the fewest digits that mean it there: 0.1 for 0.10000000149011612."""
    try:
        number = float(value)
    except ValueError:
        return value
    if "." not in value or not np.isfinite(number) or float(np.float32(number)) != number:
        return value
    return str(np.float32(number))


def _groups(x: Floats) -> npt.NDArray[np.int64]:
    """Groups of about equal size in the order of the numbers; equal numbers stay together."""
    count = int(np.clip(len(x) // _GROUP, 2, _GROUPS))
    edges = np.unique(np.quantile(x, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, x, side="right").astype(np.int64)


def _explained(groups: npt.NDArray[np.int64], y: Floats) -> float:
    """Variance between groups by all variance, corrected for what chance alone gives (omega squared)."""
    total = float(((y - y.mean()) ** 2).sum())
    labels = np.unique(groups)
    free = len(y) - len(labels)
    if total == 0 or free <= 0:
        return 0.0
    between = sum(
        float((groups == b).sum()) * float((y[groups == b].mean() - y.mean()) ** 2) for b in labels
    )
    noise = (total - between) / free
    return max(0.0, (between - (len(labels) - 1) * noise) / (total + noise))
