"""Every built-in architecture adapter keeps the contract of adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.plugins import load_plugins
from zooplatform.testing import ArchitectureContract

if TYPE_CHECKING:
    from collections.abc import Callable

REGISTRY = load_plugins()
NAMES = [
    name
    for name in REGISTRY.architectures
    if REGISTRY.architectures.owner(name).distribution == "zooplatform"
]


def cnn() -> tuple[Any, dict[str, Any]]:
    config = {"preset": "tiny_zoo", "activation": "tanh"}
    return REGISTRY.architectures.create("cnn").build(config).state_dict(), config


def generic() -> tuple[Any, dict[str, Any]]:
    from torch import nn

    return nn.LSTM(3, 4).state_dict(), {}


def timm() -> tuple[Any, dict[str, Any]]:
    from timm import create_model

    config = {"architecture": "test_resnet", "num_classes": 4}
    return create_model("test_resnet", num_classes=4).state_dict(), config


CASES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "cnn": cnn,
    "generic": generic,
    "timm": timm,
}


@pytest.mark.parametrize("name", NAMES)
class TestContract(ArchitectureContract):
    @pytest.fixture
    def case(self, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
        if name not in CASES:
            pytest.fail(f"architecture {name!r} has no case here; write one")
        # The generic adapter knows every layout and builds none.
        monkeypatch.setattr(type(self), "builds", name != "generic")
        return CASES[name]()

    @pytest.fixture
    def adapter(self, name: str, case: object) -> Any:
        return REGISTRY.architectures.create(name)

    @pytest.fixture
    def state(self, case: tuple[Any, dict[str, Any]]) -> Any:
        return case[0]

    @pytest.fixture
    def config(self, case: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
        return case[1]
