"""The contract of architecture adapters, on networks that no other adapter knows."""

from __future__ import annotations

import pytest
from torch import nn

from zooplatform.testing import ArchitectureContract


class TestContract(ArchitectureContract):
    builds = False

    @pytest.fixture
    def adapter(self, zoo_registry):
        return zoo_registry.architectures.create("generic")

    @pytest.fixture
    def state(self):
        return nn.TransformerEncoderLayer(8, 2, 16).state_dict()


class TestContractOfRecurrentNetworks(TestContract):
    @pytest.fixture
    def state(self):
        return nn.LSTM(3, 4, num_layers=2).state_dict()
