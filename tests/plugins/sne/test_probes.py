"""Probes: what comes out is what the real network says, and nothing else is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional

from zooplatform.errors import ConfigError
from zooplatform.interfaces import NetworkBatch
from zooplatform.layout import VectorLayout
from zooplatform.symmetry import permute
from zooplatform_sne.probes import ProbeEncoder
from zooplatform_sne.reading import readable_chain

if TYPE_CHECKING:
    from collections.abc import Callable

    Batcher = Callable[..., NetworkBatch]


def _halving_cnn(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A network that is really computed as every network is read."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), activation(), nn.Conv2d(6, 5, 5, 2, 2), nn.BatchNorm2d(5),
        activation(), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(20, 7), activation(),
        nn.Linear(7, 4),
    )  # fmt: skip


def _pooled_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10),
    )  # fmt: skip


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def _trained(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = make()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))
    return network.eval()


def _encoder() -> ProbeEncoder:
    torch.manual_seed(0)
    return ProbeEncoder(dim=8, probes=4, side=8, hidden=16).eval()


def _read(encoder: ProbeEncoder) -> list[torch.Tensor]:
    """What the perceptron of `encoder` is given from now on."""
    seen: list[torch.Tensor] = []
    encoder.read[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    return seen


@pytest.mark.parametrize("make", [_halving_cnn, _pooled_cnn, _mlp])
@torch.no_grad()
def test_it_reads_what_the_network_says_about_the_probes(
    make: Callable[[], nn.Module], as_batch: Batcher
) -> None:
    networks = [_trained(make, seed) for seed in range(3)]
    encoder = _encoder()
    seen = _read(encoder)
    batch = as_batch(*networks)
    encoder(encoder.prepare(batch), batch.vector)
    shown = torch.sigmoid(2 * encoder.rate * encoder.inputs)
    channels = 3 if make is _pooled_cnn else 1
    inputs = shown[:, :channels]
    for row, network in enumerate(networks):
        logits = network(inputs.flatten(1) if make is _mlp else inputs)
        said = functional.log_softmax(logits, dim=-1).clamp(-12, 0)
        read = seen[0][row, : 4 * 10].view(4, 10)  # with ReLU comes first
        torch.testing.assert_close(read[:, : said.shape[1]], said, atol=1e-4, rtol=1e-4)
        assert not read[:, said.shape[1] :].any()


@torch.no_grad()
def test_the_other_reading_saturates(as_batch: Batcher) -> None:
    network = _trained(lambda: _halving_cnn(nn.Hardtanh), 1)
    encoder = _encoder()
    seen = _read(encoder)
    batch = as_batch(network)
    encoder(encoder.prepare(batch), batch.vector)
    said = functional.log_softmax(
        network(torch.sigmoid(2 * encoder.rate * encoder.inputs)[:, :1]), dim=-1
    )
    read = seen[0][0, 40:80].view(4, 10)[:, :4]
    torch.testing.assert_close(read, said.clamp(-12, 0), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_single_output_is_the_logit_of_one_class_against_another(as_batch: Batcher) -> None:
    networks = [
        _trained(lambda: nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1)), seed)
        for seed in range(2)
    ]
    encoder = _encoder()
    seen = _read(encoder)
    batch = as_batch(*networks)
    encoder(encoder.prepare(batch), batch.vector)
    inputs = torch.sigmoid(2 * encoder.rate * encoder.inputs)[:, :1].flatten(1)
    for row, network in enumerate(networks):
        logits = network(inputs)
        said = functional.logsigmoid(torch.cat([logits, -logits], dim=1)).clamp(-12, 0)
        read = seen[0][row, : 4 * 10].view(4, 10)
        torch.testing.assert_close(read[:, :2], said, atol=1e-4, rtol=1e-4)
        assert not read[:, 2:].any()
    with pytest.raises(ConfigError, match="classes is 1; use a whole number from 2"):
        ProbeEncoder(classes=1)


@pytest.mark.parametrize("make", [_halving_cnn, _pooled_cnn, _mlp])
@torch.no_grad()
def test_no_order_of_hidden_units_is_seen(make: Callable[[], nn.Module], as_batch: Batcher) -> None:
    batch = as_batch(*(_trained(make, seed) for seed in range(4)))
    moved = permute(batch.weights, batch.vector, torch.Generator().manual_seed(0))
    assert not torch.equal(moved, batch.weights)
    encoder = _encoder()
    before = encoder(encoder.prepare(batch), batch.vector)
    after = encoder(encoder.prepare(batch._replace(weights=moved)), batch.vector)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert (before[0] - before[1]).abs().max() > 1e-2


def test_probes_begin_as_fields_of_their_own() -> None:
    torch.manual_seed(0)
    begun = [torch.sigmoid(2 * 5.0 * ProbeEncoder(probes=4, side=8).inputs) for _ in range(2)]
    for shown in begun:
        assert torch.equal(shown[:, 0], shown[:, 2])  # grey
        # Neighbours are alike, as they are in images and not in noise.
        steps = shown[:, 0].diff(dim=2).square().mean(), shown[:, 0].var()
        assert steps[0] < 0.7 * steps[1]
    assert (begun[0] - begun[1]).abs().mean() > 0.1


def test_probes_are_learned(as_batch: Batcher) -> None:
    batch = as_batch(*(_trained(_halving_cnn, seed) for seed in range(40)))
    encoder = _encoder().train()
    encoder(encoder.prepare(batch), batch.vector).square().sum().backward()
    assert encoder.inputs.grad is not None
    assert encoder.inputs.grad[:, 0].abs().sum() > 0
    assert not encoder.inputs.grad[:, 1:].any()  # grey networks see one channel


@torch.no_grad()
def test_what_is_no_chain_is_not_asked(as_batch: Batcher) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(30, 16)
            self.attention_in, self.attention_out = nn.Linear(16, 48), nn.Linear(16, 16)

    batch = as_batch(*(_trained(Words, seed) for seed in range(2)))
    assert readable_chain(batch.vector) is None
    encoder = _encoder()
    found = encoder(encoder.prepare(batch), batch.vector)
    assert torch.equal(found[0], found[1])
    assert found.isfinite().all()


def test_networks_without_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="no floating-point value"):
        _encoder().prepare(NetworkBatch(torch.zeros(1, 0), VectorLayout(())))
