"""Layer tokens that are statistics of the layer, and attention over them: an encoder that reads no single weight.

A token is made of the statistics of one layer, each robustly standardised with the median and quartiles that it has
over all layers of all training networks, and of what the layer is: its type, its depth, whether it is the first or
last. The statistics do not change when hidden units are permuted, so neither do the embeddings.

Legend for shapes: B networks, L layers, F statistics, R responses, A attributes of a layer, d size of the embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from zooplatform.errors import ConfigError
from zooplatform.interfaces import LAYER_TYPES
from zooplatform_sne.encoder import NetworkEncoder
from zooplatform_sne.responses import describe_responses, responses
from zooplatform_sne.sets import SetSettings, SetToSet, SetToVector
from zooplatform_statnn.features import describe, layer_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout

__all__ = [
    "ResponseToken",
    "StatisticTokens",
    "StatisticsEncoder",
    "StatisticsKind",
    "TokenPooling",
]

StatisticsKind = Literal["plain", "rich", "both"]

_ATTRIBUTES = len(LAYER_TYPES) + 4  # type; depth, first, middle, last
_SAMPLE = 100_000  # layers that medians are taken over
_IQR = 1.349  # interquartile range of a standard normal


class TokenPooling(nn.Module):
    """Set attention over (B, T, d) tokens and pooling to (B, d)."""

    def __init__(self, *, dim: int, heads: int, blocks: int, dropout: float) -> None:
        super().__init__()
        settings = SetSettings(dim=dim, heads=heads, depth=blocks, dropout=dropout)
        self.mix, self.pool = SetToSet(settings), SetToVector(settings)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(self.mix(tokens))
        return pooled


class StatisticTokens(nn.Module):
    """Statistics of layers to tokens.

    Args:
        dim: d.
        kind: which statistics: `plain`, `rich`, or `both` side by side.
        dropout: between the two linear maps.
        noise: standard deviation of what is added to standardised statistics in training.
        drop: share of the statistics set to their median in training, the same for all layers of a network.
        clip: standardised statistics are cut at this size.
    """

    def __init__(
        self,
        *,
        dim: int,
        kind: StatisticsKind = "rich",
        dropout: float = 0.0,
        noise: float = 0.0,
        drop: float = 0.0,
        clip: float = 5.0,
    ) -> None:
        super().__init__()
        if kind not in get_args(StatisticsKind):
            raise ConfigError(f"statistics is {kind!r}; use {', '.join(get_args(StatisticsKind))}.")
        self.kinds: tuple[Literal["plain", "rich"], ...] = (
            ("plain", "rich") if kind == "both" else (kind,)
        )
        self.noise, self.drop, self.clip = noise, drop, clip
        self.size = sum(len(describe(one)) for one in self.kinds)
        self.median: torch.Tensor
        self.spread: torch.Tensor
        self.register_buffer("median", torch.zeros(self.size))
        self.register_buffer("spread", torch.ones(self.size))
        self.embed = nn.Sequential(
            nn.Linear(self.size + _ATTRIBUTES, 2 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )

    def prepare(self, batch: NetworkBatch) -> dict[str, torch.Tensor]:
        """`statistics` (B, L, F) and `layers` (B, L, A)."""
        found = layer_statistics(batch, self.kinds[-1])
        values = found.values
        if len(self.kinds) == 2:  # the plain ones are the first of the rich ones
            values = torch.cat([values[..., : len(describe("plain"))], values], dim=-1)
        layers = _attributes(found.layer_types, found.depth)
        return {
            "statistics": values,
            "layers": layers.to(values.device).expand(len(values), -1, -1),
        }

    def calibrate(self, prepared: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Median and quartiles of every statistic over the layers of the given networks."""
        rows = torch.cat([one["statistics"].reshape(-1, self.size) for one in prepared])
        median, spread = _robust_scale(rows)
        self.median.copy_(median)
        self.spread.copy_(spread)

    def forward(self, prepared: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, L, d)."""
        values = (prepared["statistics"] - self.median) / self.spread
        # What a layer does not have (singular values of a vector) counts as usual.
        values = values.nan_to_num().clamp(-self.clip, self.clip)
        if self.training and self.noise:
            values = values + self.noise * torch.randn_like(values)
        if self.training and self.drop:
            kept = torch.rand(len(values), 1, self.size, device=values.device) >= self.drop
            values = values * kept
        tokens: torch.Tensor = self.embed(torch.cat([values, prepared["layers"]], dim=-1))
        return tokens


class ResponseToken(nn.Module):
    """What a network does with fixed inputs (`responses`) as one more token, standardised as statistics are.

    Args:
        dim: d.
        dropout: between the two linear maps.
        clip: standardised numbers are cut at this size.
    """

    def __init__(self, *, dim: int, dropout: float = 0.0, clip: float = 5.0) -> None:
        super().__init__()
        self.clip = clip
        size = len(describe_responses())
        self.median: torch.Tensor
        self.spread: torch.Tensor
        self.register_buffer("median", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.embed = nn.Sequential(
            nn.Linear(size, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim)
        )

    def prepare(self, batch: NetworkBatch) -> dict[str, torch.Tensor]:
        """`responses` (B, R)."""
        return {"responses": responses(batch)}

    def calibrate(self, prepared: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Median and quartiles of every number over the given networks."""
        median, spread = _robust_scale(torch.cat([one["responses"] for one in prepared]))
        self.median.copy_(median)
        self.spread.copy_(spread)

    def forward(self, prepared: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, 1, d)."""
        values = (prepared["responses"] - self.median) / self.spread
        token: torch.Tensor = self.embed(values.clamp(-self.clip, self.clip))
        return token[:, None]


class StatisticsEncoder(NetworkEncoder):
    """Attention over the layer tokens of `StatisticTokens`.

    Args:
        dim: d.
        statistics, dropout, noise, drop, clip: see `StatisticTokens`.
        responses: add a `ResponseToken` to the set.
        heads, blocks: of the attention over layers.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        statistics: StatisticsKind = "rich",
        responses: bool = False,
        heads: int = 4,
        blocks: int = 1,
        dropout: float = 0.1,
        noise: float = 0.0,
        drop: float = 0.0,
        clip: float = 5.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.answers = ResponseToken(dim=dim, dropout=dropout, clip=clip) if responses else None
        self.tokens = StatisticTokens(
            dim=dim, kind=statistics, dropout=dropout, noise=noise, drop=drop, clip=clip
        )
        self.pool = TokenPooling(dim=dim, heads=heads, blocks=blocks, dropout=dropout)

    def prepare(self, batch: NetworkBatch) -> dict[str, torch.Tensor]:
        prepared = self.tokens.prepare(batch)
        return prepared if self.answers is None else prepared | self.answers.prepare(batch)

    def calibrate(
        self, prepared: Sequence[tuple[Mapping[str, torch.Tensor], VectorLayout]]
    ) -> None:
        rows = [one for one, _ in prepared]
        self.tokens.calibrate(rows)
        if self.answers is not None:
            self.answers.calibrate(rows)

    def forward(self, prepared: Mapping[str, torch.Tensor], vector: VectorLayout) -> torch.Tensor:
        tokens = self.tokens(prepared)
        if self.answers is not None:
            tokens = torch.cat([tokens, self.answers(prepared)], dim=1)
        embedded: torch.Tensor = self.pool(tokens)
        return embedded


def _robust_scale(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and spread (F,) of rows (N, F), float64."""
    rows = rows[:: -(-len(rows) // _SAMPLE)].double()
    low, median, high = rows.nanquantile(rows.new_tensor([0.25, 0.5, 0.75]), dim=0)
    spread = ((high - low) / _IQR).nan_to_num()
    # Statistics that most layers share have no quartiles; those of no spread at all tell nothing.
    around = (rows - median).square().nanmean(dim=0).sqrt().nan_to_num()
    spread = torch.where(spread > 1e-6 * around.clamp(min=1e-6), spread, around)
    return median.nan_to_num(), torch.where(spread > 0, spread, 1.0)


def _attributes(layer_types: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """(L, A): what each layer is, from (L,) types and depths."""
    kinds = functional.one_hot(layer_types, len(LAYER_TYPES)).to(torch.float32)
    first, last = torch.zeros_like(depth), torch.zeros_like(depth)
    first[0], last[-1] = 1, 1
    middle = (1 - first) * (1 - last)
    return torch.cat([kinds, torch.stack([depth, first, middle, last], dim=1)], dim=1)
