"""A Hub on the loopback with one small model, and sources that ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from zooplatform.testing.hub import LoopbackHub
from zooplatform_hf.patience import Patience
from zooplatform_hf.source import HubSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

    from zooplatform.interfaces import Checkpoint

CARD = b"""---
license: apache-2.0
library_name: timm
pipeline_tag: image-classification
base_model: google/bert
base_model_relation: finetune
tags: [tiny, test]
language: en
datasets: [imagenet-1k, org/own]
model-index:
- name: net
  results:
  - task: {type: image-classification}
    dataset: {type: imagenet-1k, name: ImageNet, split: validation}
    metrics:
    - {type: accuracy, value: 78.5}
    - {type: loss, value: 1.25}
    - {type: f1, value: unknown}
  - task: {type: image-classification}
    dataset: {type: cifar10, name: CIFAR-10}
    metrics:
    - {type: accuracy, value: 0.5}
---
# A net
"""


class MakeSource(Protocol):
    def __call__(self, **settings: Any) -> HubSource: ...


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads these when it is imported, which another test may have done."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """170 kB of weights in three dtypes."""
    import torch

    generator = torch.Generator().manual_seed(7)
    return {
        "conv.weight": torch.randn(64, 32, 3, 3, generator=generator),
        "fc.weight": torch.randn(100, 500, generator=generator).bfloat16(),
        "counter": torch.tensor(41),
    }


@pytest.fixture
def weights(state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """`state` as a safetensors file."""
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def net(hub: LoopbackHub, weights: Path) -> str:
    """The repository `org/net`, whole."""
    files = {
        "README.md": CARD,
        "config.json": b'{"architecture": "tiny", "num_classes": 10}',
        "model.safetensors": weights,
    }
    hub.store.repo("org/net", files)
    return "org/net"


@pytest.fixture
def make_source(hub: LoopbackHub, tmp_path: Path) -> MakeSource:
    """Sources with a cache of the test's own and the patience of a test."""

    def make(**settings: Any) -> HubSource:
        patience = Patience(timeout=0.5, tries=3, first_wait=0.01, longest_wait=0.05)
        chosen = {"endpoint": hub.url, "cache_dir": tmp_path / "cache", "patience": patience}
        return HubSource(**(chosen | settings))

    return make


@pytest.fixture
def source(make_source: MakeSource) -> HubSource:
    return make_source()


@pytest.fixture
def assert_holds(state: dict[str, torch.Tensor]) -> Callable[[Checkpoint], None]:
    """Checks that a checkpoint holds every tensor of `state`, bit for bit, and nothing else."""
    import torch

    def check(checkpoint: Checkpoint) -> None:
        assert {spec.name for spec in checkpoint.header.tensors} == set(state)
        for name, tensor in state.items():
            expected = tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            assert bytes(checkpoint.buffer(name)) == expected
        checkpoint.verify()

    return check
