"""Several sequences of codes side by side, and layers that share bits by what their errors do."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform_igpg.allocation import limits_of, share_out, total_bits
from zooplatform_igpg.columnwise import code_columns
from zooplatform_igpg.kmeans import kmeans, nearest, nested_table
from zooplatform_igpg.quantizers import TableCoder
from zooplatform_igpg.tokenizer import VqTokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_igpg.vectors import VectorPlan

TABLED = {"quantizer": "kmeans", "mode": "unit", "chunk_size": 2, "feedback": True, "refit": True}


def _layer(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A table of 6 codes, two networks of three units with 5 inputs, and the moments of the inputs."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 100, 5, generator=draw) @ torch.randn(2, 5, 5, generator=draw)
    table = torch.randn(1, 6, 2, generator=draw)
    return table, torch.randn(2, 3, 5, generator=draw), rows.transpose(1, 2) @ rows / 100


def _left(error: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """(B, O) squared error of outputs."""
    return ((error @ moments) * error).sum(2)


@pytest.mark.parametrize("order", [None, [2, 0, 1]])
def test_all_sequences_kept_find_the_best_there_is(order: list[int] | None) -> None:
    table, weights, moments = _layer(0)
    mean, spread = torch.full((3, 5), 0.1), torch.full((3, 5), 1.5)
    every = torch.stack(
        [
            torch.cat([table[0, a], table[0, b], table[0, c, :1]]) * 1.5 + 0.1
            for a, b, c in itertools.product(range(6), repeat=3)
        ]
    )
    best = torch.stack([_left(one - weights, moments) for one in every]).amin(0)
    lefts = []
    for beam in (1, 4, 216):
        found, codes = code_columns(
            table, weights, moments, mean, spread, damping=0.0, beam=beam, order=order
        )
        shown = table[0][codes[..., 0]].flatten(2)[..., :5] * 1.5 + 0.1
        torch.testing.assert_close(found, shown)
        lefts.append(_left(found - weights, moments))
    greedy, few, all_of_them = lefts
    torch.testing.assert_close(all_of_them, best, rtol=1e-3, atol=1e-4)
    assert few.sum() < 0.95 * greedy.sum()


def test_layers_of_many_units_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    table, weights, moments = _layer(2)
    spread = torch.linspace(0.5, 2, 15).view(3, 5)  # parts are judged by the mean of all units

    def codes() -> torch.Tensor:
        return code_columns(table, weights, moments, torch.zeros(3, 5), spread, beam=4)[1]

    together = codes()
    monkeypatch.setattr("zooplatform_igpg.beam._AT_ONCE", 1)
    assert torch.equal(codes(), together)


def test_chunks_keep_to_their_codes() -> None:
    table, weights, moments = _layer(1)
    mean, spread = torch.zeros(3, 5), torch.ones(3, 5)
    for beam in (1, 8):
        _, codes = code_columns(
            table, weights, moments, mean, spread, beam=beam, sweeps=2, limits=[2, 5, 3]
        )
        assert (codes.amax((0, 1))[:, 0] < torch.tensor([2, 5, 3])).all()
        assert codes[:, :, 1].max() >= 3, "the second chunk may have five"
    coder = TableCoder(table)
    chunks = torch.randn(40, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    chunks[:, 2, 1] = 0
    found = coder.encode(chunks, mask, torch.zeros(3, 6), torch.tensor([2, 6, 3]))[..., 0]
    for at, (limit, width) in enumerate(((2, 2), (6, 2), (3, 1))):
        wanted = torch.cdist(chunks[:, at, :width], table[0, :limit, :width]).argmin(1)
        assert torch.equal(found[:, at], wanted)


def test_the_first_codes_of_a_nested_table_are_a_table() -> None:
    vectors = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    table = nested_table(vectors, 32, seed=0)
    assert torch.equal(table[:8], nested_table(vectors, 8, seed=0))
    for size in (4, 8, 32):
        left, alone = (
            (vectors - one[nearest(vectors, one)]).square().sum()
            for one in (table[:size], kmeans(vectors, size, seed=0))
        )
        assert left < 1.25 * alone, size


# --- bits of layers ---------------------------------------------------------------------------------------------------


def _plan(stripes: GeneratorData) -> VectorPlan:
    made = VqTokenizer()
    made.fit_networks(stripes, config={**TABLED, "codebook_size": 4}, seed=0)
    blueprint = stripes.blueprints[0]
    return made._fitted().plan(blueprint.vector.layout, blueprint.vector.layers())


def _networks(stripes: GeneratorData) -> tuple[torch.Tensor, Blueprint, torch.Tensor]:
    """Of one blueprint and data set, with images."""
    first = stripes.facts[stripes.validation.ids[0]]
    rows = [
        row
        for row, name in enumerate(stripes.validation.ids)
        if (stripes.facts[name].blueprint, stripes.facts[name].dataset)
        == (first.blueprint, first.dataset)
    ]
    weights = stripes.validation.read(rows).weights
    return weights, stripes.blueprints[first.blueprint], stripes.images[first.dataset].x


def test_bits_go_where_they_take_away_most(stripes: GeneratorData) -> None:
    plan = _plan(stripes)
    layers = len(plan.layers)
    budget = 2.5 * plan.num_values
    for heavy in range(layers):
        harm = [1.0 if at == heavy else 0.01 for at in range(layers)]
        bits = share_out(plan, harm, 4, budget, 10)
        assert bits[heavy] == max(bits) > min(bits)
        assert min(bits) >= 1
        assert total_bits(plan, bits) <= budget
        # Nothing that is left would pay for another bit of any layer.
        for at in range(layers):
            more = [*bits[:at], bits[at] + 1, *bits[at + 1 :]]
            assert bits[at] == 10 or total_bits(plan, more) > budget
    assert share_out(plan, [1.0] * layers, 4, 10**9, 7) == [7] * layers
    assert share_out(plan, [1.0] * layers, 4, 0.0, 7) == [1] * layers


def test_chunks_of_few_values_have_few_codes(stripes: GeneratorData) -> None:
    plan = _plan(stripes)
    limits = limits_of(plan, [9] * len(plan.layers))
    alone = plan.mask.sum(1) == 1
    assert alone.any()
    assert (limits[alone] == 64).all()
    assert (limits[~alone] == 512).all()


@pytest.fixture(scope="module")
def shared_out(stripes: GeneratorData) -> VqTokenizer:
    made = VqTokenizer()
    made.fit_networks(stripes, config={**TABLED, "codebook_size": 128, "bits": 2.0}, seed=0)
    return made


def test_a_budget_is_kept_and_spent_better_than_evenly(
    stripes: GeneratorData, shared_out: VqTokenizer, tmp_path: Path
) -> None:
    weights, blueprint, images = _networks(stripes)
    layout, layers = blueprint.vector.layout, blueprint.vector.layers()
    coding = shared_out._fitted()
    plan = coding.plan(layout, layers)
    bits = coding.bits[plan.architecture]
    assert len(set(bits)) > 1
    rate = shared_out.bits_per_weight(layout, layers)
    assert 1.8 < rate <= 2.0
    report = shared_out.measure(stripes.validation)
    assert report["bits_per_weight"] == pytest.approx(rate, abs=0.05)

    def moved(bits: list[int]) -> float:
        """How far outputs are from the original ones with other bits, on images that encoding did not see."""
        made = VqTokenizer()
        made._coding = type(coding)(
            coding.config, coding.normaliser, coding.coder, {plan.architecture: bits}
        )
        batch = made.encode_functional(
            weights, blueprint=blueprint, images=images[::2], build=stripes.build
        )
        limits = limits_of(plan, bits)
        assert (batch.tokens < limits).all()
        decoded, _ = made.decode_population(batch, layout=layout, layers=layers)
        module, far = stripes.build(blueprint).eval(), 0.0
        for before, after in zip(weights, decoded, strict=True):
            outputs = []
            for one in (before, after):
                fields = {
                    f.spec.name: one[f.offset : f.offset + f.spec.num_elements].view(f.spec.shape)
                    for f in blueprint.vector.fields
                    if not f.aside
                }
                module.load_state_dict(fields, strict=False)
                with torch.no_grad():
                    outputs.append(module(images[1::2]))
            far += float((outputs[1] - outputs[0]).square().mean())
        return far

    even = [4] * len(bits)
    assert total_bits(plan, even) >= total_bits(plan, bits)
    assert moved(bits) < 0.9 * moved(even)

    shared_out.save(tmp_path)
    again = VqTokenizer()
    again.load(tmp_path)
    assert again.bits_per_weight(layout, layers) == rate
    one = shared_out.encode_population(weights, layout=layout, layers=layers)
    assert torch.equal(
        again.encode_population(weights, layout=layout, layers=layers).tokens, one.tokens
    )
    assert (one.tokens < coding.limits(plan)).all()


def test_layouts_that_were_not_measured_share_evenly(
    stripes: GeneratorData, shared_out: VqTokenizer
) -> None:
    _, blueprint, _ = _networks(stripes)
    layout = tuple(spec for spec in blueprint.vector.layout if spec.name.endswith("weight"))
    coding = shared_out._fitted()
    plan = coding.plan(layout, ())
    assert plan.architecture not in coding.bits
    assert set(coding.limits(plan).tolist()) <= {16}  # type: ignore[union-attr]
    assert shared_out.bits_per_weight(layout) == pytest.approx(2.0, abs=0.35)


def test_bits_need_images_and_feedback(stripes: GeneratorData) -> None:
    wanted = {**TABLED, "codebook_size": 128, "bits": 2.0}
    with pytest.raises(ConfigError, match="takes images that networks of the catalog were trained"):
        VqTokenizer().fit_networks(replace(stripes, images={}), config=wanted, seed=0)
    for more, said in (
        ({"feedback": False, "refit": False}, "set feedback, and one level"),
        ({"levels": 2}, "set feedback, and one level"),
        ({"codebook_size": 100}, "it is a power of two"),
    ):
        with pytest.raises(ConfigError, match=said):
            VqTokenizer().fit_networks(stripes, config={**wanted, **more}, seed=0)
