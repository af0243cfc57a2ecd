"""The tokenizer `vq` with tables: lookups, fixed points, architectures it did not see, files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.layout import VectorLayout, layout_of
from zooplatform_igpg.tokenizer import VqTokenizer
from zooplatform_igpg.vectors import make_plan
from zooplatform_igpg.vq_config import CONFIGS, VqConfig

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.fitting import Blueprint, GeneratorData

ONE_LEVEL: list[dict[str, Any]] = [
    {"quantizer": "kmeans", "mode": "unit", "chunk_size": 3, "codebook_size": 32},
    {"quantizer": "kmeans", "mode": "network", "chunk_size": 5, "codebook_size": 16},
    {"quantizer": "scalar", "mode": "layer", "codebook_size": 8, "normalise": "position"},
]


def _fitted(stripes: GeneratorData, config: dict[str, Any]) -> VqTokenizer:
    made = VqTokenizer()
    made.fit_networks(stripes, config=config, seed=0)
    return made


def _sample(stripes: GeneratorData) -> tuple[torch.Tensor, torch.Tensor | None, Blueprint]:
    """Networks of one layout that nothing was fitted on."""
    first = stripes.facts[stripes.validation.ids[0]].blueprint
    rows = [
        row
        for row, name in enumerate(stripes.validation.ids)
        if stripes.facts[name].blueprint == first
    ]
    blueprint = stripes.blueprints[first]
    aside = None
    if blueprint.vector.aside_bytes:
        aside = torch.from_numpy(stripes.validation.read_aside(rows))
    return stripes.validation.read(rows).weights, aside, blueprint


@pytest.mark.parametrize(
    "config", ONE_LEVEL, ids=lambda given: f"{given['quantizer']}-{given['mode']}"
)
def test_decoded_networks_have_the_codes_that_they_came_from(
    stripes: GeneratorData, config: dict[str, Any]
) -> None:
    made = _fitted(stripes, config)
    weights, _, blueprint = _sample(stripes)
    layout, layers = blueprint.vector.layout, blueprint.vector.layers()
    first = made.encode_population(weights, layout=layout, layers=layers)
    decoded, _ = made.decode_population(first, layout=layout, layers=layers)
    second = made.encode_population(decoded, layout=layout, layers=layers)
    assert torch.equal(second.tokens, first.tokens)
    again, _ = made.decode_population(second, layout=layout, layers=layers)
    assert torch.equal(again, decoded)
    assert not torch.equal(decoded, weights)


@pytest.mark.parametrize("levels", [1, 2])
def test_decoding_is_a_lookup(stripes: GeneratorData, levels: int) -> None:
    config = {"mode": "layer", "chunk_size": 4, "codebook_size": 16, "levels": levels}
    made = _fitted(stripes, config)
    weights, _, blueprint = _sample(stripes)
    layout, layers = blueprint.vector.layout, blueprint.vector.layers()
    batch = made.encode_population(weights, layout=layout, layers=layers)
    tables = made.code_vectors()
    assert tables.shape == (levels, 16, 4)
    assert made.codebook_size == 16
    which = made.token_levels(layout, layers)
    assert which.shape == (made.num_tokens(layout, layers),) == batch.tokens.shape[1:]
    vectors = tables[which, batch.tokens]  # (N, T, d)
    chunks = vectors.view(len(weights), -1, levels, 4).sum(2)
    plan = make_plan(layout, layers, "layer", 4)
    pair = made._fitted().normaliser.pair(plan)
    wanted, _ = plan.matrices(
        {
            **plan.columns(pair.undo(plan.from_chunks(chunks))),
            **plan.columns_aside(None, len(weights)),
        },
        len(weights),
    )
    decoded, _ = made.decode_population(batch, layout=layout, layers=layers)
    assert torch.equal(decoded, wanted)


def test_places_are_those_of_the_values(stripes: GeneratorData) -> None:
    made = _fitted(stripes, {"mode": "unit", "chunk_size": 4, "codebook_size": 16, "levels": 2})
    weights, _, blueprint = _sample(stripes)
    batch = made.encode_population(
        weights, layout=blueprint.vector.layout, layers=blueprint.vector.layers()
    )
    place = batch.positions[0]
    assert place[:, 0].tolist() == list(range(len(place)))
    assert (place[:, 1].diff() >= 0).all()
    for layer in place[:, 1].unique():
        own = place[place[:, 1] == layer]
        assert own[:, 2].tolist() == list(range(len(own)))
        for unit in own[:, 4].unique():
            inside = own[own[:, 4] == unit][:, 5]
            assert inside.tolist() == list(range(len(inside)))


def test_the_report_says_what_was_measured(stripes: GeneratorData) -> None:
    made = VqTokenizer()
    config = {"quantizer": "scalar", "codebook_size": 16}
    report = made.fit_networks(stripes, config=config, seed=0)
    found = report.metrics
    assert found["bits_per_weight"] == 4
    assert found["num_looked_at"] == len(stripes.validation)
    assert found["num_train"] == len(stripes.train)
    assert 0 < found["normalised_mse"] < 0.05
    assert 0 < found["relative_mse"] < 0.05
    assert 8 < found["perplexity"] <= 16
    assert found["codebook_use"] == 1 - found["dead_codes"] / 16
    every = [b.vector for b in stripes.blueprints]
    assert found["tokens"] == max(made.num_tokens(v.layout, v.layers()) for v in every)
    assert made.bits_per_weight(every[0].layout, every[0].layers()) == 4


def test_more_codes_and_levels_lose_less(stripes: GeneratorData) -> None:
    configs: list[dict[str, Any]] = [
        {"codebook_size": 8}, {"codebook_size": 64}, {"codebook_size": 64, "levels": 3}
    ]  # fmt: skip
    errors = []
    for config in configs:
        made = VqTokenizer()
        report = made.fit_networks(
            stripes, config={"mode": "layer", "chunk_size": 4, **config}, seed=0
        )
        errors.append(report.metrics["normalised_mse"])
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2]


def test_the_seed_decides(stripes: GeneratorData) -> None:
    first, again, other = VqTokenizer(), VqTokenizer(), VqTokenizer()
    for made, seed in ((first, 1), (again, 1), (other, 2)):
        torch.manual_seed(seed + 17)
        made.fit_networks(stripes, config={"base": "debug"}, seed=seed)
    assert torch.equal(first.code_vectors(), again.code_vectors())
    assert not torch.equal(first.code_vectors(), other.code_vectors())


def test_fitting_on_states_is_fitting_on_networks(stripes: GeneratorData) -> None:
    """The same networks one by one, in their order by content, give the same tables."""
    weights, aside, blueprint = _sample(stripes)
    states = []
    for row in range(len(weights)):
        state = {}
        for f in blueprint.vector.fields:
            if f.aside:
                assert aside is not None
                raw = aside[row, f.offset : f.offset + f.spec.size_bytes].clone()
                state[f.spec.name] = raw.view(getattr(torch, f.spec.dtype)).reshape(f.spec.shape)
            else:
                part = weights[row, f.offset : f.offset + f.spec.num_elements]
                state[f.spec.name] = part.reshape(f.spec.shape)
        states.append(state)
    made = VqTokenizer()
    made.fit(iter(states), seed=0, config={"mode": "unit", "chunk_size": 2, "codebook_size": 8})
    layout, layers = blueprint.vector.layout, blueprint.vector.layers()
    together = made.encode_population(weights, layout=layout, layers=layers, aside=aside)
    for row, state in enumerate(states):
        one = made.encode(state, layout=layout, layers=layers)
        assert torch.equal(one.tokens[0], together.tokens[row])
        back = made.decode(one, layout=layout, layers=layers)
        assert list(back) == list(state)
        for name in state:
            if not state[name].is_floating_point():
                assert torch.equal(back[name], state[name])


def test_an_architecture_that_was_not_seen_is_coded_by_its_layers(stripes: GeneratorData) -> None:
    made = _fitted(stripes, {"quantizer": "scalar", "codebook_size": 64})
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(1, 20, 3), nn.BatchNorm2d(20), nn.Flatten(), nn.Linear(80, 3))
    state = wide.state_dict()
    layout = layout_of(state)
    batch = made.encode(state, layout=layout)
    back = made.decode(batch, layout=layout)
    for name, value in state.items():
        if name.endswith("0.weight"):
            error = float((back[name] - value).square().sum() / value.square().sum())
            assert error < 0.05, name
    assert torch.equal(back["1.num_batches_tracked"], state["1.num_batches_tracked"])


def test_networks_are_decoded_from_their_codes_alone(stripes: GeneratorData) -> None:
    """A batch without scales, as a generator has it: bytes aside are zeros."""
    made = _fitted(stripes, {"base": "debug"})
    weights, aside, blueprint = _sample(stripes)
    layout, layers = blueprint.vector.layout, blueprint.vector.layers()
    batch = made.encode_population(weights, layout=layout, layers=layers, aside=aside)
    bare, zeros = made.decode_population(batch._replace(scales={}), layout=layout, layers=layers)
    full, beside = made.decode_population(batch, layout=layout, layers=layers)
    assert torch.equal(bare, full)
    assert VectorLayout(layout).aside_bytes
    assert zeros is not None
    assert beside is not None
    assert aside is not None
    assert not zeros.any()
    assert torch.equal(beside, aside)
    assert aside.any()


def test_a_saved_tokenizer_is_the_same(stripes: GeneratorData, tmp_path: Path) -> None:
    made = _fitted(stripes, {"base": "best", "codebook_size": 64, "levels": 2})
    made.save(tmp_path)
    loaded = VqTokenizer()
    loaded.load(tmp_path)
    assert loaded.config == made.config
    weights, _, blueprint = _sample(stripes)
    layout, layers = blueprint.vector.layout, blueprint.vector.layers()
    first = made.encode_population(weights, layout=layout, layers=layers)
    second = loaded.encode_population(weights, layout=layout, layers=layers)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(
        made.decode_population(first, layout=layout, layers=layers)[0],
        loaded.decode_population(second, layout=layout, layers=layers)[0],
    )


def test_damaged_files_are_refused(stripes: GeneratorData, tmp_path: Path) -> None:
    made = _fitted(stripes, {"base": "debug"})
    made.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = path.read_text()
    described = json.loads(good)
    wrong: dict[str, str] = {
        "is damaged": good[:50],
        "format 9": json.dumps({**described, "format": 9}),
        "'chunk'": json.dumps({**described, "tokenizer": "chunk"}),
        "Unknown key": json.dumps({**described, "config": {"sizes": 3}}),
    }
    for reason, text in wrong.items():
        path.write_text(text)
        with pytest.raises(ArtifactError, match=reason):
            VqTokenizer().load(tmp_path)
    path.write_text(json.dumps({**described, "config": {"quantizer": "gumbel"}}))
    with pytest.raises(ArtifactError, match="does not fit"):
        VqTokenizer().load(tmp_path)
    path.write_text(good)
    (tmp_path / "tokenizer.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.safetensors is missing"):
        VqTokenizer().load(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        VqTokenizer().load(tmp_path)


def test_what_is_not_fitted_says_so(tmp_path: Path) -> None:
    layout = layout_of({"a.weight": torch.zeros(2, 2)})
    for ask in (
        lambda: VqTokenizer().save(tmp_path),
        lambda: VqTokenizer().num_tokens(layout),
        lambda: VqTokenizer().encode({"a.weight": torch.zeros(2, 2)}, layout=layout),
    ):
        with pytest.raises(ConfigError, match="not fitted"):
            ask()
    with pytest.raises(ConfigError, match="no network with floating-point weights"):
        VqTokenizer().fit([], seed=0)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_every_named_configuration_is_one() -> None:
    for name in CONFIGS:
        parsed = VqConfig.parse({"base": name})
        assert VqConfig.parse(parsed.describe()) == parsed
        assert json.loads(json.dumps(parsed.describe())) == parsed.describe()
    assert VqConfig.parse({}) == VqConfig.parse({"base": "best"})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"chunk_sise": 3}, "Did you mean 'chunk_size'"),
        ({"base": "nothing"}, "Unknown base"),
        ({"mode": "rows"}, "one of network, layer, unit"),
        ({"chunk_size": 0}, "from 1 on"),
        ({"chunk_size": True}, "whole number"),
        ({"codebook_size": 1}, "from 2 on"),
        ({"quantizer": "scalar", "chunk_size": 2}, "scalar is 1"),
        ({"quantizer": "kmeans", "slots": 2}, "one code for a chunk"),
        ({"quantizer": "fsq", "levels": 2}, "only kmeans and rvq"),
        ({"mode": "layer", "feedback": True}, "needs mode unit"),
        ({"quantizer": "rvq", "feedback": True}, "kmeans or scalar"),
        ({"mode": "unit", "refit": True}, "a part of feedback"),
        ({"quantizer": "fsq", "fsq_levels": [1, 3]}, "from 2 on"),
        ({"quantizer": "gumbel", "tau_end": 2.0}, "tau_end"),
        ({"functional_weight": 1.0}, "learns no network"),
        ({"quantizer": "rvq", "network": "transformer", "width": 30}, "multiple of heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        VqConfig.parse(given)
