"""Properties against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zooplatform.interfaces import LayerSpec
from zooplatform.testing import PropertyContract
from zooplatform_stats import properties
from zooplatform_stats.properties import dead_units


@pytest.mark.parametrize("name", properties.__all__)
class TestContract(PropertyContract):
    @pytest.fixture
    def compute(self, name, zoo_registry):
        return zoo_registry.property_function(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e5m2])
def test_dead_units_equal_numpy(dtype):
    draw = torch.Generator().manual_seed(2)
    conv = torch.randn(600, 200, 3, 3, generator=draw)  # more than one piece
    conv[torch.randperm(600, generator=draw)[:123]] = 0
    linear = torch.randn(40, 30, generator=draw)
    linear[3], linear[5, 1:] = 0, 0
    state = {
        "conv.weight": conv.to(dtype),
        "fc.weight": linear.to(dtype),
        "fc.bias": torch.zeros(40),
        "norm.weight": torch.zeros(600),
        "emb.weight": torch.zeros(9, 4),
    }
    layers = (
        LayerSpec(0, "emb", "embedding", ("emb.weight",)),
        LayerSpec(1, "conv", "conv", ("conv.weight",)),
        LayerSpec(2, "norm", "norm", ("norm.weight",)),
        LayerSpec(3, "fc", "linear", ("fc.weight", "fc.bias")),
    )
    rows = [state[name].double().numpy().reshape(n, -1) for name, n in
            (("conv.weight", 600), ("fc.weight", 40))]  # fmt: skip
    dead = sum(int(np.all(r == 0, axis=1).sum()) for r in rows)
    assert dead >= 124
    assert dead_units(state, layers) == dead / 640
    assert dead_units(state, layers[:1]) is None
    assert dead_units({}, layers) is None


def test_a_tiny_double_does_not_count_as_dead():
    layers = (LayerSpec(0, "fc", "linear", ("w",)),)
    assert dead_units({"w": torch.tensor([[1e-300], [0.0]], dtype=torch.float64)}, layers) == 0.5
