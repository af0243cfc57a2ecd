"""What networks do with fixed inputs: which changes are seen, and which are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from zooplatform.fitting import FitData, network_batches
from zooplatform.symmetry import permute
from zooplatform_sne.fields import smooth_fields
from zooplatform_sne.predictor import SnePredictor
from zooplatform_sne.responses import describe_responses, responses
from zooplatform_sne.tokens import StatisticsEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.datasets import WeightDataset
    from zooplatform.interfaces import NetworkBatch

    Batcher = Callable[..., NetworkBatch]
    Parts = tuple[WeightDataset, WeightDataset, WeightDataset]

NAMES = list(describe_responses())


def _cnn(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes),
    )  # fmt: skip


def _networks(number: int, classes: int = 4, gain: float = 1.0) -> list[nn.Sequential]:
    torch.manual_seed(0)
    found = [_cnn(classes) for _ in range(number)]
    with torch.no_grad():
        for network in found:
            for value in network.parameters():
                value.mul_(gain)
    return found


def _column(batch: NetworkBatch, name: str) -> torch.Tensor:
    return responses(batch)[:, NAMES.index(name)]


@torch.no_grad()
def test_they_are_what_the_network_answers(as_batch: Batcher) -> None:
    (network,) = _networks(1, gain=2.0)
    batch = as_batch(network)
    logits = network(smooth_fields(16, 16)[:, None]).double()
    logits = logits - logits.mean(dim=1, keepdim=True)
    moved = logits - logits.mean(dim=0)
    said = logits.softmax(dim=1)
    entropy = -(said * said.log()).sum(dim=1).mean() / torch.tensor(4.0).log()
    eigenvalues = torch.linalg.eigvalsh(moved.T @ moved)
    shares = eigenvalues / eigenvalues.sum()
    top = logits.topk(2, dim=1).values
    wanted = {
        "relu_spread": moved.square().mean().sqrt().log(),
        "relu_offset": logits.mean(dim=0).square().mean().sqrt().log(),
        "relu_entropy": entropy,
        "relu_confidence": said.max(dim=1).values.mean(),
        "relu_directions": 1 / (4 * shares.square().sum()),
        "relu_cubes": shares.pow(3).sum().log(),
        "relu_fourths": shares.pow(4).sum().log(),
        "relu_margin_q50": (top[:, 0] - top[:, 1]).quantile(0.5).log1p(),
        "read": torch.tensor(1.0),
    }
    for name, value in wanted.items():
        assert _column(batch, name).item() == pytest.approx(value.item(), abs=2e-4), name


@torch.no_grad()
def test_no_order_of_units_or_classes_is_seen(as_batch: Batcher) -> None:
    networks = _networks(3)
    batch = as_batch(*networks)
    before = responses(batch)
    moved = permute(batch.weights, batch.vector, torch.Generator().manual_seed(0))
    assert not torch.equal(moved, batch.weights)
    torch.testing.assert_close(responses(batch._replace(weights=moved)), before, atol=1e-4, rtol=0)
    for network in networks:
        order = torch.tensor([2, 0, 3, 1])
        network[6].weight.copy_(network[6].weight[order])
        network[6].bias.copy_(network[6].bias[order])
    other = as_batch(*networks)
    torch.testing.assert_close(responses(other), before, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_network_that_answers_always_the_same_says_nothing_of_its_input(
    as_batch: Batcher,
) -> None:
    network, other = _networks(2, gain=3.0)
    network[6].weight.zero_()
    batch = as_batch(network, other)
    assert _column(batch, "relu_entropy_of_choices")[0] == 0
    for name in ("relu_information", "saturating_information"):
        silent, telling = _column(batch, name).tolist()
        assert silent == pytest.approx(0, abs=1e-6)
        assert telling > 1e-3


@torch.no_grad()
def test_they_are_numbers_whatever_the_weights_are(as_batch: Batcher) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(30, 16), nn.Linear(16, 16)

    for networks in (_networks(2, gain=1e12), _networks(2, gain=0.0), _networks(2, classes=1)):
        assert responses(as_batch(*networks)).isfinite().all()
    assert not responses(as_batch(Words(), Words())).any()
    one = as_batch(*_networks(1))
    double = responses(one._replace(weights=one.weights.double()))
    torch.testing.assert_close(double, responses(one), atol=1e-5, rtol=0)


def test_the_inputs_of_stored_predictors_stay_what_they_are() -> None:
    fields = smooth_fields(16, 16)
    assert fields.shape == (16, 16, 16)
    assert [round(value, 4) for value in fields[:3].mean(dim=(1, 2)).tolist()] == [
        0.5338, 0.2499, 0.465,
    ]  # fmt: skip
    assert torch.equal(smooth_fields(8, 16), fields[:8])
    assert not torch.equal(smooth_fields(8, 16, seed=1), fields[:8])


@torch.no_grad()
def test_they_are_one_more_token(as_batch: Batcher) -> None:
    batch = as_batch(*_networks(6))
    torch.manual_seed(0)
    encoder = StatisticsEncoder(dim=8, responses=True).eval()
    prepared = encoder.prepare(batch)
    encoder.calibrate([(prepared, batch.vector)])
    assert encoder.answers is not None
    torch.testing.assert_close(encoder.answers.median, prepared["responses"].quantile(0.5, dim=0))
    before = encoder(prepared, batch.vector)
    changed = prepared | {"responses": prepared["responses"].roll(1, dims=0)}
    assert (encoder(changed, batch.vector) - before).abs().max() > 1e-3
    assert "responses" not in StatisticsEncoder(dim=8).prepare(batch)


def test_companions_read_them_where_they_are_told_to(digit_parts: Parts) -> None:
    train, validation, test = digit_parts
    found = []
    for told in (False, True):
        predictor = SnePredictor()
        predictor.fit(
            FitData(train=train, validation=validation),
            target="test_accuracy",
            config={
                "base": "debug", "epochs": 1, "trees": 1.0, "perceptron": 1.0, "companion_responses": told,
            },
            seed=0,
        )  # fmt: skip
        _, batch = next(network_batches(test))
        found.append(predictor.predict(batch))
    assert not torch.equal(*found)
