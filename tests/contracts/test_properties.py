"""Every registered property keeps the contract of properties."""

from __future__ import annotations

from typing import Any

import pytest

from zooplatform.plugins import load_plugins
from zooplatform.testing import PropertyContract

REGISTRY = load_plugins()


@pytest.mark.parametrize("name", [spec.name for _, spec in REGISTRY.properties])
class TestContract(PropertyContract):
    @pytest.fixture
    def compute(self, name: str) -> Any:
        return REGISTRY.property_function(name)
