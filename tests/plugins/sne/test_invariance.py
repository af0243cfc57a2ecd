"""The logit-invariance term: its formula, and what it does in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zooplatform as zoo
from zooplatform.errors import ConfigError
from zooplatform.interfaces import NetworkBatch
from zooplatform.layout import VectorLayout
from zooplatform.testing import header_of
from zooplatform_sne.chunks import ChunkEncoder, ChunkSettings
from zooplatform_sne.invariance import InvarianceSettings, logit_invariance
from zooplatform_sne.neurons import NeuronEncoder, NeuronSettings
from zooplatform_sne.sets import SetSettings

SETS = SetSettings(dim=16, heads=2, depth=1)
MLP = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def batch_of(network: nn.Module, number: int = 8) -> NetworkBatch:
    header = header_of(network.state_dict())
    layers = zoo.load_plugins().architectures.create("generic").layers(header)
    vector = VectorLayout(header.tensors, layers)
    weights = torch.randn(number, vector.width, generator=torch.Generator().manual_seed(1)) / 2
    return NetworkBatch(weights, vector)


def encoder(**given: Any) -> ChunkEncoder:
    torch.manual_seed(0)
    settings = InvarianceSettings(**given)
    return ChunkEncoder(
        ChunkSettings(sets=SETS, chunk_size=8, chunk_map="linear", invariance=settings)
    )


def test_the_formula_by_hand() -> None:
    logits = torch.tensor([1.0, 3.0])  # variance 1
    moved = torch.tensor([[1.0, 5.0], [2.0, 3.0]])  # squares 0, 4, 1, 0
    assert float(logit_invariance(logits, moved)) == pytest.approx(5 / 4, rel=1e-3)
    assert float(logit_invariance(10 * logits, 10 * moved)) == pytest.approx(5 / 4, rel=1e-3)
    assert float(logit_invariance(logits, logits.expand(3, 2))) == 0


def test_equal_logits_and_a_batch_of_one_are_finite() -> None:
    one = torch.tensor([2.0], requires_grad=True)
    term = logit_invariance(one, torch.tensor([[2.5]]))
    term.backward()
    assert bool(term.isfinite())
    assert one.grad is not None
    assert bool(one.grad.isfinite().all())


def test_the_variance_is_a_constant_for_the_gradient() -> None:
    logits = torch.tensor([1.0, 3.0], requires_grad=True)
    logit_invariance(logits, torch.tensor([[1.0, 5.0]])).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([0.0, -2.0]), atol=1e-3, rtol=1e-3)


def test_the_term_is_lambda_times_the_formula() -> None:
    batch, head = batch_of(MLP), nn.Linear(16, 2)
    terms = []
    for strength in (1.0, 3.0):
        model = encoder(invariance=strength, copies=2).eval()
        prepared = model.prepare(batch)
        terms.append(
            model.regularise(
                head, prepared, batch.weights, batch.vector, torch.Generator().manual_seed(5)
            )
        )
    one, three = terms
    assert one is not None
    assert three is not None
    torch.testing.assert_close(3 * one, three)
    # Random networks of this size are as far from their copies as from each other, by orders.
    assert 0.001 < float(one.detach()) < 10


def test_off_or_nothing_to_permute() -> None:
    head, generator = nn.Linear(16, 1), torch.Generator()
    for model, network in ((encoder(), MLP), (encoder(invariance=1.0), nn.Linear(8, 3))):
        batch = batch_of(network)
        prepared = model.prepare(batch)
        assert model.regularise(head, prepared, batch.weights, batch.vector, generator) is None


def test_training_with_the_term_alone_makes_logits_invariant() -> None:
    """Logits are kept apart by a target that permutations do not change, and drawn together by the term."""
    batch = batch_of(MLP, 48)
    target = batch.weights.square().mean(1)
    target = (target - target.mean()) / target.std()
    left = {}
    for strength in (0.0, 1.0):
        model, generator = encoder(invariance=strength), torch.Generator().manual_seed(0)
        head = nn.Linear(16, 1)
        optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
        prepared = model.prepare(batch)
        for _ in range(60):
            loss = (head(model(prepared, batch.vector))[:, 0] - target).square().mean()
            term = model.regularise(head, prepared, batch.weights, batch.vector, generator)
            optimiser.zero_grad()
            (loss if term is None else loss + term).backward()
            optimiser.step()
        measured = encoder(invariance=1.0, copies=4)
        measured.load_state_dict(model.state_dict())
        with torch.no_grad():
            term = measured.regularise(head, prepared, batch.weights, batch.vector, generator)
        assert term is not None
        left[strength] = float(term)
    assert left[1.0] < 0.5 * left[0.0]


@pytest.mark.parametrize("kind", ["chunks", "neurons"])
def test_augmenting_is_a_switch(kind: str) -> None:
    batch = batch_of(MLP)
    for switch in (True, False):
        settings = InvarianceSettings(augment=switch)
        model = (
            ChunkEncoder(ChunkSettings(sets=SETS, invariance=settings))
            if kind == "chunks"
            else NeuronEncoder(NeuronSettings(sets=SETS, invariance=settings))
        )
        assert model.augments is switch
        other = model.augment(batch.weights, batch.vector, torch.Generator().manual_seed(0))
        assert torch.equal(other, batch.weights) is not switch
        torch.testing.assert_close(other.sort().values, batch.weights.sort().values)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"augment": 1}, "augment is 1"),
        ({"invariance": -1}, "invariance is -1"),
        ({"copies": 0}, "copies is 0"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        InvarianceSettings(**given)
