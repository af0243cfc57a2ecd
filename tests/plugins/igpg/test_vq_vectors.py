"""Networks as chunks of values: nothing lost on the way there and back, everything where it is said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from zooplatform.errors import TokenizerError
from zooplatform.interfaces import LAYER_TYPES, LayerSpec
from zooplatform.layout import layout_of
from zooplatform.testing.tokenizers import same_bits
from zooplatform_chunk.columns import columns_of_population, columns_of_state
from zooplatform_igpg.normalise import Normaliser, Sums
from zooplatform_igpg.vectors import MODES, make_plan, tensor_kind

if TYPE_CHECKING:
    from zooplatform.fitting import GeneratorData
    from zooplatform_igpg.vectors import VectorPlan


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5, bias=False)
    )


def _layers() -> tuple[LayerSpec, ...]:
    return (
        LayerSpec(0, "0", "conv", ("0.weight", "0.bias")),
        LayerSpec(1, "1", "norm", ("1.weight", "1.bias", "1.running_mean", "1.running_var")),
        LayerSpec(2, "4", "linear", ("4.weight",)),
    )


def _chunks(plan: VectorPlan, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return plan.chunks(plan.values(columns_of_state(state, plan.layout), 1))


@pytest.mark.parametrize("size", [1, 4, 7, 1000])
@pytest.mark.parametrize("mode", MODES)
def test_every_value_comes_back_from_its_place(mode: str, size: int) -> None:
    state = _net().state_dict()
    plan = make_plan(layout_of(state), _layers(), mode, size)
    columns = columns_of_state(state, plan.layout)
    values = plan.values(columns, 1)
    chunks = plan.chunks(values)
    assert torch.equal(plan.from_chunks(chunks), values)
    assert chunks.shape == (1, plan.num_chunks, size)
    assert int(plan.mask.sum()) == plan.num_values == 54 + 3 + 4 * 3 + 60
    assert not chunks[:, ~plan.mask].any(), "padding is not zero"
    # What stands in padding is dropped.
    noisy = torch.where(plan.mask, chunks, 77.0)
    assert torch.equal(plan.from_chunks(noisy), values)
    back = plan.columns(values) | plan.columns_aside(plan.bytes_aside(columns), 1)
    for name, tensor in state.items():
        if tensor_kind(name) == "running_var":
            torch.testing.assert_close(back[name].view(tensor.shape), tensor, rtol=1e-5, atol=1e-6)
        else:
            assert same_bits(back[name].view(tensor.shape), tensor), name


def test_layers_hold_the_weight_then_the_bias() -> None:
    state = _net().state_dict()
    plan = make_plan(layout_of(state), _layers(), "layer", 10)
    chunks = _chunks(plan, state)[0]
    wanted = torch.cat([state["0.weight"].flatten(), state["0.bias"]])
    own = plan.positions[:, 1] == 0
    assert torch.equal(chunks[own].flatten()[:57], wanted)
    assert plan.positions[:, 1].tolist() == [0] * 6 + [1] * 2 + [2] * 6
    assert plan.positions[6, 3] == LAYER_TYPES.index("norm")
    assert (plan.positions[:, 4] == -1).all()


def test_a_network_is_one_run_of_all_its_layers() -> None:
    state = _net().state_dict()
    plan = make_plan(layout_of(state), _layers(), "network", 10)
    values = plan.values(columns_of_state(state, plan.layout), 1)[0]
    stream = _chunks(plan, state).flatten()
    # The layout has the tensors in the order of the layers here.
    assert torch.equal(stream[: plan.num_values], values)
    assert plan.num_chunks == -(-plan.num_values // 10)
    # A chunk counts as of the layer of its first value.
    assert plan.positions[5, 1] == 0
    assert plan.positions[6, 1] == 1


def test_units_hold_their_weights_then_their_bias() -> None:
    state = _net().state_dict()
    plan = make_plan(layout_of(state), _layers(), "unit", 10)
    chunks = _chunks(plan, state)[0]
    for unit in range(3):
        own = (plan.positions[:, 1] == 0) & (plan.positions[:, 4] == unit)
        wanted = torch.cat([state["0.weight"][unit].flatten(), state["0.bias"][unit : unit + 1]])
        assert torch.equal(chunks[own].flatten()[:19], wanted)
        assert plan.positions[own, 5].tolist() == [0, 1]
    # A norm has so few values of each unit that they stay together.
    assert int((plan.positions[:, 1] == 1).sum()) == 2
    linear = plan.positions[:, 1] == 2
    assert plan.positions[linear, 4].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_running_variances_stay_positive() -> None:
    state = _net().state_dict()
    plan = make_plan(layout_of(state), _layers(), "layer", 4)
    values = plan.values(columns_of_state(state, plan.layout), 1)
    wild = torch.randn(50, plan.num_values) * 30
    back = plan.columns(wild)
    assert (back["1.running_var"] >= 0).all()
    assert (back["1.running_mean"] < 0).any()
    assert values.shape == (1, plan.num_values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    state = _net().state_dict()
    state["4.weight"][0, 0] = bad
    plan = make_plan(layout_of(state), _layers(), "layer", 4)
    with pytest.raises(TokenizerError, match=r"4\.weight hold values"):
        plan.values(columns_of_state(state, plan.layout), 1)


@pytest.mark.parametrize("mode", MODES)
def test_trained_networks_come_back(stripes: GeneratorData, mode: str) -> None:
    for blueprint in stripes.blueprints:
        vector = blueprint.vector
        plan = make_plan(vector.layout, vector.layers(), mode, 16)
        rows = [
            row
            for row, name in enumerate(stripes.train.ids)
            if stripes.blueprints[stripes.facts[name].blueprint] == blueprint
        ]
        weights = stripes.train.read(rows).weights
        aside = torch.from_numpy(stripes.train.read_aside(rows)) if vector.aside_bytes else None
        columns = columns_of_population(weights, aside, vector.layout)
        values = plan.values(columns, len(rows))
        both = plan.columns(plan.from_chunks(plan.chunks(values)))
        if plan.aside:
            both |= plan.columns_aside(plan.bytes_aside(columns), len(rows))
        back, beside = plan.matrices(both, len(rows))
        exact = torch.ones(vector.width, dtype=torch.bool)
        for field in vector.fields:
            if tensor_kind(field.spec.name) == "running_var":
                exact[field.offset : field.offset + field.spec.num_elements] = False
        assert torch.equal(back[:, exact], weights[:, exact])
        torch.testing.assert_close(back, weights, rtol=1e-5, atol=1e-6)
        assert (beside is None) == (aside is None)
        if beside is not None:
            assert aside is not None
            assert torch.equal(beside, aside)


# --- normalisation ----------------------------------------------------------------------------------------------------


def _drawn(plan: VectorPlan, number: int, seed: int = 0) -> torch.Tensor:
    """Values whose mean and spread differ between tensors."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(number, plan.num_values, generator=draw)
    for at, (spec, start) in enumerate(zip(plan.coded, plan.starts, strict=True)):
        own = slice(start, start + spec.num_elements)
        values[:, own] = values[:, own] * 10.0 ** (at - 2) + at
    return values


def _fitted(plan: VectorPlan, values: torch.Tensor, kind: str) -> Normaliser:
    sums = Sums.of(plan)
    for part in values.split(7):
        sums.add(part)
    return Normaliser.fit({plan.architecture: sums}, kind)


def test_every_tensor_is_scaled_by_its_own_statistics_and_back() -> None:
    plan = make_plan(layout_of(_net().state_dict()), _layers(), "layer", 4)
    values = _drawn(plan, 400)
    pair = _fitted(plan, values, "layer").pair(plan)
    scaled = pair.normalise(values)
    for spec, start in zip(plan.coded, plan.starts, strict=True):
        part = scaled[:, start : start + spec.num_elements]
        assert abs(float(part.mean())) < 1e-3, spec.name
        assert abs(float(part.std()) - 1) < 1e-2, spec.name
    torch.testing.assert_close(pair.undo(scaled), values, rtol=1e-5, atol=1e-5)


def test_positions_are_scaled_one_by_one_where_asked() -> None:
    plan = make_plan(layout_of(_net().state_dict()), _layers(), "layer", 4)
    centre = torch.linspace(-5, 5, plan.num_values)
    values = _drawn(plan, 400) * 0.01 + centre
    values[:, 0] = 3.0  # the same in every network
    pair = _fitted(plan, values, "position").pair(plan)
    scaled = pair.normalise(values)
    assert scaled.mean(0).abs().max() < 1e-2
    assert scaled[:, 1:].std(0).max() < 1.1
    assert not scaled[:, 0].abs().max() > 1e-3, "rounding is blown up where nothing varies"
    torch.testing.assert_close(pair.undo(scaled), values, rtol=1e-4, atol=1e-4)


def test_an_unknown_architecture_is_scaled_as_its_layer_types_were() -> None:
    plan = make_plan(layout_of(_net().state_dict()), _layers(), "layer", 4)
    normaliser = _fitted(plan, _drawn(plan, 100), "layer")
    other = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Linear(7, 7))
    unknown = make_plan(layout_of(other.state_dict()), (), "layer", 4)
    pair = normaliser.pair(unknown)
    known = normaliser.pooled
    for name, key in {
        "0.weight": "conv/weight",
        "0.bias": "conv/bias",
        "1.weight": "linear/weight",
    }.items():
        start = unknown.starts[[spec.name for spec in unknown.coded].index(name)]
        assert (float(pair.mean[start]), float(pair.spread[start])) == pytest.approx(known[key])
    # Nothing was known of biases of linear layers: those of all layers stand in.
    start = unknown.starts[[spec.name for spec in unknown.coded].index("1.bias")]
    assert float(pair.spread[start]) == pytest.approx(known["bias"][1])


def test_without_any_statistics_nothing_is_guessed() -> None:
    plan = make_plan(layout_of({"fc.weight": torch.zeros(2, 2)}), (), "layer", 4)
    with pytest.raises(TokenizerError, match=r"fc\.weight"):
        Normaliser().pair(plan)


def test_kinds_of_tensors() -> None:
    found = {
        name: tensor_kind(name)
        for name in ("a.weight", "a.in_proj_bias", "n.running_var", "n.running_mean", "cls_token")
    }
    assert list(found.values()) == ["weight", "bias", "running_var", "running_mean", "other"]
