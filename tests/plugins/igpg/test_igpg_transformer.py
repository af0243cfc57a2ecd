"""The transformer: nothing is seen before its time, and a cache changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform_igpg.config import TransformerConfig
from zooplatform_igpg.sampling import Block, Draw, blocks_of, draw_codes, numbers_of
from zooplatform_igpg.transformer import CodeTransformer, Places

CODES = 16


def _model(tokens: int, *, levels: int = 1, own: bool = True, **config: Any) -> tuple[Any, Places]:
    settings = {"dim": 32, "heads": 2, "depth": 2, "context": 64, "window": 4, "patch": 1, **config}
    torch.manual_seed(0)
    vectors = torch.randn(levels, CODES, 3)
    model = CodeTransformer(TransformerConfig(**settings), vectors, tokens if own else 0).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    positions = torch.zeros((tokens, 6), dtype=torch.int64)
    positions[:, 0] = positions[:, 2] = torch.arange(tokens)
    positions[:, 1] = torch.arange(tokens) // 7
    positions[:, 4] = torch.arange(tokens) // 3 - 1
    return model, Places(positions, torch.arange(tokens) % levels, 0 if own else -1)


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("changed", [0, 9, 22])
def test_a_code_is_seen_from_the_next_place_on(patch: int, changed: int) -> None:
    model, places = _model(27, patch=patch)
    prefix, codes = torch.randn(3, 2, 32), torch.randint(CODES, (3, 27))
    other = codes.clone()
    other[:, changed] = (other[:, changed] + 1) % CODES
    with torch.no_grad():
        before = model.logits(*model(prefix, codes, places), 0)
        after = model.logits(*model(prefix, other, places), 0)
    assert torch.equal(before[:, : changed + 1], after[:, : changed + 1])
    assert (before[:, changed + 1] != after[:, changed + 1]).any(dim=1).all()
    assert (before[:, -1] != after[:, -1]).any()


def test_the_prefix_is_seen_everywhere() -> None:
    model, places = _model(9)
    prefix, codes = torch.randn(2, 3, 32), torch.randint(CODES, (2, 9))
    with torch.no_grad():
        one = model.logits(*model(prefix, codes, places), 0)
        other = model.logits(*model(prefix + 0.1, codes, places), 0)
    assert (one != other).any(dim=2).all()


@pytest.mark.parametrize(
    ("tokens", "config"),
    [
        (23, {}),
        (23, {"patch": 4}),
        (23, {"rope": False, "kv_heads": 2}),
        (40, {"context": 12, "window": 4, "patch": 4}),
        (31, {"context": 10, "window": 3}),
        (31, {"context": 10, "window": 0}),
    ],
)
def test_the_cache_gives_what_a_whole_pass_gives(tokens: int, config: dict[str, Any]) -> None:
    """Greedy codes, written one after the other, are the likeliest ones of whole passes over them, block by block."""
    model, places = _model(tokens, levels=2, **config)
    prefix = torch.randn(4, 3, 32)
    numbers = numbers_of(0, 0, 4, tokens)
    codes = draw_codes(model, prefix, places, numbers, Draw(temperature=0))
    assert len(codes.unique()) > 4
    for block in blocks_of(tokens, model.config.context, model.config.window):
        here = places.cut(block.window, block.stop)
        with torch.no_grad():
            hidden, table = model(prefix, codes[:, block.window : block.stop], here)
        for at in range(block.start, block.stop):
            own = at - block.window
            logits = model.logits(hidden[:, own], table, int(here.levels[own]))
            assert torch.equal(logits.argmax(dim=1), codes[:, at])


def test_likelihoods_are_those_of_the_logits_of_each_level() -> None:
    model, places = _model(10, levels=2)
    prefix, codes = torch.randn(3, 2, 32), torch.randint(CODES, (3, 10))
    with torch.no_grad():
        losses = model.nll(prefix, codes, places)
        hidden, table = model(prefix, codes, places)
        for at in range(10):
            logits = model.logits(hidden[:, at], table, at % 2).log_softmax(dim=1)
            expected = -logits.gather(1, codes[:, [at]]).squeeze(1)
            torch.testing.assert_close(losses[:, at], expected)


def test_codes_that_a_level_does_not_have_are_never_written() -> None:
    vectors = torch.randn(2, CODES, 3)
    vectors[1, 5:] = torch.nan
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, heads=2, depth=1, context=64, window=4, patch=1)
    model = CodeTransformer(config, vectors, 0).eval()
    _, places = _model(30, levels=2)
    places = places._replace(first_row=-1)
    for how in (Draw(temperature=5.0), Draw(temperature=0), Draw(guidance=3.0), Draw(top_p=0.9)):
        codes = draw_codes(
            model, torch.randn(8, 2, 32), places, numbers_of(1, 0, 8, 30), how,
            without=torch.randn(8, 2, 32),
        )  # fmt: skip
        assert codes[:, 1::2].max() < 5
    assert draw_codes(
        model, torch.randn(8, 2, 32), places, numbers_of(1, 0, 8, 30), Draw(temperature=5.0)
    )[:, ::2].max() > 5  # fmt: skip


def test_blocks_cover_a_sequence_exactly() -> None:
    assert blocks_of(5, 8, 2) == (Block(0, 0, 5),)
    assert blocks_of(20, 8, 2) == (Block(0, 0, 8), Block(6, 8, 14), Block(12, 14, 20))
    for tokens in range(1, 60):
        blocks = blocks_of(tokens, 8, 3)
        written = [at for block in blocks for at in range(block.start, block.stop)]
        assert written == list(range(tokens))
        assert all(block.stop - block.window <= 8 for block in blocks)
        assert all(block.start - block.window == 3 for block in blocks[1:])
    with pytest.raises(ConfigError, match="window is 8"):
        blocks_of(20, 8, 8)


def test_later_blocks_see_their_window_and_nothing_before() -> None:
    model, places = _model(24, context=8, window=3)
    prefix, numbers = torch.randn(32, 1, 32), numbers_of(2, 0, 32, 24)
    given = torch.randint(CODES, (32, 13))
    far, near = given.clone(), given.clone()
    far[:, 9] = (far[:, 9] + 1) % CODES  # the block from 13 on sees 10, 11 and 12
    near[:, 10:] = (near[:, 10:] + 5) % CODES
    written = [
        draw_codes(model, prefix, places, numbers, Draw(), given=one) for one in (given, far, near)
    ]
    assert all(torch.equal(w[:, :13], g) for w, g in zip(written, (given, far, near), strict=True))
    assert torch.equal(written[0][:, 13:], written[1][:, 13:])
    assert not torch.equal(written[0][:, 13:], written[2][:, 13:])


def test_sizes_that_do_not_fit_are_refused() -> None:
    for wrong, text in (
        ({"dim": 30, "heads": 4}, "dim 30"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads 3"),
        ({"window": 1024}, "window is 1024"),
        ({"patch": 3}, "patch 3"),
    ):
        with pytest.raises(ConfigError, match=text):
            TransformerConfig(**wrong)
