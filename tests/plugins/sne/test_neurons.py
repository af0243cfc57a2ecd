"""Neuron tokens: incoming rows, biases and outgoing columns of any architecture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import zooplatform as zoo
from zooplatform.errors import ConfigError
from zooplatform.interfaces import NetworkBatch
from zooplatform.layout import VectorLayout
from zooplatform.testing import header_of
from zooplatform_sne.neurons import NeuronEncoder, NeuronSettings
from zooplatform_sne.sets import SetSettings

SMALL = NeuronSettings(sets=SetSettings(dim=16, heads=2, depth=1), width=20)
MLP = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
CNN = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))
OTHERS = nn.ModuleDict(
    {
        "embedding": nn.Embedding(11, 6),
        "attention": nn.MultiheadAttention(6, 2),
        "norm": nn.LayerNorm(6),
        "rnn": nn.LSTM(6, 4),
        "scale": nn.ParameterList([torch.ones(())]),
    }
)


def encoder(**given: Any) -> NeuronEncoder:
    torch.manual_seed(0)
    return NeuronEncoder(replace(SMALL, **given)).eval()


def batch_of(network: nn.Module, number: int = 3) -> NetworkBatch:
    """Random networks of the architecture of `network`."""
    header = header_of(network.state_dict())
    layers = zoo.load_plugins().architectures.create("generic").layers(header)
    vector = VectorLayout(header.tensors, layers)
    weights = torch.randn(number, vector.width, generator=torch.Generator().manual_seed(1)) / 4
    return NetworkBatch(weights, vector)


def encode(model: NeuronEncoder, batch: NetworkBatch) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(model.prepare(batch), batch.vector)
    return result


@pytest.mark.parametrize("width", [1, 5, 20, 100])
def test_every_weight_of_every_architecture_counts(width: int) -> None:
    model = encoder(width=width).train()
    for network in (MLP, CNN, OTHERS):
        batch = batch_of(network)
        weights = batch.weights.requires_grad_()
        codes = model(model.prepare(batch), batch.vector)
        assert codes.shape == (3, 16)
        codes.square().sum().backward()
        assert weights.grad is not None
        assert bool((weights.grad != 0).all())
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter


def test_features_by_hand() -> None:
    """The units of an MLP: lengths of rows and columns, biases, and whether there is a column."""
    batch = batch_of(MLP, 1)
    state = batch.weights[0].split([48, 6, 18, 3])
    rows, columns, outputs = state[0].view(6, 8), state[2].view(3, 6), state[2].view(3, 6)
    expected = torch.zeros(9, 4)
    expected[:6, 0], expected[6:, 0] = rows.norm(dim=1).log(), outputs.norm(dim=1).log()
    expected[:6, 1] = columns.norm(dim=0).log()
    expected[:6, 2], expected[6:, 2] = (5 * state[1]).asinh(), (5 * state[3]).asinh()
    expected[:6, 3] = 1
    features = encoder().prepare(batch)["features"][0]
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_columns_of_a_flattened_map() -> None:
    """A channel feeds a block of positions of every output."""
    batch = batch_of(CNN, 1)
    linear = batch.vector.by_name["3.weight"]
    matrix = batch.weights[0, linear.offset : linear.offset + 180].view(5, 4, 9)
    features = encoder().prepare(batch)["features"][0]
    torch.testing.assert_close(features[:4, 1], matrix.norm(dim=(0, 2)).log(), atol=1e-4, rtol=1e-4)


def test_units_of_a_layer_are_a_set() -> None:
    """Hidden units in another order: without attention to rows of the next layer, codes are the same.

    With rows of length 1 behind them nothing else changes, but for the order inside that one row; so the next layer is
    cut away by reading a network that ends in the units.
    """
    batch = batch_of(nn.Sequential(nn.Linear(8, 6)))
    order = torch.randperm(6)
    weights = torch.cat(
        [batch.weights[:, :48].view(3, 6, 8)[:, order].flatten(1), batch.weights[:, 48:][:, order]],
        1,
    )
    model = encoder()
    torch.testing.assert_close(
        encode(model, batch), encode(model, batch._replace(weights=weights)), atol=1e-6, rtol=1e-5
    )


def test_a_wide_piece_is_a_linear_map_of_the_padded_row() -> None:
    model = encoder(width=20)
    rows = torch.randn(4, 8)
    inner = model.row.piece(functional.pad(rows, (0, 12))) + model.row.place(1)
    torch.testing.assert_close(model.row(rows), model.row.out(functional.gelu(inner)))


def test_the_order_along_a_row_counts() -> None:
    batch = batch_of(MLP)
    turned = batch.weights.clone()
    turned[:, :48] = batch.weights[:, :48].view(3, 6, 8).flip(-1).flatten(1)
    for width in (20, 1):
        model = encoder(width=width)
        other = encode(model, batch._replace(weights=turned))
        assert bool(((encode(model, batch) - other).abs().max(1).values > 5e-5).all())


def test_without_columns_there_are_fewer_parameters() -> None:
    assert encoder(columns=False).column is None
    batch = batch_of(MLP)
    assert bool((encoder(columns=False).prepare(batch)["features"][:, :, 3] == 0).all())


def test_blocks_change_neither_codes_nor_gradients() -> None:
    batch = batch_of(CNN, 5)
    whole, blocks = (encoder(max_rows=m, width=6) for m in (65_536, 7))
    grads = []
    for model in (whole, blocks):
        model(model.prepare(batch), batch.vector).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(encode(whole, batch), encode(blocks, batch), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-4)


def test_without_values_there_is_nothing_to_encode() -> None:
    header = header_of({"steps": torch.ones(3, dtype=torch.int64), "w": torch.empty(0)})
    with pytest.raises(ConfigError, match="no floating-point value"):
        encoder().prepare(NetworkBatch(torch.empty(1, 0), VectorLayout(header.tensors)))


@pytest.mark.parametrize(
    ("given", "text"),
    [({"width": 0}, "width is 0"), ({"columns": 2}, "columns is 2"), ({"gain": 0}, "gain is 0")],
)
def test_settings_are_checked(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(SMALL, **given)
