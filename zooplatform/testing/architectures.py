"""What every architecture adapter must do, as tests to inherit from.

class TestMyAdapter(ArchitectureContract):
    @pytest.fixture
    def adapter(self):
        return MyAdapter()

    @pytest.fixture
    def state(self):
        return make_network().state_dict()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from zooplatform.errors import ArchitectureError
from zooplatform.interfaces import CheckpointHeader, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.interfaces import StateDict

__all__ = ["ArchitectureContract", "header_of"]

LAYER_TYPES = frozenset({"conv", "linear", "norm", "embedding", "attention", "recurrent", "other"})


def header_of(state: StateDict, config: Mapping[str, Any] | None = None) -> CheckpointHeader:
    """The header that a source would give for `state`."""
    tensors = tuple(
        TensorSpec(
            name,
            str(value.dtype).removeprefix("torch."),
            tuple(value.shape),
            value.numel() * value.element_size(),
        )
        for name, value in state.items()
    )
    return CheckpointHeader(tensors=tensors, format="state-dict", config=config or {})


class ArchitectureContract:
    """Tests of an `ArchitectureAdapter`; inherit and give the fixtures `adapter` and `state`.

    `config` is the configuration that the header carries, if the family needs one; an adapter that
    never builds sets `builds = False` and must then refuse with `ArchitectureError`.
    """

    builds: ClassVar[bool] = True

    @pytest.fixture
    def adapter(self) -> Any:
        """The adapter under test."""
        raise NotImplementedError("override the fixture `adapter`")

    @pytest.fixture
    def state(self) -> Any:
        """A state dict of the adapter's family."""
        raise NotImplementedError("override the fixture `state`")

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        """The configuration in the header."""
        return {}

    @pytest.fixture
    def header(self, state: StateDict, config: dict[str, Any]) -> CheckpointHeader:
        return header_of(state, config)

    def test_it_recognises_its_family(self, adapter: Any, header: CheckpointHeader) -> None:
        assert adapter.matches(header) is True

    def test_the_description_is_plain(self, adapter: Any, header: CheckpointHeader) -> None:
        import json

        description = adapter.describe(header)
        assert isinstance(description["family"], str)
        assert description["family"]
        assert isinstance(description["name"], str)
        json.dumps(description["config"])

    def test_every_tensor_belongs_to_one_layer(
        self, adapter: Any, header: CheckpointHeader
    ) -> None:
        layers = adapter.layers(header)
        claimed = [name for layer in layers for name in layer.tensors]
        assert sorted(claimed) == sorted(tensor.name for tensor in header.tensors)
        assert [layer.index for layer in layers] == list(range(len(layers)))
        assert {layer.type for layer in layers} <= LAYER_TYPES

    def test_from_canonical_undoes_to_canonical(
        self, adapter: Any, state: StateDict, header: CheckpointHeader
    ) -> None:
        back = adapter.from_canonical(adapter.to_canonical(state), layout=header.tensors)
        assert list(back) == list(state)
        for name, value in state.items():
            assert back[name].dtype == value.dtype, name
            assert back[name].shape == value.shape, name
            assert _equal_bits(back[name], value), name

    def test_the_state_dict_is_left_alone(self, adapter: Any, state: StateDict) -> None:
        before = {name: value.clone() for name, value in state.items()}
        adapter.to_canonical(state)
        assert list(state) == list(before)
        assert all(_equal_bits(state[name], before[name]) for name in before)

    def test_the_network_is_built_and_loads_strictly(
        self, adapter: Any, state: StateDict, header: CheckpointHeader
    ) -> None:
        config = adapter.describe(header)["config"]
        if not self.builds:
            with pytest.raises(ArchitectureError):
                adapter.build(config)
            return
        network = adapter.build(config)
        network.load_state_dict(state, strict=True)
        built = header_of(network.state_dict())
        assert built.tensors == header.tensors

    def test_an_unusable_configuration_is_refused(self, adapter: Any) -> None:
        with pytest.raises(ArchitectureError):
            adapter.build({"no_such_key_of_any_family": object.__name__})


def _equal_bits(first: Any, second: Any) -> bool:
    import torch

    def bits(value: Any) -> Any:
        flat = value.detach().contiguous().reshape(-1)
        return flat.view(torch.uint8) if flat.numel() else flat

    return torch.equal(bits(first), bits(second))
