"""The contract of architecture adapters, on networks of this plugin."""

from __future__ import annotations

import json

import pytest
import torch

import zooplatform as zoo
from zooplatform.testing import ArchitectureContract
from zooplatform_cnn.adapter import CnnAdapter


@pytest.fixture
def network():
    config = {"preset": "tiny_zoo", "activation": "gelu", "dropout": 0.5}
    return CnnAdapter().build(config).eval()


class TestContract(ArchitectureContract):
    @pytest.fixture
    def adapter(self, zoo_registry):
        return zoo_registry.architectures.create("cnn")

    @pytest.fixture
    def config(self, network):
        return network.config

    @pytest.fixture
    def state(self, network):
        return network.state_dict()


class TestContractOfResidualNetworks(TestContract):
    @pytest.fixture
    def network(self):
        config = {"preset": "resnet_small", "blocks": [1, 2], "widths": [4, 8], "size": 16}
        return CnnAdapter().build(config).eval()


def test_a_checkpoint_in_a_catalog_is_built_again(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "net.pt")
    (tmp_path / "config.json").write_text(json.dumps(network.config))
    catalog = zoo.open_catalog(tmp_path / "zoo", create=True)
    report = catalog.ingest(str(tmp_path / "net.pt"))
    (checkpoint,) = report.checkpoint_ids
    (row,) = catalog.sql("SELECT adapter, family, name FROM architectures").to_pylist()
    assert row == {"adapter": "cnn", "family": "cnn", "name": "conv8-conv6-conv4-linear20-linear10"}
    rebuilt = catalog.build(checkpoint)
    x = torch.randn(3, 1, 28, 28)
    assert torch.equal(rebuilt(x), network(x))
