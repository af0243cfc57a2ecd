"""What every property must do, as tests to inherit from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from zooplatform.interfaces import LayerSpec, StateDict

__all__ = ["PropertyContract"]


class PropertyContract:
    """Tests of a property; inherit and give the fixture `compute`.

    `state` and `layers` may be overridden where the property needs a network of another kind.
    """

    @pytest.fixture
    def compute(self) -> Any:
        """The function `compute(state, layers)` under test."""
        raise NotImplementedError("override the fixture `compute`")

    @pytest.fixture
    def state(self) -> Any:
        """A small network with a convolution and a linear layer."""
        import torch

        draw = torch.Generator().manual_seed(0)
        return {
            "conv.weight": torch.randn(4, 3, 3, 3, generator=draw),
            "conv.bias": torch.zeros(4),
            "fc.weight": torch.randn(5, 16, generator=draw),
            "fc.bias": torch.randn(5, generator=draw),
        }

    @pytest.fixture
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers of `state`."""
        from zooplatform.interfaces import LayerSpec

        return (
            LayerSpec(0, "conv", "conv", ("conv.weight", "conv.bias")),
            LayerSpec(1, "fc", "linear", ("fc.weight", "fc.bias")),
        )

    def test_it_gives_a_number(self, compute: Any, state: StateDict, layers: Any) -> None:
        value = compute(state, layers)
        assert value is None or isinstance(value, float | int)
        assert value is None or math.isfinite(value)

    def test_it_is_repeatable_and_changes_nothing(
        self, compute: Any, state: StateDict, layers: Any
    ) -> None:
        before = {name: value.clone() for name, value in state.items()}
        assert compute(state, layers) == compute(state, layers)
        assert all((state[name] == before[name]).all() for name in before)

    def test_weights_of_any_kind_do_not_break_it(self, compute: Any, layers: Any) -> None:
        import torch

        odd = {
            "half": torch.ones(3, dtype=torch.float16),
            "brain": torch.ones(3, dtype=torch.bfloat16),
            "count": torch.tensor(7),
            "flag": torch.tensor([True, False]),
            "empty": torch.zeros(0, 4),
            "nan": torch.tensor([float("nan"), 1.0]),
        }
        for state in (odd, {}, {"count": torch.tensor(7)}):
            value = compute(state, ())
            assert value is None or isinstance(value, float | int)
