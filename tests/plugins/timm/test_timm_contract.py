"""The contract of architecture adapters, on a model of timm, and the way through a catalog."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import zooplatform as zoo
from zooplatform.testing import ArchitectureContract

NAME = "test_vit"


class TestContract(ArchitectureContract):
    @pytest.fixture
    def adapter(self, zoo_registry):
        return zoo_registry.architectures.create("timm")

    @pytest.fixture
    def config(self):
        return {"architecture": NAME, "num_classes": 4}

    @pytest.fixture
    def state(self):
        return timm.create_model(NAME, pretrained=False, num_classes=4).state_dict()


def test_a_checkpoint_in_a_catalog_is_built_again(tmp_path):
    model = timm.create_model(NAME, pretrained=False, num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME, "num_classes": 4}))
    catalog = zoo.open_catalog(tmp_path / "zoo", create=True)
    (checkpoint,) = catalog.ingest(str(tmp_path / "model.safetensors")).checkpoint_ids
    (row,) = catalog.sql("SELECT adapter, family, name FROM architectures").to_pylist()
    assert row == {"adapter": "timm", "family": "vision_transformer", "name": NAME}
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.inference_mode():
        assert torch.equal(catalog.build(checkpoint)(x), model(x))
