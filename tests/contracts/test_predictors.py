"""Every built-in predictor keeps the contract of predictors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.plugins import load_plugins
from zooplatform.testing import PredictorContract

if TYPE_CHECKING:
    from collections.abc import Callable

REGISTRY = load_plugins()
NAMES = [
    name
    for name in REGISTRY.predictors
    if REGISTRY.predictors.owner(name).distribution == "zooplatform"
]
# Predictors that take networks of one architecture only.
ONE_ARCHITECTURE = ("flat-linear", "flat-mlp")


@pytest.mark.parametrize("name", NAMES)
class TestContract(PredictorContract):
    @pytest.fixture
    def make(self, name: str) -> Callable[[], Any]:
        return lambda: REGISTRY.predictors.create(name)

    @pytest.fixture
    def config(self, make: Callable[[], Any]) -> dict[str, Any]:
        return dict(getattr(make(), "CONFIGS", {}).get("debug", {}))

    @pytest.fixture
    def families(self, name: str) -> tuple[str, ...]:
        return ("mlp",) if name in ONE_ARCHITECTURE else ("mlp", "cnn")
