"""Networks with their hidden units in another order give the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import zooplatform as zoo
from zooplatform.layout import VectorLayout, layout_of
from zooplatform.symmetry import hidden_groups, left_alone, permute
from zooplatform.testing import header_of

if TYPE_CHECKING:
    from collections.abc import Mapping

DIGITS = Path(__file__).parents[2] / "catalogs" / "digits"
PRESETS: dict[str, Mapping[str, Any]] = {
    "unterthiner": {"preset": "unterthiner", "activation": "relu"},
    "sne_arch2": {"preset": "sne_arch2", "activation": "tanh"},
    "tiny_zoo": {"preset": "tiny_zoo", "activation": "gelu"},
    "mlp": {"preset": "mlp", "widths": [6, 9, 7, 5, 3], "activation": "silu"},
    "resnet_small": {
        "preset": "resnet_small",
        "size": 8,
        "blocks": [2, 1, 1],
        "widths": [4, 6, 8],
        "activation": "relu",
    },
    "batch norm": {
        "input": [2, 8, 8],
        "activation": "tanh",
        "layers": [
            {"type": "conv", "out": 5, "kernel": 3, "bias": False},
            {"type": "batchnorm"},
            {"type": "activation"},
            {"type": "conv", "out": 4, "kernel": 3},
            {"type": "batchnorm"},
            {"type": "flatten"},
            {"type": "linear", "out": 6},
            {"type": "batchnorm"},
            {"type": "activation"},
            {"type": "linear", "out": 3},
        ],
    },
}


def built(config: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A network whose every tensor is random, running statistics included."""
    torch.manual_seed(seed)
    network = zoo.load_plugins().architectures.create("cnn").build(config)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) / 3
            )
    return network.eval()


def vector_of(network: nn.Module) -> VectorLayout:
    header = header_of(network.state_dict())
    layers = zoo.load_plugins().architectures.create("generic").layers(header)
    return VectorLayout(header.tensors, layers)


def weights_of(network: nn.Module, vector: VectorLayout) -> torch.Tensor:
    state = network.state_dict()
    return torch.cat([state[f.spec.name].flatten() for f in vector.fields if not f.aside])


def load(network: nn.Module, vector: VectorLayout, weights: torch.Tensor) -> None:
    state = network.state_dict()
    for f in vector.fields:
        if not f.aside:
            part = weights[f.offset : f.offset + f.spec.num_elements]
            state[f.spec.name] = part.reshape(f.spec.shape)
    network.load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", PRESETS)
def test_outputs_stay(name: str) -> None:
    network = built(PRESETS[name])
    vector = vector_of(network)
    weights = weights_of(network, vector)
    shape = network.config["input"]  # type: ignore[index]
    inputs = torch.randn(5, *shape)  # type: ignore[misc]
    with torch.no_grad():
        before = network(inputs)
        permuted = permute(weights.repeat(3, 1), vector, torch.Generator().manual_seed(1))
        for row in permuted:
            assert not torch.equal(row, weights)
            load(network, vector, row)
            torch.testing.assert_close(network(inputs), before, atol=1e-5, rtol=1e-5)
    assert not torch.equal(permuted[0], permuted[1])
    assert torch.equal(permuted.sort(dim=1).values, weights.sort().values.repeat(3, 1))


def test_trained_networks_of_a_catalog() -> None:
    """What the catalog builds gives the same outputs with another order of its hidden units."""
    catalog = zoo.open_catalog(DIGITS)
    population = catalog.population("select checkpoint_id from checkpoints order by 1 limit 3")
    weights = torch.as_tensor(population.weights)
    permuted = permute(weights, population.vector, torch.Generator().manual_seed(0))
    for row, name in enumerate(population.ids):
        network = catalog.build(name).eval()
        inputs = torch.randn(4, *network.config["input"])  # type: ignore[index,misc]
        with torch.no_grad():
            before = network(inputs)
            load(network, population.vector, permuted[row])
            torch.testing.assert_close(network(inputs), before, atol=1e-5, rtol=1e-5)
    assert not bool((permuted == weights).all(dim=1).any())


def test_each_group_is_permuted() -> None:
    """All hidden layers of a chain are found; a permutation of one alone changes its rows."""
    found = {}
    for name in ("unterthiner", "sne_arch2", "tiny_zoo", "mlp", "batch norm"):
        found[name] = [(g.units, g.block) for g in hidden_groups(vector_of(built(PRESETS[name])))]
    assert found == {
        "unterthiner": [(16, 9), (16, 9), (16, 1)],
        "sne_arch2": [(8, 9), (16, 9), (16, 9), (32, 1)],
        "tiny_zoo": [(8, 25), (6, 4), (4, 9), (20, 1)],
        "mlp": [(9, 1), (7, 1), (5, 1)],
        "batch norm": [(5, 9), (4, 16), (6, 1)],
    }


def test_only_units_inside_blocks_of_residual_networks() -> None:
    vector = vector_of(built(PRESETS["resnet_small"]))
    assert [g.layer for g in hidden_groups(vector)] == [
        "layer1.0.conv1",
        "layer1.1.conv1",
        "layer2.0.conv1",
        "layer3.0.conv1",
    ]
    kept = left_alone(vector)
    assert "blocks" in kept["conv1"]
    assert "blocks" in kept["layer1.0.conv2"]
    assert "outputs" in kept["fc"]


@pytest.mark.parametrize(
    ("layers", "layer", "reason"),
    [
        ([nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3)], "0", "no batch"),
        ([nn.Linear(2, 4), nn.PReLU(4), nn.Linear(4, 3)], "0", "no batch"),
        ([nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=2)], "0", "inputs"),
        ([nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 3, 3)], "1", "groups"),
        ([nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4)], "2", "outputs"),
    ],
)
def test_unknown_structure_is_left_alone(layers: list[nn.Module], layer: str, reason: str) -> None:
    network = nn.Sequential(*layers)
    assert reason in left_alone(vector_of(network))[layer]


def test_tensors_sorted_by_name_are_left_alone() -> None:
    """In such a file nothing says which normalisation follows which layer."""
    network = nn.ModuleDict(
        {
            "bn1": nn.BatchNorm1d(3),
            "bn2": nn.BatchNorm1d(3),
            "fc1": nn.Linear(3, 3),
            "fc2": nn.Linear(3, 3),
        }
    )
    state = network.state_dict()
    header = header_of({name: state[name] for name in sorted(state)})
    layers = zoo.load_plugins().architectures.create("generic").layers(header)
    vector = VectorLayout(header.tensors, layers)
    assert hidden_groups(vector) == ()
    assert "order" in left_alone(vector)["fc1"]


def test_nothing_to_permute_gives_a_copy() -> None:
    vector = VectorLayout(layout_of(nn.Linear(3, 2).state_dict()))
    weights = torch.randn(2, 8)
    result = permute(weights, vector, torch.Generator())
    assert torch.equal(result, weights)
    assert result is not weights


def test_the_generator_decides() -> None:
    vector = vector_of(built(PRESETS["mlp"]))
    weights = torch.randn(4, vector.width)
    once, again, other = (
        permute(weights, vector, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
