"""Every built-in tokenizer keeps the contract of tokenizers, with every setting that changes how it cuts or codes."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.plugins import load_plugins
from zooplatform.testing import IndexTokenizerContract, TokenizerContract
from zooplatform.testing.index_tokenizers import training_states

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
_LEARNED = {"chunk_size": 4, "width": 32, "depth": 1, "steps": 60, "batch_size": 12}
# Settings of tokenizers of indices, and what gives them more bits.
INDEX_SETTINGS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "vq": [
        ({"base": "debug"}, {"codebook_size": 64}),
        ({"quantizer": "scalar", "mode": "layer", "codebook_size": 4}, {"codebook_size": 16}),
        (
            {"mode": "network", "chunk_size": 5, "codebook_size": 16, "normalise": "position"},
            {"levels": 3},
        ),
        ({"quantizer": "gumbel", "codebook_size": 16, **_LEARNED}, {"slots": 4}),
        (
            {"quantizer": "rvq", "codebook_size": 16, **_LEARNED, "network": "transformer"},
            {"levels": 3},
        ),
        ({"quantizer": "fsq", "fsq_levels": [4, 4], **_LEARNED}, {"slots": 3}),
    ],
}


def _cases(kind: str, settings: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    """Every tokenizer of a kind with each of its settings; None where they are not written yet."""
    names = [name for name in NAMES if REGISTRY.tokenizers.spec(name).token_kind == kind]
    return [(name, config) for name in names for config in settings.get(name, [None])]


@cache
def _fitted(name: str, settings: str) -> Any:
    """A tokenizer of indices, fitted once for all its tests."""
    tokenizer = REGISTRY.tokenizers.create(name)
    tokenizer.fit(training_states(), seed=0, config=json.loads(settings))
    return tokenizer


@pytest.mark.parametrize(
    ("name", "config"), _cases("float", SETTINGS), ids=lambda value: str(value)
)
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


@pytest.mark.parametrize(
    ("name", "config"), _cases("index", INDEX_SETTINGS), ids=lambda value: str(value)
)
class TestIndexContract(IndexTokenizerContract):
    population = True

    @pytest.fixture
    def make(self, name: str) -> Callable[[], Any]:
        return lambda: REGISTRY.tokenizers.create(name)

    @pytest.fixture
    def tokenizer(self, name: str, config: tuple[dict[str, Any], dict[str, Any]] | None) -> Any:
        if config is None:
            pytest.fail(f"tokenizer {name!r} has no settings here; write them")
        return _fitted(name, json.dumps(config[0]))

    @pytest.fixture
    def finer(self, name: str, config: tuple[dict[str, Any], dict[str, Any]]) -> Any:
        return _fitted(name, json.dumps({**config[0], **config[1]}))
