"""Statistics of layers as tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from zooplatform.errors import ConfigError
from zooplatform_sne.tokens import StatisticsEncoder, StatisticTokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.interfaces import NetworkBatch

    Batcher = Callable[..., NetworkBatch]


def _mlps(as_batch: Batcher, number: int = 12, depth: int = 2) -> NetworkBatch:
    torch.manual_seed(0)
    made = [
        nn.Sequential(*(nn.Linear(5, 5) for _ in range(depth)), nn.Linear(5, 3))
        for _ in range(number)
    ]
    return as_batch(*made)


def test_statistics_are_scaled_by_median_and_quartiles(as_batch: Batcher) -> None:
    tokens = StatisticTokens(dim=8)
    batch = _mlps(as_batch)
    prepared = tokens.prepare(batch)
    # Only the values count: 1, 2, ..., 36 in every statistic, whose quartiles are 9.75, 18.5 and 27.25.
    rows = torch.arange(1.0, 37)[:, None].expand(36, tokens.size)
    tokens.calibrate(
        [{"statistics": rows[:12].view(4, 3, -1)}, {"statistics": rows[12:].view(8, 3, -1)}]
    )
    assert tokens.median.tolist() == pytest.approx([18.5] * tokens.size)
    assert tokens.spread.tolist() == pytest.approx([17.5 / 1.349] * tokens.size)
    assert prepared["statistics"].shape == (12, 3, tokens.size)


def test_statistics_without_quartiles_are_scaled_by_what_spread_they_have() -> None:
    tokens = StatisticTokens(dim=8)
    rows = torch.zeros(100, 1, tokens.size)
    rows[0, 0, 0] = 10  # in one of 100 networks: standard deviation 1
    tokens.calibrate([{"statistics": rows}])
    assert tokens.spread[0].item() == pytest.approx(1.0)
    assert tokens.spread[1].item() == 1.0  # no spread at all


def test_missing_statistics_count_as_usual_and_outliers_are_cut(as_batch: Batcher) -> None:
    tokens = StatisticTokens(dim=8, clip=5.0).eval()
    prepared = tokens.prepare(_mlps(as_batch, 2))
    prepared["statistics"] = prepared["statistics"].clone()
    tokens.calibrate([prepared])
    usual, missing = prepared["statistics"].clone(), prepared["statistics"].clone()
    usual[..., 0], missing[..., 0] = tokens.median[0], torch.nan
    assert torch.equal(
        tokens(prepared | {"statistics": usual}), tokens(prepared | {"statistics": missing})
    )
    far, farther = usual.clone(), usual.clone()
    far[..., 0], farther[..., 0] = tokens.median[0] + 6 * tokens.spread[0], 1e30
    assert torch.equal(
        tokens(prepared | {"statistics": far}), tokens(prepared | {"statistics": farther})
    )


def test_a_layer_says_where_and_what_it_is(as_batch: Batcher) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2), nn.Linear(2, 2))
    layers = StatisticTokens(dim=8).prepare(as_batch(net))["layers"][0]
    kinds, depth, first, middle, last = layers[:, :-4], *layers[:, -4:].T
    assert kinds.argmax(dim=1).tolist() == [0, 1, 1]
    assert depth.tolist() == [0.0, 0.5, 1.0]
    assert (first.tolist(), middle.tolist(), last.tolist()) == ([1, 0, 0], [0, 1, 0], [0, 0, 1])


def test_noise_and_dropped_statistics_are_for_training(as_batch: Batcher) -> None:
    batch = _mlps(as_batch)
    for option in ({"noise": 0.5}, {"drop": 0.5}):
        encoder = StatisticsEncoder(dim=16, dropout=0.0, **option)
        prepared = encoder.prepare(batch)
        encoder.calibrate([(prepared, batch.vector)])
        encoder.train()
        assert not torch.equal(encoder(prepared, batch.vector), encoder(prepared, batch.vector))
        encoder.eval()
        assert torch.equal(encoder(prepared, batch.vector), encoder(prepared, batch.vector))


def test_networks_of_any_depth_share_one_encoder(as_batch: Batcher) -> None:
    encoder = StatisticsEncoder(dim=16).eval()
    shallow, deep = _mlps(as_batch), _mlps(as_batch, depth=5)
    encoder.calibrate([(encoder.prepare(shallow), shallow.vector)])
    for batch in (shallow, deep):
        embedded = encoder(encoder.prepare(batch), batch.vector)
        assert embedded.shape == (12, 16)
        assert embedded.std(dim=0).min() > 1e-4


def test_plain_and_rich_statistics_stand_side_by_side(as_batch: Batcher) -> None:
    batch = _mlps(as_batch)
    sizes = {kind: StatisticTokens(dim=8, kind=kind).size for kind in ("plain", "rich", "both")}
    assert sizes["both"] == sizes["plain"] + sizes["rich"]
    both = StatisticTokens(dim=8, kind="both").prepare(batch)["statistics"]
    plain, rich = (
        StatisticTokens(dim=8, kind=kind).prepare(batch)["statistics"] for kind in ("plain", "rich")
    )
    assert torch.equal(both, torch.cat([plain, rich], dim=-1))
    with pytest.raises(ConfigError, match="statistics is 'some'; use plain, rich, both"):
        StatisticTokens(dim=8, kind="some")  # type: ignore[arg-type]
