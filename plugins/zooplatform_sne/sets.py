"""Set modules of the Set Transformer (Lee et al. 2019, arXiv 1810.00825) with masks, and DeepSets in their place.

Every module takes an optional mask, True where an element is real. Padding has no influence on the result for real
elements; what comes out at padded places is meaningless. A set needs at least one real element.

Legend for shapes: N sets, n elements, m elements of the other set, d size of an element, k seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from zooplatform.errors import ConfigError

__all__ = [
    "ISAB",
    "MAB",
    "PMA",
    "SAB",
    "DeepSets",
    "DeepSetsPool",
    "Norm",
    "SetModule",
    "SetSettings",
    "SetToSet",
    "SetToVector",
]

Norm: TypeAlias = Literal["pre", "post", "none"]
SetModule: TypeAlias = Literal["sab", "isab", "deepsets"]

# Hidden units of the row-wise feed-forward part, as a multiple of d.
_EXPANSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSettings:
    """What all set modules of an encoder are made with.

    Attributes:
        dim: d.
        heads: of every attention; divides `dim`.
        set_module: what stands for a set-to-set function: `sab`, `isab` or `deepsets`.
        depth: how many of them are stacked (2 in the paper).
        seeds: k of the pooling attention.
        inducing: inducing points of `isab`.
        norm: layer normalisation before attention (`pre`), after the sums (`post`, as published by Lee et al.) or none.
        dropout: share of attention and feed-forward values dropped in training.
    """

    dim: int = 64
    heads: int = 4
    set_module: SetModule = "sab"
    depth: int = 2
    seeds: int = 1
    inducing: int = 16
    norm: Norm = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("heads", 1), ("depth", 0), ("seeds", 1), ("inducing", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; use a whole number from {least} on.")
        if self.dim % self.heads:
            raise ConfigError(
                f"dim {self.dim} cannot be split over {self.heads} heads; use a multiple of heads."
            )
        for name, known in (("set_module", get_args(SetModule)), ("norm", get_args(Norm))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; use {', '.join(known)}.")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; use a number from 0 to below 1.")


def _feed_forward(settings: SetSettings) -> nn.Sequential:
    hidden = _EXPANSION * settings.dim
    return nn.Sequential(
        nn.Linear(settings.dim, hidden),
        nn.GELU(),
        nn.Linear(hidden, settings.dim),
        nn.Dropout(settings.dropout),
    )


def _norm(settings: SetSettings, place: Norm) -> nn.Module:
    return nn.LayerNorm(settings.dim) if settings.norm == place else nn.Identity()


class MAB(nn.Module):
    """Multihead attention block: a set attends to another one, then every element is transformed by itself.

    Args:
        settings: sizes, normalisation and dropout.
        across: whether the other set is another one; a set that attends to itself needs one normalisation only.
    """

    def __init__(self, settings: SetSettings, *, across: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = settings.heads, settings.dropout
        self.query = nn.Linear(settings.dim, settings.dim)
        self.key_value = nn.Linear(settings.dim, 2 * settings.dim)
        self.output = nn.Linear(settings.dim, settings.dim)
        self.feed_forward = _feed_forward(settings)
        self.before_x = _norm(settings, "pre")
        self.before_y = _norm(settings, "pre") if across else None
        self.before_feed = _norm(settings, "pre")
        self.after_attention, self.after_feed = _norm(settings, "post"), _norm(settings, "post")

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, n, d): `x` (N, n, d) after attending to `y` (N, m, d) where `mask` (N, m) is True."""
        normed = self.before_x(x)
        other = normed if self.before_y is None else self.before_y(y)
        key, value = self.key_value(other).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(normed)),
            self._split(key),
            self._split(value),
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        x = self.after_attention(x + self.output(attended.transpose(1, 2).flatten(2)))
        result: Tensor = self.after_feed(x + self.feed_forward(self.before_feed(x)))
        return result

    def _split(self, values: Tensor) -> Tensor:
        """(N, n, d) to (N, heads, n, d / heads)."""
        return values.view(*values.shape[:2], self.heads, -1).transpose(1, 2)


class SAB(nn.Module):
    """Set attention block: the set attends to itself, in time quadratic in its size."""

    def __init__(self, settings: SetSettings) -> None:
        super().__init__()
        self.block = MAB(settings, across=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, n, d) to (N, n, d)."""
        result: Tensor = self.block(x, x, mask)
        return result


class ISAB(nn.Module):
    """Induced set attention block: learned points attend to the set, the set to them; linear in its size."""

    def __init__(self, settings: SetSettings) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(1, settings.inducing, settings.dim))
        nn.init.xavier_uniform_(self.points)
        self.gather, self.spread = MAB(settings), MAB(settings)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, n, d) to (N, n, d)."""
        summary = self.gather(self.points.expand(len(x), -1, -1), x, mask)
        result: Tensor = self.spread(x, summary)
        return result


class PMA(nn.Module):
    """Pooling by multihead attention: k learned seeds attend to the set."""

    def __init__(self, settings: SetSettings) -> None:
        super().__init__()
        self.seeds = nn.Parameter(torch.empty(1, settings.seeds, settings.dim))
        nn.init.xavier_uniform_(self.seeds)
        self.feed_forward, self.block = _feed_forward(settings), MAB(settings)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, n, d) to (N, k, d)."""
        x = self.feed_forward(x)
        result: Tensor = self.block(self.seeds.expand(len(x), -1, -1), x, mask)
        return result


def _pooled(x: Tensor, mask: Tensor | None) -> Tensor:
    """(N, 2d): mean and maximum over the real elements."""
    if mask is None:
        return torch.cat([x.mean(1), x.amax(1)], dim=-1)
    real = mask[:, :, None]
    mean = (x * real).sum(1) / real.sum(1)
    return torch.cat([mean, x.masked_fill(~real, -torch.inf).amax(1)], dim=-1)


class DeepSets(nn.Module):
    """Equivariant layer of DeepSets (Zaheer et al. 2017): each element with a summary of the set, and a skip."""

    def __init__(self, settings: SetSettings) -> None:
        super().__init__()
        self.own, self.summary = (
            nn.Linear(settings.dim, settings.dim),
            nn.Linear(2 * settings.dim, settings.dim),
        )
        self.transform = nn.Sequential(
            nn.GELU(), nn.Linear(settings.dim, settings.dim), nn.Dropout(settings.dropout)
        )
        self.before, self.after = _norm(settings, "pre"), _norm(settings, "post")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, n, d) to (N, n, d)."""
        normed = self.before(x)
        both = self.own(normed) + self.summary(_pooled(normed, mask))[:, None]
        result: Tensor = self.after(x + self.transform(both))
        return result


class DeepSetsPool(nn.Module):
    """Mean and maximum of the transformed elements, transformed."""

    def __init__(self, settings: SetSettings) -> None:
        super().__init__()
        self.feed_forward = _feed_forward(settings)
        self.summary = nn.Sequential(
            nn.Linear(2 * settings.dim, settings.dim),
            nn.GELU(),
            nn.Linear(settings.dim, settings.dim),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, n, d) to (N, 1, d)."""
        result: Tensor = self.summary(_pooled(self.feed_forward(x), mask))[:, None]
        return result


_BLOCKS: dict[SetModule, type[nn.Module]] = {"sab": SAB, "isab": ISAB, "deepsets": DeepSets}


class SetToSet(nn.Module):
    """A stack of equivariant blocks: the function called Phi in the paper."""

    def __init__(self, settings: SetSettings) -> None:
        super().__init__()
        block = _BLOCKS[settings.set_module]
        self.blocks = nn.ModuleList(block(settings) for _ in range(settings.depth))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, n, d) to (N, n, d)."""
        for block in self.blocks:
            x = block(x, mask)
        return x


class SetToVector(nn.Module):
    """An invariant function of a set, called Psi in the paper: pooling, and a map of several seeds to one vector."""

    def __init__(self, settings: SetSettings) -> None:
        super().__init__()
        attends = settings.set_module != "deepsets"
        self.pool: nn.Module = PMA(settings) if attends else DeepSetsPool(settings)
        seeds = settings.seeds if attends else 1
        self.join = nn.Identity() if seeds == 1 else nn.Linear(seeds * settings.dim, settings.dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, n, d) to (N, d)."""
        result: Tensor = self.join(self.pool(x, mask).flatten(1))
        return result
