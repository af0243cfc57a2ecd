"""The encoder of the paper: what it sees of a network, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import zooplatform as zoo
from zooplatform.errors import ConfigError
from zooplatform.interfaces import NetworkBatch
from zooplatform.layout import VectorLayout
from zooplatform.testing import header_of, sample_population
from zooplatform_sne import chunks as chunk_module
from zooplatform_sne.chunks import ChunkEncoder, ChunkSettings
from zooplatform_sne.invariance import InvarianceSettings
from zooplatform_sne.sets import SetSettings

SMALL = ChunkSettings(sets=SetSettings(dim=16, heads=2), chunk_size=8)
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "linear": {"chunk_map": "linear"},
    "isab": {"sets": SetSettings(dim=16, heads=2, set_module="isab", inducing=4)},
    "deepsets": {"sets": SetSettings(dim=16, heads=2, set_module="deepsets")},
    "post norm": {"sets": SetSettings(dim=16, heads=2, norm="post", seeds=3)},
    "std": {"scaling": "std"},
    "all encodings": {"chunk_position": True},
    "no encodings": {"layer_type": False, "layer_depth": False},
    "kernels": {"kernels": True, "bias": "appended"},
    "flat": {"neuron_rows": False, "bias": "appended", "scaling": "none"},
}


def encoder(**given: Any) -> ChunkEncoder:
    torch.manual_seed(0)
    return ChunkEncoder(replace(SMALL, **given)).eval()


def batch_of(network: nn.Module, number: int = 3) -> NetworkBatch:
    """Random networks of the architecture of `network`."""
    header = header_of(network.state_dict())
    layers = zoo.load_plugins().architectures.create("generic").layers(header)
    vector = VectorLayout(header.tensors, layers)
    weights = torch.randn(number, vector.width, generator=torch.Generator().manual_seed(1)) / 4
    return NetworkBatch(weights, vector)


def encode(model: ChunkEncoder, batch: NetworkBatch) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(model.prepare(batch), batch.vector)
    return result


LINEAR = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
CONV = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))
OTHERS = nn.ModuleDict(
    {
        "embedding": nn.Embedding(11, 6),
        "attention": nn.MultiheadAttention(6, 2),
        "norm": nn.LayerNorm(6),
        "rnn": nn.LSTM(6, 4),
        "scale": nn.ParameterList([torch.ones(())]),
    }
)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_reads_every_architecture(name: str) -> None:
    """One encoder, three architectures; all weights and all parameters matter."""
    model = encoder(**VARIANTS[name]).train()
    for network in (LINEAR, CONV, OTHERS):
        batch = batch_of(network)
        batch.weights.requires_grad_()
        prepared = model.prepare(batch)
        assert all(len(rows) == 3 and rows.dtype == torch.float32 for rows in prepared.values())
        codes = model({k: v.requires_grad_() for k, v in prepared.items()}, batch.vector)
        assert codes.shape == (3, 16)
        codes.square().sum().backward()
        grad = prepared["chunks"].grad
        assert grad is not None
        assert bool((grad[prepared["chunks"] != 0] != 0).all())
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter


def swapped(batch: NetworkBatch, first: int, second: int, length: int) -> NetworkBatch:
    """With two stretches of every network's weights exchanged."""
    weights = batch.weights.clone()
    weights[:, first : first + length] = batch.weights[:, second : second + length]
    weights[:, second : second + length] = batch.weights[:, first : first + length]
    return batch._replace(weights=weights)


@pytest.mark.parametrize("chunk_map", ["sets", "linear"])
def test_two_swapped_chunks_need_the_position(chunk_map: str) -> None:
    batch = batch_of(LINEAR)
    other = swapped(batch, 0, 16, 8)  # rows of the first and third neuron
    without = encoder(chunk_map=chunk_map)
    torch.testing.assert_close(encode(without, batch), encode(without, other), atol=1e-6, rtol=1e-5)
    with_it = encoder(chunk_map=chunk_map, chunk_position=True)
    moved = (encode(with_it, batch) - encode(with_it, other)).abs().max(dim=1).values
    assert bool((moved > 5e-5).all())


def test_values_in_a_chunk_are_a_set_as_published() -> None:
    batch = batch_of(LINEAR)
    other = swapped(batch, 0, 3, 2)  # within the row of the first neuron
    sets, linear = encoder(), encoder(chunk_map="linear")
    torch.testing.assert_close(encode(sets, batch), encode(sets, other), atol=1e-6, rtol=1e-5)
    assert bool(((encode(linear, batch) - encode(linear, other)).abs() > 1e-4).any())


@pytest.mark.parametrize("switch", [True, False])
def test_layers_are_told_apart_by_their_depth(switch: bool) -> None:
    """Two equal linear layers whose weights change places."""
    batch = batch_of(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)))
    other = swapped(batch, 0, 72, 72)
    model = encoder(layer_depth=switch)
    moved = (encode(model, batch) - encode(model, other)).abs().max()
    assert bool(moved > 5e-5) is switch


def test_depth_and_type_are_told_with_the_layers_too() -> None:
    model, batch, seen = encoder(), batch_of(CONV), []
    model.layer.register_forward_hook(lambda *call: seen.append(call[2]))
    model.phi5.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encode(model, batch)
    codes = model._layer_codes(chunk_module._cutting(batch.vector, model.rule), torch.device("cpu"))
    assert bool((codes != 0).all())
    torch.testing.assert_close(seen[1] - seen[0], codes.expand(3, -1, -1), atol=1e-6, rtol=1e-5)


def test_the_layer_type_counts() -> None:
    """A convolution with 1 x 1 kernels and a linear layer hold the same numbers."""
    linear = batch_of(nn.Sequential(nn.Linear(8, 8)))
    conv = batch_of(nn.Sequential(nn.Conv2d(8, 8, 1)))
    for switch in (True, False):
        model = encoder(layer_type=switch, neuron_rows=False)
        same = torch.allclose(encode(model, linear), encode(model, conv), atol=1e-6)
        assert same is not switch


def test_the_spread_of_a_layer_counts_with_std_scaling() -> None:
    batch = batch_of(LINEAR)
    larger = batch._replace(weights=batch.weights * 4)  # by a power of two: chunks stay the same
    model = encoder(scaling="std")
    assert torch.equal(model.prepare(batch)["chunks"], model.prepare(larger)["chunks"])
    assert not torch.allclose(encode(model, batch), encode(model, larger), atol=1e-3)


@pytest.mark.parametrize("chunk_map", ["sets", "linear"])
def test_blocks_change_neither_codes_nor_gradients(chunk_map: str) -> None:
    batch = batch_of(CONV, 5)
    whole, blocks = (encoder(chunk_map=chunk_map, max_chunks=m) for m in (8192, 7))
    grads = []
    for model in (whole, blocks):
        codes = model(model.prepare(batch), batch.vector)
        codes.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(encode(whole, batch), encode(blocks, batch), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-4)


def test_large_layers_attend_in_parts() -> None:
    """Sets within `max_set` are whole; beyond it the parts attend within themselves, all weights counting."""
    batch = batch_of(LINEAR)
    whole, same, parts = (encoder(max_set=m) for m in (1024, 12, 4))
    assert torch.equal(encode(whole, batch), encode(same, batch))
    assert not torch.allclose(encode(whole, batch), encode(parts, batch), atol=1e-5)
    prepared = {k: v.requires_grad_() for k, v in parts.prepare(batch).items()}
    parts(prepared, batch.vector).square().sum().backward()
    grad = prepared["chunks"].grad
    assert grad is not None
    assert bool((grad[prepared["chunks"] != 0] != 0).all())


def test_a_network_does_not_depend_on_its_batch() -> None:
    batch = batch_of(CONV, 4)
    model = encoder(max_chunks=50)
    alone = encode(model, batch._replace(weights=batch.weights[2:3]))
    torch.testing.assert_close(alone, encode(model, batch)[2:3], atol=1e-6, rtol=1e-5)


def test_padded_chunks_are_the_masked_sets_of_the_paper() -> None:
    """Chunks without padding in batches of one length, against all chunks padded and masked."""
    batch = batch_of(CONV)
    model = encoder(neuron_rows=True, layer_type=False, layer_depth=False)
    chunks = model.prepare(batch)["chunks"]
    cutting = chunk_module._cutting(batch.vector, model.rule)
    real = cutting.by_length
    mask = torch.zeros(chunks.shape[1:], dtype=torch.bool)
    for length, members in real:
        mask[members, :length] = True
    assert int(mask.sum()) == batch.vector.width
    assert len(real) > 2
    flat, masks = chunks.flatten(0, 1), mask.repeat(len(chunks), 1)
    with torch.no_grad():
        expected = model.psi2(model.phi1(model.value(flat[:, :, None]), masks), masks)
        found = model._encode_chunks(cutting, chunks, torch.zeros(len(cutting.spans), 16))
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    batch = batch_of(CONV.to(torch.float32))
    header = header_of(nn.Sequential(nn.Linear(8, 4)).to(dtype).state_dict())
    vector = VectorLayout(header.tensors)
    weights = (torch.randn(2, vector.width) / 4).to(dtype)
    model = encoder()
    assert encode(model, NetworkBatch(weights, vector)).isfinite().all()
    assert encode(model, batch).isfinite().all()


def test_a_real_population() -> None:
    """Networks of the sample population differ, and the bias is in."""
    population = sample_population()
    vector = VectorLayout(population.layout)
    weights = torch.from_numpy(population.weights).float()
    codes = encode(encoder(), NetworkBatch(weights, vector))
    assert bool((torch.pdist(codes) > 1e-5).all())


def test_without_values_there_is_nothing_to_encode() -> None:
    header = header_of({"steps": torch.ones(3, dtype=torch.int64)})
    vector = VectorLayout((*header.tensors, *header_of({"w": torch.empty(0)}).tensors))
    with pytest.raises(ConfigError, match="no floating-point value"):
        encoder().prepare(NetworkBatch(torch.empty(1, 0), vector))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"chunk_map": "conv"}, "sets or linear"),
        ({"bias": "none"}, "separate or appended"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"max_chunks": 0}, "max_chunks is 0"),
        ({"layer_type": 1}, "layer_type is 1"),
        ({"scaling": "log"}, "scaling is 'log'"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(SMALL, **given)


def test_training_learns_a_property() -> None:
    """The spread of the weights, which the code has to hold, in a few steps."""
    model = encoder(chunk_map="linear", invariance=InvarianceSettings()).train()
    head = nn.Linear(16, 1)
    batch = batch_of(LINEAR, 64)
    scale = torch.linspace(0.2, 2, 64)
    batch = batch._replace(weights=batch.weights * scale[:, None])
    prepared = model.prepare(batch)
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(80):
        loss = (head(model(prepared, batch.vector))[:, 0] - scale).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1 * float(scale.var())
