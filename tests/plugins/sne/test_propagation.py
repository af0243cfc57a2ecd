"""Vectors sent through the weights: exact invariance, and what they do tell apart."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from zooplatform.errors import ConfigError
from zooplatform.interfaces import NetworkBatch, TensorSpec
from zooplatform.layout import VectorLayout
from zooplatform_sne.chains import plan_of
from zooplatform_sne.propagation import PropagationEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    Batcher = Callable[..., NetworkBatch]


def _pooled_cnn() -> nn.Sequential:
    """Convolutions, global pooling, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10),
    )  # fmt: skip


def _flattened_cnn() -> nn.Sequential:
    """Convolution with batch normalisation, a flattened 3 x 2 map, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.AdaptiveMaxPool2d((3, 2)),
        nn.Flatten(), nn.Linear(36, 7), nn.Tanh(), nn.Linear(7, 4),
    )  # fmt: skip


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))


class _Transformer(nn.Module):
    def __init__(self, dim: int = 16, words: int = 30) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, dim)
        self.attention_in, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)


CASES = {
    "pooled": (_pooled_cnn, (2, 1, 12, 12), [(0, None, 2), (2, None, 6)]),
    "flattened": (_flattened_cnn, (2, 3, 9, 9), [(0, 1, 5), (5, None, 7)]),
    "mlp": (_mlp, (2, 4), [(0, None, 2), (2, None, 4)]),
}


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = make().eval()
    for name, value in module.state_dict().items():
        if "running" in name:  # as after training
            value.copy_(torch.rand_like(value) + 0.5)
        elif value.ndim == 1 and value.is_floating_point():
            value.copy_(torch.randn_like(value))
    return module


def _permuted(net: nn.Module, groups: list[tuple[int, int | None, int]]) -> nn.Module:
    """The same function with hidden units in another order: (layer, its normalisation, the layer that reads it)."""
    net = copy.deepcopy(net)
    state = net.state_dict()
    for layer, norm, reader in groups:
        order = torch.randperm(len(state[f"{layer}.weight"]))
        for at in (layer, norm):
            for name, value in state.items():
                if name.startswith(f"{at}.") and value.ndim:
                    value.copy_(value[order].clone())
        read = state[f"{reader}.weight"]
        grouped = read.unflatten(1, (len(order), -1))
        read.copy_(grouped[:, order].clone().reshape(read.shape))
    return net


@pytest.fixture
def encoder() -> PropagationEncoder:
    torch.manual_seed(0)
    return PropagationEncoder(dim=32, units=16, rounds=2).eval()


def _embed(encoder: PropagationEncoder, batch: NetworkBatch) -> torch.Tensor:
    with torch.no_grad():
        return encoder(encoder.prepare(batch), batch.vector)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_hidden_units_changes_nothing(
    case: str, encoder: PropagationEncoder, as_batch: Batcher
) -> None:
    make, shape, groups = CASES[case]
    net = _seeded(make, 1)
    other = _permuted(net, groups)
    images = torch.randn(shape)
    torch.testing.assert_close(net(images), other(images), atol=1e-5, rtol=1e-4)
    batch = as_batch(net, other)
    assert not torch.equal(batch.weights[0], batch.weights[1])
    first, second = _embed(encoder, batch)
    assert (first - second).abs().max() < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_exchanging_units_on_one_side_only_is_another_network(
    case: str, encoder: PropagationEncoder, as_batch: Batcher
) -> None:
    make, _, groups = CASES[case]
    net, half = _seeded(make, 1), _seeded(make, 1)
    for layer, _, _ in groups[:1]:
        state = half.state_dict()
        state[f"{layer}.weight"].copy_(state[f"{layer}.weight"].flip(0).clone())
    first, second = _embed(encoder, as_batch(net, half))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("axis", [2, 3])
def test_kernel_positions_are_told_apart(
    axis: int, encoder: PropagationEncoder, as_batch: Batcher
) -> None:
    net, other = _seeded(_pooled_cnn, 1), _seeded(_pooled_cnn, 1)
    kernel = other.state_dict()["2.weight"]
    kernel.copy_(kernel.flip(axis).clone())
    first, second = _embed(encoder, as_batch(net, other))
    assert (first - second).abs().max() > 1e-4


def test_positions_of_a_flattened_map_are_told_apart(
    encoder: PropagationEncoder, as_batch: Batcher
) -> None:
    net, other = _seeded(_flattened_cnn, 1), _seeded(_flattened_cnn, 1)
    matrix = other.state_dict()["5.weight"]
    matrix.copy_(matrix.unflatten(1, (6, 6)).flip(2).flatten(1).clone())
    first, second = _embed(encoder, as_batch(net, other))
    assert (first - second).abs().max() > 1e-4


def test_every_value_of_a_network_counts(encoder: PropagationEncoder, as_batch: Batcher) -> None:
    batch = as_batch(_seeded(_flattened_cnn, 1))
    weights = batch.weights.clone().requires_grad_()
    prepared = encoder.prepare(batch._replace(weights=weights))
    embedded = encoder(prepared, batch.vector)
    (embedded * torch.arange(32.0)).sum().backward()
    assert weights.grad is not None
    assert (weights.grad != 0).all()


def test_one_encoder_reads_any_architecture(as_batch: Batcher) -> None:
    encoder = PropagationEncoder(dim=32, units=8)
    total = torch.zeros(())
    for make in (_pooled_cnn, _flattened_cnn, _mlp, _Transformer):
        batch = as_batch(_seeded(make, 0), _seeded(make, 1))
        embedded = encoder(encoder.prepare(batch), batch.vector)
        assert embedded.shape == (2, 32)
        assert not torch.allclose(embedded[0], embedded[1])
        total = total + embedded.square().sum()
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_a_network_does_not_see_its_batch(encoder: PropagationEncoder, as_batch: Batcher) -> None:
    batch = as_batch(*(_seeded(_pooled_cnn, seed) for seed in range(5)))
    together = _embed(encoder, batch)
    alone = torch.cat(
        [_embed(encoder, batch._replace(weights=batch.weights[at : at + 1])) for at in range(5)]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_half_precision_networks_are_read(encoder: PropagationEncoder, as_batch: Batcher) -> None:
    batch = as_batch(_seeded(_mlp, 0))
    half = as_batch(_seeded(_mlp, 0).to(torch.bfloat16))
    assert half.vector.dtype == "bfloat16"
    torch.testing.assert_close(_embed(encoder, batch), _embed(encoder, half), atol=0.1, rtol=0.1)


def test_statistic_tokens_can_be_added(as_batch: Batcher) -> None:
    encoder = PropagationEncoder(dim=16, units=8, statistics=True).eval()
    net = _seeded(_flattened_cnn, 1)
    batch = as_batch(net, _permuted(net, CASES["flattened"][2]), _seeded(_flattened_cnn, 2))
    prepared = encoder.prepare(batch)
    assert set(prepared) == {"weights", "statistics", "layers"}
    encoder.calibrate([(prepared, batch.vector)])
    first, same, other = encoder(prepared, batch.vector)
    assert (first - same).abs().max() < 1e-4
    assert (first - other).abs().max() > 1e-3


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_layers_that_fit_make_one_chain(as_batch: Batcher) -> None:
    plan = plan_of(as_batch(_flattened_cnn()).vector)
    ((conv, first, second),) = plan.chains
    assert (conv.outputs, conv.inputs, conv.kernel, conv.first) == (6, 3, (3, 3), True)
    # weight and bias of the convolution, then gain, shift, mean and variance of the normalisation
    assert conv.unit_values == (162, -1, 168, 174, 180, 186)
    assert (first.inputs, first.kernel, first.flattened) == (6, (6, 1), True)
    assert (second.outputs, second.inputs, second.flattened, second.last) == (4, 7, False, True)
    assert plan.loose == ()
    assert plan.num_tokens == 3


def test_square_maps_keep_their_two_axes(as_batch: Batcher) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4 * 9, 2))
    ((_, linear),) = plan_of(as_batch(net).vector).chains
    assert (linear.inputs, linear.kernel, linear.flattened) == (4, (3, 3), True)


def test_units_of_linear_layers_have_no_positions(as_batch: Batcher) -> None:
    plan = plan_of(as_batch(nn.Sequential(nn.Linear(3, 4), nn.Linear(8, 2))).vector)
    assert [len(chain) for chain in plan.chains] == [1, 1]
    assert not plan.chains[1][0].flattened


def test_what_does_not_chain_is_its_own(as_batch: Batcher) -> None:
    plan = plan_of(as_batch(_Transformer()).vector)
    # embedding, two attention matrices, and the two linear layers that follow each other
    assert [len(chain) for chain in plan.chains] == [1, 1, 1, 2]
    # a normalisation after attention belongs to no chain
    assert [loose.size for loose in plan.loose] == [16, 16]


def test_a_network_without_values_is_refused() -> None:
    spec = TensorSpec("count", "int64", (3,), 24)
    with pytest.raises(ConfigError, match="no floating-point value to read"):
        plan_of(VectorLayout((spec,)))
