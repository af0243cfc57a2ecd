"""Real networks and populations through the tokenizers and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from torch import nn

from zooplatform import load_plugins, open_catalog
from zooplatform.layout import layout_of
from zooplatform.testing.tokenizers import same_bits

if TYPE_CHECKING:
    from pathlib import Path

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("chunk", {}),
    ("chunk", {"chunk_size": 100, "neuron_rows": True, "kernels": True, "scaling": "std"}),
    ("neuron", {}),
    ("neuron", {"width": 64, "scaling": "std"}),
]


@pytest.fixture(params=CONFIGS, ids=lambda given: f"{given[0]}-{len(given[1])}")
def tokenizer(request: pytest.FixtureRequest) -> Any:
    name, config = request.param
    made = load_plugins(strict=True).tokenizers.create(name)
    made.fit([], seed=0, config=config)
    return made


NETWORKS = {
    "resnet": lambda: timm.create_model("test_resnet", num_classes=4),
    "vit": lambda: timm.create_model("test_vit", num_classes=4),
    "lstm": lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True),
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "transposed": lambda: nn.ConvTranspose2d(3, 5, 2),
    "quantised weights": lambda: nn.Linear(4, 4).to(torch.bfloat16),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_come_back_exactly(tokenizer: Any, kind: str) -> None:
    torch.manual_seed(0)
    state = NETWORKS[kind]().state_dict()
    layout = layout_of(state)
    batch = tokenizer.encode(state, layout=layout)
    back = tokenizer.decode(batch, layout=layout)
    assert list(back) == list(state)
    assert all(same_bits(back[name], value) for name, value in state.items())
    assert batch.mask.sum() == sum(v.numel() for v in state.values() if v.is_floating_point())


def test_a_catalog_is_encoded_at_once(tokenizer: Any, checkout: Path) -> None:
    with open_catalog(checkout / "catalogs" / "digits") as catalog:
        population = catalog.population("SELECT checkpoint_id FROM checkpoints")
        layout, layers = population.layout, population.vector.layers()
        weights = population.weights.clone()
        states = [population.state_dict(row) for row in (0, len(population) - 1)]
    batch = tokenizer.encode_population(weights, layout=layout, layers=layers)
    assert len(batch.tokens) == len(weights) > 40
    assert set(batch.positions[0, :, 1].tolist()) == {layer.index for layer in layers}
    back, aside = tokenizer.decode_population(batch, layout=layout, layers=layers)
    assert same_bits(back, weights)
    assert aside is None
    for row, state in zip((0, -1), states, strict=True):
        one = tokenizer.encode(state, layout=layout, layers=layers)
        assert same_bits(one.tokens[0], batch.tokens[row])


def test_a_large_population_is_encoded_slab_by_slab(tokenizer: Any) -> None:
    # More values than are scaled at a time, and not a multiple of them.
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 50))
    layout = layout_of(net.state_dict())
    width = sum(v.numel() for v in net.state_dict().values() if v.is_floating_point())
    draw = torch.Generator().manual_seed(0)
    sizes = 10 ** torch.empty(4001, 1).uniform_(-3, 3, generator=draw)
    weights = torch.randn(4001, width, generator=draw) * sizes
    aside = torch.arange(4001 * 8).to(torch.uint8).view(4001, 8)
    batch = tokenizer.encode_population(weights, layout=layout, aside=aside)
    back, beside = tokenizer.decode_population(batch, layout=layout)
    assert same_bits(back, weights)
    assert beside is not None
    assert torch.equal(beside, aside)
    assert batch.mask.untyped_storage().nbytes() == batch.mask[0].numel(), "one mask for all"


def test_an_empty_population_is_encoded(tokenizer: Any) -> None:
    layout = layout_of({"fc.weight": torch.zeros(2, 3)})
    batch = tokenizer.encode_population(torch.empty(0, 6), layout=layout)
    assert len(batch.tokens) == 0
    assert tokenizer.decode_population(batch, layout=layout)[0].shape == (0, 6)


def test_networks_of_two_architectures_share_a_width(tokenizer: Any) -> None:
    first, second = nn.Linear(3, 4).state_dict(), nn.Conv2d(3, 5, 2).state_dict()
    tokenizer.fit([first, second], seed=0)
    widths = {
        tokenizer.encode(state, layout=layout_of(state)).tokens.shape[2]
        for state in (first, second)
    }
    assert len(widths) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("scaling", ["none", "std", "asinh"])
def test_a_population_on_a_gpu_gives_the_same_tokens(scaling: str) -> None:
    made = load_plugins(strict=True).tokenizers.create("chunk")
    made.fit([], seed=0, config={"scaling": scaling})
    layout = layout_of(nn.Linear(30, 40).state_dict())
    weights = torch.randn(100, 1240)
    here = made.encode_population(weights, layout=layout)
    there = made.encode_population(weights.cuda(), layout=layout)
    torch.testing.assert_close(there.tokens.cpu(), here.tokens)
    back, _ = made.decode_population(there, layout=layout)
    torch.testing.assert_close(back.cpu(), weights)
