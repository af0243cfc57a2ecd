"""Drawing codes: temperature, the likeliest ones, guidance, numbers of one's own."""

from __future__ import annotations

import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform_igpg.config import TransformerConfig
from zooplatform_igpg.sampling import Draw, draw_codes, numbers_of, pick
from zooplatform_igpg.transformer import CodeTransformer, Places

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
MANY = 4000


def _shares(how: Draw) -> list[float]:
    numbers = numbers_of(0, 0, 1, MANY)[0]
    codes = pick(LOGITS.expand(MANY, -1), numbers, how)
    return [round(float(share), 2) for share in torch.bincount(codes, minlength=4) / MANY]


def test_codes_come_as_often_as_they_are_likely() -> None:
    assert _shares(Draw()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.02)


def test_a_low_temperature_prefers_the_likeliest_and_zero_takes_it() -> None:
    squared = torch.tensor([0.5, 0.3, 0.15, 0.05]).square()
    assert _shares(Draw(temperature=0.5)) == pytest.approx(squared / squared.sum(), abs=0.02)
    assert _shares(Draw(temperature=0)) == [1, 0, 0, 0]
    flat = _shares(Draw(temperature=100.0))
    assert flat == pytest.approx([0.25] * 4, abs=0.03)


def test_top_k_keeps_so_many() -> None:
    assert _shares(Draw(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert _shares(Draw(top_k=1)) == [1, 0, 0, 0]
    assert _shares(Draw(top_k=9)) == _shares(Draw())
    even = pick(torch.zeros(MANY, 4), numbers_of(0, 0, 1, MANY)[0], Draw(top_k=3))
    assert len(even.unique()) == 3  # exactly so many, even where they are equally likely


def test_top_p_keeps_those_that_make_up_so_much() -> None:
    assert _shares(Draw(top_p=0.5)) == [1, 0, 0, 0]
    assert _shares(Draw(top_p=0.51)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert _shares(Draw(top_p=0.96)) == _shares(Draw())


def test_a_code_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    numbers = torch.tensor([0.0, 0.5, 1 - 1e-17], dtype=torch.float64)
    assert pick(logits, numbers, Draw()).tolist() == [1, 3, 3]


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"guidance": -0.1},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Draw(**wrong)  # type: ignore[arg-type]


def test_numbers_belong_to_networks() -> None:
    whole = numbers_of(3, 0, 10, 20)
    assert torch.equal(numbers_of(3, 4, 2, 20), whole[4:6])
    assert not torch.equal(numbers_of(4, 0, 10, 20), whole)
    assert len(whole.unique()) == 200


@pytest.fixture
def model() -> tuple[CodeTransformer, Places]:
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, heads=2, depth=1, context=64, window=4, patch=4)
    made = CodeTransformer(config, torch.randn(1, 8, 2), 0).eval()
    positions = torch.zeros((19, 6), dtype=torch.int64)
    positions[:, 0] = torch.arange(19)
    return made, Places(positions, torch.zeros(19, dtype=torch.int64))


def test_a_network_does_not_depend_on_the_others_of_its_pass(
    model: tuple[CodeTransformer, Places],
) -> None:
    prefix = torch.randn(1, 2, 32).expand(6, -1, -1)
    one = draw_codes(*_with(model, prefix), numbers_of(0, 0, 6, 19), Draw())
    shifted = draw_codes(*_with(model, prefix), numbers_of(0, 3, 6, 19), Draw())
    assert torch.equal(one[3:], shifted[:3])
    assert not torch.equal(one[:3], shifted[:3])


def test_guidance_exaggerates_what_the_condition_says(
    model: tuple[CodeTransformer, Places],
) -> None:
    """Logits of 1 are those with the condition, of 0 those without it."""
    told, untold = torch.randn(6, 2, 32), torch.randn(6, 2, 32)
    numbers = numbers_of(0, 0, 6, 19)

    def drawn(guidance: float, prefix: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
        how = Draw(guidance=guidance)
        return draw_codes(*_with(model, prefix), numbers, how, without=without)

    plain = drawn(1.0, told, untold)
    assert torch.equal(plain, draw_codes(*_with(model, told), numbers, Draw()))
    assert torch.equal(drawn(0.0, told, untold), draw_codes(*_with(model, untold), numbers, Draw()))
    assert not torch.equal(drawn(4.0, told, untold), plain)
    assert torch.equal(drawn(4.0, told, told), plain)  # a condition that says nothing


def test_progress_is_told(model: tuple[CodeTransformer, Places]) -> None:
    made, places = model
    long = Places(places.positions.repeat(12, 1), places.levels.repeat(12))
    heard: list[tuple[int, int | None]] = []
    draw_codes(
        made, torch.randn(1, 2, 32), long, numbers_of(0, 0, 1, 228), Draw(),
        progress=lambda what, done, total: heard.append((done, total)),
    )  # fmt: skip
    assert heard == [(100, 228), (200, 228)]


def _with(
    model: tuple[CodeTransformer, Places], prefix: torch.Tensor
) -> tuple[CodeTransformer, torch.Tensor, Places]:
    return model[0], prefix, model[1]
