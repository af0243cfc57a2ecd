"""A read-out fitted to a few images is the regression that a user would fit to what the last layer is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from card_side import Setting, setting
from sklearn.linear_model import RidgeCV
from torch import nn

from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError
from zooplatform.fitting import Blueprint
from zooplatform.layout import VectorLayout, layout_of
from zooplatform.scorecard.networks import Bench, Networks
from zooplatform.scorecard.readout import with_readout
from zooplatform.scorecard.sides import random_networks
from zooplatform.testing.scorecards import card_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def card() -> Iterator[Setting]:
    with open_catalog(card_folder() / "zoo") as catalog:
        yield setting(catalog)


@pytest.fixture
def some(card: Setting) -> Networks:
    """Training networks of both activations."""
    networks = card.training.networks.take(card.training.drawn(6, seed=0))
    assert len(networks.parts) == 2
    return networks


def last_linear(module: nn.Module) -> nn.Linear:
    return [one for one in module.modules() if isinstance(one, nn.Linear)][-1]


def given_to_it(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    hook = last_linear(module).register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        module(x)
    hook.remove()
    return found[0]


def test_it_is_ridge_regression_on_what_the_last_layer_is_given(
    card: Setting, some: Networks
) -> None:
    train = card.bench.data.train
    everything = int(train.y.bincount().max())
    fitted = with_readout(card.bench, some, everything, seed=0)
    order = torch.cat([(train.y == label).nonzero().squeeze(1) for label in range(3)])
    x, y = train.x[order], train.y[order].numpy()
    for before, after in zip(some.parts, fitted.parts, strict=True):
        for old, new in zip(before.weights, after.weights, strict=True):
            module = card.builder.load(before.blueprint, old)
            features = given_to_it(module, x).double().numpy()
            scale = np.sqrt((features**2).mean())
            ridge = RidgeCV(alphas=len(y) * np.logspace(-5, 1, 13)).fit(
                features / scale, np.eye(3)[y]
            )
            own = last_linear(card.builder.load(after.blueprint, new))
            np.testing.assert_allclose(own.weight.detach(), ridge.coef_ / scale, atol=1e-4)
            np.testing.assert_allclose(own.bias.detach(), ridge.intercept_, atol=1e-4)
            # All others stay as they are.
            at = before.blueprint.vector.by_name
            kept = torch.ones(len(old), dtype=torch.bool)
            for name in [name for name in at if name.startswith(last_name(module))]:
                kept[at[name].offset : at[name].offset + at[name].spec.num_elements] = False
            assert torch.equal(old[kept], new[kept])
            assert not torch.equal(old[~kept], new[~kept])


def last_name(module: nn.Module) -> str:
    own = last_linear(module)
    return next(name for name, one in module.named_modules() if one is own)


def test_random_features_can_be_read(card: Setting) -> None:
    networks = random_networks(card.training, 6, seed=0, build=card.builder)
    x, y = card.task.test
    before = card.bench.answers(networks, x).accuracy(y).mean()
    fitted = with_readout(card.bench, networks, 10, seed=0)
    assert card.bench.answers(fitted, x).accuracy(y).mean() > before + 0.2


def test_few_images_are_the_same_for_all_and_drawn_by_the_seed(
    card: Setting, some: Networks
) -> None:
    together = with_readout(card.bench, some, 2, seed=0).parts[0].weights
    alone = with_readout(card.bench, some.take([int(some.parts[0].places[0])]), 2, seed=0)
    torch.testing.assert_close(alone.parts[0].weights[0], together[0], atol=1e-5, rtol=0)
    other = with_readout(card.bench, some, 2, seed=1).parts[0].weights
    assert not torch.allclose(other, together, atol=1e-3)


def test_a_broken_network_stays_as_it_is(card: Setting, some: Networks) -> None:
    some.parts[0].weights[0, 0] = torch.nan
    fitted = with_readout(card.bench, some, 2, seed=0)
    assert torch.equal(fitted.parts[0].weights[0, 1:], some.parts[0].weights[0, 1:])
    assert fitted.parts[1].weights.isfinite().all()
    assert not torch.equal(fitted.parts[1].weights, some.parts[1].weights)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([nn.Flatten(), nn.Linear(36, 3), nn.Tanh()], "not those of its last matrix"),
        ([nn.Flatten(), nn.Linear(36, 3), nn.ReLU()], "not those of its last matrix"),
        ([nn.Conv2d(1, 3, 6), nn.Flatten()], "no last layer of 3 outputs"),
    ],
)
def test_networks_without_a_linear_read_out_are_refused(
    card: Setting, layers: list[nn.Module], says: str
) -> None:
    def build(_: Blueprint) -> nn.Module:
        return nn.Sequential(*layers)

    layout = layout_of(build(None).state_dict())  # type: ignore[arg-type]
    blueprint = Blueprint(vector=VectorLayout(layout), family="other", config={}, name="odd one")
    networks = Networks.of(torch.randn(2, blueprint.vector.width), blueprint)
    with pytest.raises(ConfigError, match=f"odd one has .*{says}.*--readout"):
        with_readout(Bench(build, card.bench.data), networks, 2, seed=0)
