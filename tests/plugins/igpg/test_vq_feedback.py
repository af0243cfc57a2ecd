"""Codes for the function: outputs come nearer to the original ones, at the same rate, with the same tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from zooplatform.errors import TokenizerError
from zooplatform.fitting import Blueprint
from zooplatform.layout import VectorLayout, layout_of
from zooplatform_igpg.columnwise import code_columns
from zooplatform_igpg.functional import stacked_outputs
from zooplatform_igpg.tokenizer import VqTokenizer
from zooplatform_igpg.vectors import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.fitting import GeneratorData

SETTINGS = {"quantizer": "kmeans", "mode": "unit", "chunk_size": 2, "codebook_size": 12}


@pytest.fixture(scope="module")
def tokenizer(stripes: GeneratorData) -> VqTokenizer:
    made = VqTokenizer()
    made.fit_networks(stripes, config={**SETTINGS, "feedback": True, "refit": True}, seed=0)
    return made


Group = tuple[torch.Tensor, Blueprint, torch.Tensor]


@pytest.fixture(scope="module")
def groups(stripes: GeneratorData) -> list[Group]:
    """Networks that the tables were not learnt from, by blueprint and data set, and images of their data set."""
    rows: dict[tuple[int, str], list[int]] = {}
    for row, name in enumerate(stripes.validation.ids):
        fact = stripes.facts[name]
        rows.setdefault((fact.blueprint, fact.dataset), []).append(row)
    return [
        (
            stripes.validation.read(own).weights,
            stripes.blueprints[blueprint],
            stripes.images[dataset].x,
        )
        for (blueprint, dataset), own in rows.items()
    ]


@pytest.fixture(scope="module")
def networks(groups: list[Group]) -> Group:
    """The largest group."""
    return max(groups, key=lambda group: len(group[0]))


def _apart(
    tokenizer: VqTokenizer,
    batch: Any,
    networks: Group,
    build: Callable[[Blueprint], nn.Module],
) -> float:
    """Squared difference of outputs, relative to their size, on images that encoding did not look at."""
    weights, blueprint, images = networks
    layout, layers = blueprint.vector.layout, blueprint.vector.layers()
    decoded, _ = tokenizer.decode_population(batch, layout=layout, layers=layers)
    plan = make_plan(layout, layers, "layer", 8)
    module = build(blueprint).eval()
    outputs = []
    for values in (weights, decoded):
        columns = {
            f.spec.name: values[:, f.offset : f.offset + f.spec.num_elements]
            for f in blueprint.vector.fields
            if not f.aside
        }
        with torch.no_grad():
            outputs.append(
                stacked_outputs(module, plan, plan.values(columns, len(values)), images[1::2])
            )
    return float((outputs[1] - outputs[0]).square().sum() / outputs[0].square().sum())


def _changed(tokenizer: VqTokenizer, **changes: Any) -> VqTokenizer:
    """The same tables with other settings of encoding."""
    made = VqTokenizer()
    made._coding = type(tokenizer._fitted())(
        replace(tokenizer.config, **changes),
        tokenizer._fitted().normaliser,
        tokenizer._fitted().coder,
    )
    return made


def test_coding_for_the_function_brings_outputs_nearer(
    tokenizer: VqTokenizer, groups: list[Group], stripes: GeneratorData
) -> None:
    """Of a few small networks only the sum of all steps does so for sure; what each adds is tested on one layer."""
    apart = dict.fromkeys(("plain", "feedback", "sweeps"), 0.0)
    for group in groups:
        weights, blueprint, images = group
        layout, layers = blueprint.vector.layout, blueprint.vector.layers()
        plain = tokenizer.encode_population(weights, layout=layout, layers=layers)
        apart["plain"] += len(weights) * _apart(tokenizer, plain, group, stripes.build)
        for name, refit, sweeps in (("feedback", False, 0), ("sweeps", True, 2)):
            made = _changed(tokenizer, refit=refit, sweeps=sweeps)
            batch = made.encode_functional(
                weights, blueprint=blueprint, images=images[::2], build=stripes.build
            )
            assert batch.tokens.shape == plain.tokens.shape
            apart[name] += len(weights) * _apart(made, batch, group, stripes.build)
    assert apart["sweeps"] < 0.5 * apart["plain"], apart
    assert apart["sweeps"] < 0.5 * apart["feedback"], apart


def test_encoding_is_the_same_every_time_and_for_every_group(
    tokenizer: VqTokenizer,
    networks: Group,
    stripes: GeneratorData,
) -> None:
    weights, blueprint, images = networks

    def tokens(rows: torch.Tensor) -> torch.Tensor:
        return tokenizer.encode_functional(
            rows, blueprint=blueprint, images=images[:64], build=stripes.build
        ).tokens

    together = tokens(weights)
    torch.manual_seed(99)
    assert torch.equal(tokens(weights), together)
    alone = torch.cat([tokens(weights[:1]), tokens(weights[1:])])
    assert float((alone == together).float().mean()) > 0.98, "more than rounding differs"


def test_of_several_tries_the_nearest_is_kept(
    tokenizer: VqTokenizer,
    networks: Group,
    stripes: GeneratorData,
) -> None:
    weights, blueprint, images = networks
    apart = []
    for tries in (1, 3):
        made = _changed(tokenizer, tries=tries)
        batch = made.encode_functional(
            weights, blueprint=blueprint, images=images[::2], build=stripes.build
        )
        seen = (weights, blueprint, images[::2].repeat_interleave(2, 0))
        apart.append(_apart(made, batch, seen, stripes.build))
    assert apart[1] < apart[0]


def test_without_feedback_codes_are_the_nearest(
    tokenizer: VqTokenizer,
    networks: Group,
    stripes: GeneratorData,
) -> None:
    weights, blueprint, images = networks
    made = _changed(tokenizer, feedback=False, refit=False)
    found = made.encode_functional(weights, blueprint=blueprint, images=images, build=stripes.build)
    plain = made.encode_population(
        weights, layout=blueprint.vector.layout, layers=blueprint.vector.layers()
    )
    assert torch.equal(found.tokens, plain.tokens)


class _Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.fc(x))
        return out


class _Branches(nn.Module):
    """A convolution with groups, one without a bias, a layer that is called twice and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3, padding=1, stride=2)
        self.two = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.three = nn.Conv2d(4, 6, 1, bias=False)
        self.twice = nn.Linear(6, 6)
        self.never = nn.Linear(3, 3)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.one(x).relu()
        hidden = hidden + self.norm(self.two(hidden))
        hidden = self.three(hidden).tanh().mean((2, 3))
        found: torch.Tensor = self.out(self.twice(self.twice(hidden).tanh()).tanh())
        return found


def _population(make: Callable[[], nn.Module], number: int) -> tuple[torch.Tensor, Blueprint]:
    torch.manual_seed(0)
    states = [make().state_dict() for _ in range(number)]
    vector = VectorLayout(layout_of(states[0]))
    main = [f.spec.name for f in vector.fields if not f.aside]
    rows = torch.stack([torch.cat([state[name].flatten() for name in main]) for state in states])
    return rows, Blueprint(vector=vector, family="cnn", config={})


def test_modules_of_any_shape_are_coded_layer_by_layer() -> None:
    weights, blueprint = _population(_Branches, 6)
    images = torch.rand(200, 1, 8, 8)
    made = VqTokenizer()
    module = _Branches().eval()
    states = []
    for row in weights:
        state = {}
        for f in blueprint.vector.fields:
            if f.aside:
                state[f.spec.name] = torch.zeros((), dtype=torch.int64)
            else:
                part = row[f.offset : f.offset + f.spec.num_elements]
                state[f.spec.name] = part.reshape(f.spec.shape)
        states.append(state)
    made.fit(states, seed=0, config={**SETTINGS, "feedback": True, "refit": True})

    def build(_: Blueprint) -> nn.Module:
        return _Branches()

    batch = made.encode_functional(weights, blueprint=blueprint, images=images, build=build)
    plain = made.encode_population(weights, layout=blueprint.vector.layout)
    differs = (batch.tokens != plain.tokens).any(0)
    layers = {layer.index: layer.name for layer in _plan_layers(made, blueprint)}
    names = {layers[int(batch.positions[0, at, 1])] for at in differs.nonzero().squeeze(1)}
    assert {"one", "three", "twice", "out"} <= names
    assert not names & {"never", "two", "norm"}, "these are coded plainly"
    outputs = []
    for tokens in (None, plain, batch):
        rows = weights
        if tokens is not None:
            rows, _ = made.decode_population(tokens, layout=blueprint.vector.layout)
        plan = make_plan(blueprint.vector.layout, (), "layer", 4)
        columns = {
            f.spec.name: rows[:, f.offset : f.offset + f.spec.num_elements]
            for f in blueprint.vector.fields
            if not f.aside
        }
        with torch.no_grad():
            outputs.append(stacked_outputs(module, plan, plan.values(columns, len(rows)), images))
    far, near = ((out - outputs[0]).square().mean() for out in outputs[1:])
    assert near < 0.6 * far


def _plan_layers(made: VqTokenizer, blueprint: Blueprint) -> Any:
    return made._fitted().plan(blueprint.vector.layout, ()).layers


def test_layers_that_it_does_not_know_are_refused() -> None:
    weights, blueprint = _population(_Normed, 30)
    made = VqTokenizer()
    state = {"fc.weight": weights[0, :24].view(4, 6)}
    made.fit([state] * 4, seed=0, config={**SETTINGS, "codebook_size": 4, "feedback": True})
    with pytest.raises(TokenizerError, match=r"norm \(LayerNorm\) holds weight, bias"):
        made.encode_functional(
            weights, blueprint=blueprint, images=torch.rand(20, 6), build=lambda _: _Normed()
        )


def test_a_module_of_another_layout_is_refused(tokenizer: VqTokenizer) -> None:
    weights, blueprint = _population(lambda: nn.Sequential(nn.Linear(6, 4)), 3)
    with pytest.raises(TokenizerError, match=r"0\.weight is \(5, 6\) in the module"):
        tokenizer.encode_functional(
            weights,
            blueprint=blueprint,
            images=torch.rand(20, 6),
            build=lambda _: nn.Sequential(nn.Linear(6, 5)),
        )


# --- one layer --------------------------------------------------------------------------------------------------------


def _layer(
    inputs: int = 9, units: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    tables = torch.randn(1, 20, 2, generator=draw)
    weights = torch.randn(3, units, inputs, generator=draw)
    rows = torch.randn(3, 200, inputs, generator=draw) @ torch.randn(
        3, inputs, inputs, generator=draw
    )
    moments = rows.transpose(1, 2) @ rows / 200
    mean, spread = torch.zeros(units, inputs), torch.ones(units, inputs)
    return tables, weights, moments, mean, spread


def _loss(weights: torch.Tensor, found: torch.Tensor, moments: torch.Tensor) -> float:
    error = found - weights
    return float(((error @ moments) * error).sum())


def test_inputs_that_have_nothing_in_common_leave_every_chunk_to_itself() -> None:
    tables, weights, moments, mean, spread = _layer()
    alone = torch.eye(9).expand_as(moments)
    found, codes = code_columns(tables, weights, alone, mean, spread, damping=0.0, sweeps=1)
    for at in range(4):
        wanted = torch.cdist(weights[:, :, 2 * at : 2 * at + 2], tables).argmin(2)
        assert torch.equal(codes[:, :, at, 0], wanted)
    # The last chunk has one value only.
    assert torch.equal(codes[:, :, 4, 0], (weights[:, :, 8:] - tables[0, :, 0]).abs().argmin(2))
    looked_up = tables[0][codes[..., 0]].flatten(2)[:, :, :9]
    assert torch.equal(found, looked_up)


def test_carrying_errors_over_makes_outputs_nearer() -> None:
    tables, weights, moments, mean, spread = _layer()
    alone = torch.eye(9).expand_as(moments)
    plain, _ = code_columns(tables, weights, alone, mean, spread, sweeps=0)
    losses = [_loss(weights, plain, moments)]
    for metric, sweeps in (("plain", 0), ("hessian", 0), ("hessian", 3)):
        found, _ = code_columns(
            tables, weights, moments, mean, spread, metric=metric, sweeps=sweeps
        )
        losses.append(_loss(weights, found, moments))
    plain_loss, carried, hessian, swept = losses
    assert carried < 0.85 * plain_loss, losses
    assert hessian < 0.97 * carried, losses
    assert swept < 0.7 * hessian, losses


def test_the_order_of_coding_is_undone() -> None:
    tables, weights, moments, mean, spread = _layer()
    mean = mean + torch.linspace(-1, 1, 9)
    found, codes = code_columns(tables, weights, moments, mean, spread * 2, order=[4, 2, 0, 1, 3])
    looked_up = tables[0][codes[..., 0]].flatten(2)[:, :, :9] * 2 + mean
    torch.testing.assert_close(found, looked_up)


def test_inputs_that_are_never_there_do_no_harm() -> None:
    tables, weights, moments, mean, spread = _layer()
    for bad in (torch.zeros_like(moments), torch.full_like(moments, torch.nan)):
        found, _ = code_columns(tables, weights, bad, mean, spread, sweeps=0)
        assert found.isfinite().all()


def test_several_levels_are_coded_too() -> None:
    tables, weights, moments, mean, spread = _layer()
    two = torch.cat([tables, 0.3 * tables.flip(1)])
    one_found, _ = code_columns(tables, weights, moments, mean, spread)
    found, codes = code_columns(two, weights, moments, mean, spread)
    assert codes.shape == (3, 5, 5, 2)
    assert _loss(weights, found, moments) < 0.7 * _loss(weights, one_found, moments)
