"""Every built-in tokenizer keeps the contract of tokenizers, with every setting that changes how it cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.plugins import load_plugins
from zooplatform.testing import TokenizerContract

if TYPE_CHECKING:
    from collections.abc import Callable

REGISTRY = load_plugins()
NAMES = [
    name
    for name in REGISTRY.tokenizers
    if REGISTRY.tokenizers.owner(name).distribution == "zooplatform"
]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "chunk": [
        {},
        {"chunk_size": 1},
        {"chunk_size": 7},
        {"chunk_size": 5, "neuron_rows": True, "kernels": True},
    ],
    "neuron": [{}, {"width": 3}],
}
CASES = [(name, config) for name in NAMES for config in SETTINGS.get(name, [None])]


@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda value: str(value))
class TestContract(TokenizerContract):
    population = True

    @pytest.fixture
    def make(self, name: str) -> Callable[[], Any]:
        return lambda: REGISTRY.tokenizers.create(name)

    @pytest.fixture
    def tokenizer(self, name: str, config: dict[str, Any] | None) -> Any:
        if config is None:
            pytest.fail(f"tokenizer {name!r} has no settings here; write them")
        tokenizer = REGISTRY.tokenizers.create(name)
        tokenizer.fit([], seed=0, config=config)
        return tokenizer
