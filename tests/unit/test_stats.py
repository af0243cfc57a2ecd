"""Statistics against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zooplatform.catalog.stats import SAMPLE, population_stats, tensor_stats

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def expected(values: npt.NDArray[Any]) -> dict[str, float]:
    finite = values[np.isfinite(values)].astype(np.float64)
    result = {
        "num_zero": float((finite == 0).sum()),
        "num_nan": float(np.isnan(values).sum()),
        "num_inf": float(np.isinf(values).sum()),
    }
    if finite.size:
        result |= {
            "mean": finite.mean(),
            "std": finite.std(),
            "min": finite.min(),
            "max": finite.max(),
            "l1": np.abs(finite).sum(),
            "l2": np.sqrt((finite**2).sum()),
        }
        result |= {name: float(np.quantile(finite, q)) for name, q in QUANTILES.items()}
    return result


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.integers(0, 300),
        elements=st.floats(
            width=32, allow_nan=True, allow_infinity=True, min_value=None, max_value=None
        ),
    )
)
def test_a_tensor_agrees_with_numpy(values: npt.NDArray[np.float32]) -> None:
    got = tensor_stats(values.data.cast("B"), "float32")
    assert got is not None
    want = expected(values)
    assert set(got) == set(want)
    scale = max(abs(want.get("min", 0)), abs(want.get("max", 0)), 1e-300)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-7 * scale), name


def test_a_spread_that_the_mean_dwarfs_is_not_lost() -> None:
    values = 1e6 + np.random.default_rng(0).standard_normal(200_000)
    got = tensor_stats(values.data.cast("B"), "float64")
    assert got is not None
    assert got["std"] == pytest.approx(values.std(), rel=1e-9)


def test_large_tensors_keep_exact_moments_and_close_quantiles() -> None:
    values = np.random.default_rng(0).standard_normal(20 * SAMPLE + 17).astype(np.float32)
    got = tensor_stats(values.data.cast("B"), "float32")
    assert got is not None
    wide = values.astype(np.float64)
    assert got["l2"] == pytest.approx(np.linalg.norm(wide), rel=1e-12)
    assert got["mean"] == pytest.approx(wide.mean(), abs=1e-12)
    for name, q in QUANTILES.items():
        assert got[name] == pytest.approx(np.quantile(wide, q), abs=0.03)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8", "uint16", "bool"]
)
def test_narrow_types_count_by_their_value(dtype: str) -> None:
    tensor = torch.tensor([0.0, 1.0, 2.0, 4.0, 0.5]).to(getattr(torch, dtype))
    values = tensor.to(torch.float64).numpy()
    raw = tensor.view(torch.uint8).numpy()
    got = tensor_stats(raw.data.cast("B"), dtype)
    assert got is not None
    assert got["mean"] == pytest.approx(values.mean())
    assert got["num_zero"] == (values == 0).sum()


@pytest.mark.parametrize("dtype", ["float4_e2m1fn_x2", "gguf.q4_k"])
def test_types_without_single_numbers_have_no_statistics(dtype: str) -> None:
    assert tensor_stats(memoryview(bytes(32)), dtype) is None


def test_a_population_agrees_with_its_networks_one_by_one() -> None:
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((40, 130)).astype(np.float32)
    columns[3, 5] = np.nan
    columns[4, :] = 0
    columns[5, 7] = np.inf
    columns[6, :] = np.nan
    got = population_stats(columns)
    for row in range(len(columns)):
        want = expected(columns[row])
        for name in got:
            if name in want:
                assert got[name][row] == pytest.approx(want[name], rel=1e-6, abs=1e-6), (row, name)
            else:
                assert np.isnan(got[name][row])
