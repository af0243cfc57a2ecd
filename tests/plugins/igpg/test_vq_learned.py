"""Learned quantisers: they learn, repeat themselves, go on after an interruption, and look at outputs if asked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import zooplatform_igpg.vqvae
from zooplatform.errors import ConfigError, NotInstalledError
from zooplatform.fitting import FitData
from zooplatform_igpg.functional import FunctionalLoss
from zooplatform_igpg.tokenizer import VqTokenizer
from zooplatform_igpg.vectors import make_plan
from zooplatform_igpg.vq_config import VqConfig
from zooplatform_igpg.vqvae import build_model

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.fitting import GeneratorData

SMALL: dict[str, Any] = {
    "mode": "layer", "chunk_size": 8, "width": 48, "depth": 1, "steps": 120, "batch_size": 16,
    "codebook_size": 32, "slots": 2, "code_dim": 8, "restart": 20,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "gumbel": {"quantizer": "gumbel"},
    "gumbel-linear": {"quantizer": "gumbel", "logits": "linear"},
    "rvq": {"quantizer": "rvq", "levels": 2},
    "fsq": {"quantizer": "fsq", "fsq_levels": [4, 4, 2]},
    "transformer": {"quantizer": "rvq", "network": "transformer", "mode": "network"},
}


def _fit(
    data: FitData, kind: str, *, seed: int = 0, **changes: Any
) -> tuple[VqTokenizer, dict[str, float], tuple[str, ...]]:
    made = VqTokenizer()
    report = made.fit_networks(data, config={**SMALL, **KINDS[kind], **changes}, seed=seed)
    return made, dict(report.metrics), report.notes


def _tokens(made: VqTokenizer, data: FitData) -> torch.Tensor:
    rows = [0, 1]
    vector = data.validation.architectures[data.validation.architecture_ids[0]]
    same = [
        r
        for r in rows
        if data.validation.architecture_ids[r] == data.validation.architecture_ids[0]
    ]
    weights = data.validation.read(same).weights
    return made.encode_population(weights, layout=vector.layout, layers=vector.layers()).tokens


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_repeats_itself(stripes: GeneratorData, kind: str) -> None:
    made, found, _ = _fit(stripes, kind)
    _, short, _ = _fit(stripes, kind, steps=2)
    assert found["normalised_mse"] < 0.75, "hardly better than the mean"
    assert found["normalised_mse"] < 0.9 * short["normalised_mse"]
    assert found["perplexity"] > 4
    torch.manual_seed(99)  # the state of the process is not to matter
    first = _tokens(made, stripes)
    again, _, _ = _fit(stripes, kind)
    torch.manual_seed(98)
    assert torch.equal(_tokens(again, stripes), first)
    assert torch.equal(_tokens(made, stripes), first)


def test_an_interrupted_fit_goes_on(stripes: GeneratorData, tmp_path: Path) -> None:
    whole, _, _ = _fit(stripes, "gumbel")
    calls = 0

    def interrupt(what: str, done: int, total: int | None) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyboardInterrupt

    kept = replace(stripes, folder=tmp_path)
    with suppress(KeyboardInterrupt):
        _fit(replace(kept, progress=interrupt), "gumbel")
    assert calls == 1
    resumed, _, notes = _fit(kept, "gumbel")
    assert "went on from step 50" in notes
    assert torch.equal(resumed.code_vectors(), whole.code_vectors())
    assert torch.equal(_tokens(resumed, stripes), _tokens(whole, stripes))


def test_a_fit_whose_time_is_over_ends(stripes: GeneratorData) -> None:
    _, found, notes = _fit(replace(stripes, max_minutes=1e-9), "fsq")
    assert "time was over after 0 of 120 steps" in notes
    assert found["num_looked_at"] > 0


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zooplatform_igpg.vqvae, "find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"pip install 'zooplatform\[generate\]'"):
        build_model(VqConfig.parse({"quantizer": "rvq"}), 0)
    build_model(VqConfig.parse({"quantizer": "gumbel"}), 0)


# --- the Gumbel quantiser ---------------------------------------------------------------------------------------------


def _gumbel(**changes: Any) -> Any:
    given = {"quantizer": "gumbel", "codebook_size": 16, "code_dim": 4, **changes}
    return build_model(VqConfig.parse(given), 0).quantizer


def test_the_temperature_falls_in_cycles() -> None:
    quantizer = _gumbel(cycles=4, tau_start=1.0, tau_end=1e-4)
    taus = [quantizer.temperature(at / 400) for at in range(400)]
    for cycle in range(4):
        own = taus[100 * cycle : 100 * cycle + 100]
        assert own[0] == pytest.approx(1.0)
        assert own[-1] < 1e-3
        assert own == sorted(own, reverse=True)


@pytest.mark.parametrize("hard", [True, False])
def test_a_hard_code_is_one_of_the_codebook(hard: bool) -> None:
    quantizer = _gumbel(hard=hard)
    latents = torch.randn(40, 4, requires_grad=True)
    made = quantizer.train()(latents, 0.0)
    apart = (made.latents.unsqueeze(1) - quantizer.codebook).abs().amax(2).min(1).values
    assert bool((apart < 1e-5).all()) == hard
    made.latents.sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0, "no gradient gets through"


@pytest.mark.parametrize("logits", ["linear", "distance"])
def test_dead_codes_begin_again_where_latents_are(logits: str) -> None:
    torch.manual_seed(0)
    quantizer = _gumbel(logits=logits, restart=5).train()
    quantizer(torch.randn(200, 4), 0.0)
    # Others than those that the first codes lie on: a code that begins on another's place would lose every tie to it.
    latents = torch.randn(200, 4)
    with torch.no_grad():
        quantizer.codebook[8:] = 100.0
        if quantizer.to_logits is not None:
            quantizer.to_logits.bias[8:] = -1000.0
    quantizer.window.zero_()
    quantizer(latents, 0.0)
    assert quantizer.window[8:].sum() == 0
    quantizer.after_step(3, latents)
    assert (quantizer.codebook[8:] == 100).all(), "it was not time yet"
    quantizer.after_step(4, latents)
    assert set(quantizer.encode(latents).unique().tolist()) >= set(range(8, 16))


def test_the_loss_has_both_of_its_terms() -> None:
    latents = torch.randn(50, 4)
    losses = {}
    for name, weights in {"none": (0.0, 0.0), "first": (1.0, 0.0), "both": (1.0, 1.0)}.items():
        quantizer = _gumbel(commitment=weights[0], codebook_weight=weights[1]).train()
        torch.manual_seed(0)
        losses[name] = float(quantizer(latents, 0.5).loss.detach())
    assert losses["none"] == 0
    assert losses["both"] == pytest.approx(2 * losses["first"])


def test_padding_has_no_part_in_the_error(stripes: GeneratorData) -> None:
    """With padding counted as zeros to be learnt, a chunk size that pads a lot would look far better than it is."""
    _, found, _ = _fit(stripes, "fsq", chunk_size=64, slots=1, steps=50)
    assert found["train_mse"] > 0.5


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_the_difference_of_outputs_has_gradients_to_the_weights(stripes: GeneratorData) -> None:
    loss = FunctionalLoss(stripes, 16)
    row = 0
    vector = stripes.train.architectures[stripes.train.architecture_ids[row]]
    plan = make_plan(vector.layout, vector.layers(), "layer", 8)
    weights = stripes.train.read([row]).weights
    columns = {
        f.spec.name: weights[:, f.offset : f.offset + f.spec.num_elements]
        for f in vector.fields
        if not f.aside
    }
    original = plan.values(columns, 1)
    assert float(loss(plan, original, original, (row,), 0)) == pytest.approx(0, abs=1e-6)
    noisy = (original + 0.3 * torch.randn_like(original)).requires_grad_()
    far = loss(plan, noisy, original, (row,), 0)
    assert float(far.detach()) > 0.01
    far.backward()
    assert noisy.grad is not None
    step = noisy.detach() - 0.05 * noisy.grad / noisy.grad.norm()
    assert float(loss(plan, step, original, (row,), 0)) < float(far.detach())


def test_learning_from_outputs_brings_them_nearer(stripes: GeneratorData) -> None:
    apart = {}
    for weight in (0.0, 0.5):
        made, found, _ = _fit(stripes, "rvq", functional_weight=weight, functional_images=16)
        assert ("train_kl" in found) == bool(weight)
        loss = FunctionalLoss(replace(stripes, train=stripes.validation), 64)
        total = 0.0
        for row in range(8):
            vector = stripes.validation.architectures[stripes.validation.architecture_ids[row]]
            plan = make_plan(vector.layout, vector.layers(), "layer", 8)
            values = []
            weights = stripes.validation.read([row]).weights
            batch = made.encode_population(weights, layout=vector.layout, layers=vector.layers())
            decoded, _ = made.decode_population(batch, layout=vector.layout, layers=vector.layers())
            for given in (decoded, weights):
                columns = {
                    f.spec.name: given[:, f.offset : f.offset + f.spec.num_elements]
                    for f in vector.fields
                    if not f.aside
                }
                values.append(plan.values(columns, 1))
            total += float(loss(plan, values[0], values[1], (row,), 0))
        apart[weight] = total
    assert apart[0.5] < 0.7 * apart[0.0], apart


def test_outputs_need_images(stripes: GeneratorData) -> None:
    plain = FitData(train=stripes.train, validation=stripes.validation)
    for data in (plain, replace(stripes, images={})):
        with pytest.raises(ConfigError, match="no images or no way to build them"):
            _fit(data, "rvq", functional_weight=1.0)
