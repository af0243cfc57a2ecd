"""Statistics of tensors, accumulated in float64 over the finite values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zooplatform.dtypes import as_float

__all__ = ["SAMPLE", "population_stats", "tensor_stats"]

SAMPLE = 65_536
_BLOCK = 65_536
_LONG_ROW = 16_384
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NAMES = ("q05", "q25", "q50", "q75", "q95")


def tensor_stats(data: memoryview, dtype: str) -> dict[str, Any] | None:
    """Statistics of one tensor from its bytes; None for dtypes that have no numbers (packed and quantised ones).

    Complex values count by their modulus. Where the sum of squares passes the range of float64, `l2` and `std` are
    infinite. Memory stays at a few blocks of 65,536 values whatever the size.
    """
    values = as_float(data, dtype)
    if values is None:
        return None
    count = len(values)
    total = total_abs = total_square = 0.0
    low, high = np.inf, -np.inf
    zeros = nans = infinities = finite_count = 0
    for start in range(0, count, _BLOCK):
        block = values.block(start, min(start + _BLOCK, count))
        square = _square(block)
        if not np.isfinite(square):
            finite = np.isfinite(block)
            if not finite.all():
                nans += int(np.isnan(block).sum())
                infinities += int(np.isinf(block).sum())
                block = block[finite]
                square = _square(block)
        if not len(block):
            continue
        total_square += square
        with np.errstate(over="ignore"):
            total += float(block.sum())
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        zeros += int(np.count_nonzero(block == 0))  # of booleans: three times as fast
        finite_count += len(block)
        with np.errstate(over="ignore"):
            total_abs += float(np.abs(block, out=block).sum())
    result: dict[str, Any] = {"num_zero": zeros, "num_nan": nans, "num_inf": infinities}
    if finite_count:
        mean = total / finite_count
        variance = (
            max(total_square / finite_count - mean * mean, 0.0) if total_square < np.inf else np.inf
        )
        if variance < 1e-6 * mean * mean:
            variance = _two_pass_variance(values, mean, finite_count)
        result |= {"mean": mean, "std": float(np.sqrt(variance)), "min": low, "max": high}
        result |= {"l1": total_abs, "l2": float(np.sqrt(total_square))}
        sample = values.sample(SAMPLE)
        sample = sample[np.isfinite(sample)]
        if len(sample):
            result |= dict(zip(_NAMES, _quantiles(sample[None, :])[:, 0].tolist(), strict=True))
    return result


def _square(block: npt.NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(block, block))


def _two_pass_variance(values: Any, mean: float, count: int) -> float:
    """When the mean dwarfs the spread, sum of squares minus square of the mean cancels; centre first instead."""
    total = 0.0
    for start in range(0, len(values), _BLOCK):
        block = values.block(start, min(start + _BLOCK, len(values)))
        block = block[np.isfinite(block)] - mean
        total += float(np.dot(block, block))
    return total / count


def _quantiles(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(R, n) finite values to (5, R) quantiles with linear interpolation, as numpy's default method."""
    last = rows.shape[1] - 1
    at = np.asarray(_QUANTILES) * last
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, last)
    # Long rows are ordered at the wanted places only; short ones are sorted faster than that.
    wanted = np.unique(np.concatenate([below, above]))
    ordered = np.partition(rows, wanted, axis=1) if last >= _LONG_ROW else np.sort(rows, axis=1)
    share = (at - below)[:, None]
    low = ordered[:, below].T.astype(np.float64)
    high = ordered[:, above].T.astype(np.float64)
    result: npt.NDArray[np.float64] = low + (high - low) * share
    return result


def population_stats(columns: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """The same for one tensor of N networks at once: (N, n) values to arrays of length N by statistic.

    Rows that hold NaN or infinite values are done one by one. Quantities that do not exist are NaN.
    """
    rows, width = columns.shape
    names = ("mean", "std", "min", "max", "l1", "l2", *_NAMES)
    result: dict[str, npt.NDArray[Any]] = {name: np.full(rows, np.nan) for name in names}
    counts = {name: np.zeros(rows, dtype=np.int64) for name in ("num_zero", "num_nan", "num_inf")}
    if width == 0:
        return result | counts
    step = max(1, (1 << 20) // width)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        with np.errstate(
            invalid="ignore", over="ignore"
        ):  # rows that are not finite are done again below
            _plain_rows(columns[part], part, result, counts)
    bad = np.flatnonzero(~np.isfinite(result["l2"]))
    for row in bad.tolist():
        single = np.ascontiguousarray(columns[row])
        one = tensor_stats(single.data.cast("B"), str(single.dtype)) or {}
        for name in names:
            result[name][row] = one.get(name, np.nan)
        for name, array in counts.items():
            array[row] = one.get(name, 0)
    return result | counts


@np.errstate(
    invalid="ignore", over="ignore"
)  # rows with Inf or NaN are computed again by the caller
def _plain_rows(
    block: npt.NDArray[Any],
    part: slice,
    result: dict[str, npt.NDArray[Any]],
    counts: dict[str, npt.NDArray[Any]],
) -> None:
    values = block.astype(np.float64)
    mean = values.mean(axis=1)
    result["mean"][part] = mean
    result["l2"][part] = np.sqrt(np.einsum("ij,ij->i", values, values))
    result["min"][part], result["max"][part] = values.min(axis=1), values.max(axis=1)
    counts["num_zero"][part] = np.count_nonzero(values == 0, axis=1)
    sampled = block if values.shape[1] <= SAMPLE else block[:, sample_positions(values.shape[1])]
    result_q = _quantiles(sampled)
    for name, row in zip(_NAMES, result_q, strict=True):
        result[name][part] = row
    result["l1"][part] = np.abs(values).sum(axis=1)
    values -= mean[:, None]
    result["std"][part] = np.sqrt(np.einsum("ij,ij->i", values, values) / values.shape[1])


def sample_positions(count: int) -> npt.NDArray[np.int64]:
    """Positions of `SAMPLE` evenly spaced values of `count`."""
    return (np.arange(SAMPLE, dtype=np.int64) * count) // SAMPLE
