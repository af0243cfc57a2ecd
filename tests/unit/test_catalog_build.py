"""Building networks that lie in the catalog: the outputs are the original's, or there is an error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

import zooplatform as zoo
from zooplatform.errors import ArchitectureError
from zooplatform.interfaces import CheckpointRecord, ModelInfo

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog

IMAGES = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return zoo.open_catalog(tmp_path / "catalog", create=True)


@pytest.fixture(scope="module")
def network() -> Any:
    import timm

    torch.manual_seed(0)
    return timm.create_model("resnet10t", pretrained=False, num_classes=7).eval()


def test_a_network_builds_whatever_came_before_it(
    catalog: Catalog, network: Any, tmp_path: Path
) -> None:
    """The same layout without a configuration came first, and settled what the architecture is called."""
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    (tmp_path / "repo").mkdir()
    save_file(network.state_dict(), tmp_path / "repo" / "model.safetensors")
    said = {"architecture": "resnet10t", "num_classes": 7}
    (tmp_path / "repo" / "config.json").write_text(json.dumps(said))
    (plain,) = catalog.ingest(tmp_path / "plain.safetensors").checkpoint_ids
    (told,) = catalog.ingest(tmp_path / "repo").checkpoint_ids
    assert torch.equal(catalog.build(told)(IMAGES), network(IMAGES))
    with pytest.raises(ArchitectureError, match=rf"^Checkpoint {plain}: .*config=\{{"):
        catalog.build(plain)


def test_a_network_of_which_nothing_is_known_is_not_built_as_another(
    catalog: Catalog, tmp_path: Path
) -> None:
    """The two differ in their activation, of which the weights tell nothing."""

    def config(activation: str) -> dict[str, Any]:
        layers = [
            {"type": "conv", "out": 3, "kernel": 3},
            {"type": "activation"},
            {"type": "flatten"},
            {"type": "linear", "out": 2},
        ]
        return {"input": [1, 4, 4], "activation": activation, "layers": layers}

    cnn = catalog.registry.architectures.create("cnn")
    relu, tanh = cnn.build(config("relu")).eval(), cnn.build(config("tanh")).eval()
    for name, module in (("relu", relu), ("tanh", tanh)):
        info = ModelInfo(key=name, name=name, source="test:")
        catalog.add_state_dicts(
            [module.state_dict()],
            [CheckpointRecord(model=info)],
            zoo="both",
            family="cnn",
            config=config(name),
        )
    rows = catalog.sql("select model, checkpoint_id from wide").to_pylist()
    ids = {row["model"]: row["checkpoint_id"] for row in rows}
    x = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
    assert torch.equal(catalog.build(ids["relu"])(x), relu(x))
    assert torch.equal(catalog.build(ids["tanh"])(x), tanh(x))
    exported = catalog.export(ids["tanh"], tmp_path / "unnamed.safetensors")
    (unknown,) = catalog.ingest(exported).checkpoint_ids
    with pytest.raises(ArchitectureError, match="can build this"):
        catalog.build(unknown)
    assert torch.equal(catalog.build(unknown, config=config("tanh"))(x), tanh(x))


def test_a_configuration_can_be_given(catalog: Catalog, network: Any, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    (checkpoint,) = catalog.ingest(tmp_path / "weights.pt").checkpoint_ids
    built = catalog.build(checkpoint, config={"architecture": "resnet10t"})
    assert torch.equal(built(IMAGES), network(IMAGES))
    with pytest.raises(ArchitectureError, match=r"No adapter knows it by .*resnet18"):
        catalog.build(checkpoint, config={"architecture": "resnet18"})


def test_an_activation_can_be_given(catalog: Catalog, tmp_path: Path) -> None:
    """Of a plain network it is all that the weights do not tell; the error says how to give it."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    torch.save(network.state_dict(), tmp_path / "mlp.pt")
    (checkpoint,) = catalog.ingest(tmp_path / "mlp.pt").checkpoint_ids
    with pytest.raises(ArchitectureError, match=r"build\(ID, config=\{'activation': 'relu'\}\)"):
        catalog.build(checkpoint)
    built = catalog.build(checkpoint, config={"activation": "tanh"})
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    assert torch.equal(built(x), network(x))


def test_a_training_checkpoint_names_its_model(
    catalog: Catalog, network: Any, tmp_path: Path
) -> None:
    """As the training scripts of timm and of torch's ImageNet example write it."""
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    nested = {"epoch": 3, "arch": "resnet10t", "state_dict": state, "optimizer": {"state": {}}}
    torch.save(nested, tmp_path / "model_best.pth.tar")
    (checkpoint,) = catalog.ingest(tmp_path / "model_best.pth.tar").checkpoint_ids
    assert torch.equal(catalog.build(checkpoint)(IMAGES), network(IMAGES))
