"""The causal transformer that writes codes.

What stands at place t is the code before it and what is known of place t itself: its layer, the layer's type, the
output unit, the place in the layer and in the unit, the level of its codebook, and, for layouts that are not too long,
a vector of its own. Codes are embedded by what they stand for (the vectors of the codebook through a small network)
plus a learnt difference, and the same table gives the logits.

The transformer may write several codes at a step, a patch: it then reads the codes of the patch before joined, and the
codes within a patch follow each other by a small net that sees the state of the patch and the codes before in it (as
Lee et al. 2022, arXiv 2203.01941, do with a second transformer). Longer sequences fit, and both fitting and sampling
are faster.

Legend for shapes: B networks, C tokens of the prefix, S places of a pass, T tokens of a network, D width of the model,
L levels, K codes of a level, d values of a code, H heads, G heads that share keys and values, h width of a head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from zooplatform.interfaces import LAYER_TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform_igpg.config import TransformerConfig

__all__ = ["Cache", "CodeTransformer", "Places"]

_LAYERS = 256  # layers with an embedding of their own; deeper ones share the last
_WAVES = 12  # frequencies of every counted position
_PREFIX = 256  # tokens of conditions at most


class Places(NamedTuple):
    """Where the tokens of a layout are: `positions` (T, 6) as in `POSITION_COLUMNS`, `levels` (T,), and the row of the
    first one in the table of places, -1 for layouts that have none."""

    positions: torch.Tensor
    levels: torch.Tensor
    first_row: int = -1

    def cut(self, start: int, stop: int) -> Places:
        row = self.first_row if self.first_row < 0 else self.first_row + start
        return Places(self.positions[start:stop], self.levels[start:stop], row)


class Cache:
    """Keys and values (B, H / G, room, h) of every layer; `length` places are filled."""

    def __init__(self, model: CodeTransformer, batch: int, room: int) -> None:
        like = model.start
        shape = (batch, model.config.kv_heads, room, model.config.dim // model.config.heads)
        self.keys = [like.new_empty(shape) for _ in model.blocks]
        self.values = [like.new_empty(shape) for _ in model.blocks]
        self.length = 0


class _Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.width = config.dim // config.heads
        self.dropout = config.dropout
        self.rope = config.rope
        self.into = nn.Linear(config.dim, (config.heads + 2 * config.kv_heads) * self.width)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self, x: torch.Tensor, turn: torch.Tensor, cache: Cache | None, layer: int
    ) -> torch.Tensor:
        batch, length, _ = x.shape
        mixed = self.into(x).view(batch, length, -1, self.width).transpose(1, 2)
        query, key, value = mixed.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if self.rope:
            query, key = _turned(query, turn), _turned(key, turn)
        before = 0
        if cache is not None:
            before = cache.length
            cache.keys[layer][:, :, before : before + length] = key
            cache.values[layer][:, :, before : before + length] = value
            key = cache.keys[layer][:, :, : before + length]
            value = cache.values[layer][:, :, : before + length]
        group = self.heads // self.kv_heads
        if length == 1:
            # The heads that share keys stand side by side as if they were places: no copy of the cache.
            query = query.reshape(batch, self.kv_heads, group, self.width)
            found = F.scaled_dot_product_attention(query, key, value)
        else:
            key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
            # The first pass into a cache, or the only one: nothing stands before it.
            found = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
            )
        found = found.reshape(batch, self.heads, length, self.width).transpose(1, 2)
        result: torch.Tensor = self.out(found.reshape(batch, length, -1))
        return result


class _Layer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(config.dim)
        self.attention = _Attention(config)
        self.before_net = nn.LayerNorm(config.dim)
        self.net = nn.Sequential(
            nn.Linear(config.dim, config.hidden * config.dim),
            nn.GELU(),
            nn.Linear(config.hidden * config.dim, config.dim),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, turn: torch.Tensor, cache: Cache | None, layer: int
    ) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.before_attention(x), turn, cache, layer))
        changed: torch.Tensor = x + self.dropout(self.net(self.before_net(x)))
        return changed


class CodeTransformer(nn.Module):
    """Codes of whole networks, one after the other.

    Args:
        config: sizes.
        code_vectors: (L, K, d) what every code stands for; codes that a level does not have are NaN.
        rows: places with a vector of their own, of all layouts together.
    """

    code_vectors: torch.Tensor
    waves: torch.Tensor
    turns: torch.Tensor

    def __init__(self, config: TransformerConfig, code_vectors: torch.Tensor, rows: int) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch
        valid = code_vectors.isfinite().all(dim=2)
        vectors = code_vectors.float().nan_to_num()
        spread = vectors[valid].std(unbiased=False).clamp_min(1e-6) if valid.any() else 1.0
        self.levels, self.codes = vectors.shape[:2]
        self.register_buffer("code_vectors", vectors / spread)
        # Added to logits: 0 for the codes of a level, minus infinity for those that it does not have; None where it has
        # all of them.
        self._absent = [
            None if bool(own.all()) else torch.zeros(self.codes).masked_fill(~own, -math.inf)
            for own in valid
        ]
        self.describe_code = nn.Sequential(
            nn.Linear(vectors.shape[2], config.code_hidden),
            nn.GELU(),
            nn.Linear(config.code_hidden, dim),
        )
        self.own_code = nn.Parameter(torch.zeros(self.levels, self.codes, dim))
        self.code_bias = nn.Parameter(torch.zeros(self.levels, self.codes))
        self.start = nn.Parameter(0.02 * torch.randn(dim))
        self.layer = nn.Embedding(_LAYERS, dim)
        self.kind = nn.Embedding(len(LAYER_TYPES), dim)
        self.level = nn.Embedding(self.levels, dim)
        self.register_buffer("waves", 2 * math.pi / 4 ** torch.arange(1, _WAVES + 1))
        self.counted = nn.Linear(4 * 2 * _WAVES + 1, dim)
        self.place = nn.Embedding(max(1, rows), dim)
        self.blocks = nn.ModuleList(_Layer(config) for _ in range(config.depth))
        self.last_norm = nn.LayerNorm(dim)
        self.to_code = nn.Linear(dim, dim)
        if patch > 1:
            self.join_codes = nn.Linear(patch * dim, dim)
            self.join_places = nn.Linear(patch * dim, dim)
            self.before = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(patch - 1))
            self.local_norm = nn.LayerNorm(dim)
            self.local_net = nn.Sequential(
                nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
            )
        width = dim // config.heads
        steps = 10_000 ** (-torch.arange(0, width, 2) / width)
        angles = torch.arange(config.context + _PREFIX)[:, None] * steps
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()]), persistent=False)
        self.apply(_initialise)

    # --- tables -------------------------------------------------------------------------------------------------------

    def table(self) -> torch.Tensor:
        """(L, K, D): what codes are embedded as."""
        table: torch.Tensor = self.describe_code(self.code_vectors) + self.own_code
        return table

    @torch.no_grad()
    def prefer(self, counts: torch.Tensor) -> None:
        """Begin with codes as likely as they are frequent, of counts (L, K)."""
        smooth = counts.float() + 1
        self.code_bias.copy_((smooth / smooth.sum(dim=1, keepdim=True)).log())

    def embed_places(self, places: Places) -> torch.Tensor:
        """(S, D): what is known of every place before anything stands there."""
        token, layer, index, kind, unit, chunk = places.positions.unbind(dim=1)
        found: torch.Tensor = (
            self.layer(layer.clamp(0, _LAYERS - 1)) + self.kind(kind) + self.level(places.levels)
        )
        counted = torch.stack([token, index, unit.clamp_min(0), chunk], dim=1)  # (S, 4)
        angles = counted[:, :, None] * self.waves
        waves = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
        found = found + self.counted(torch.cat([waves, (unit < 0)[:, None].float()], dim=1))
        if places.first_row >= 0:
            rows = slice(places.first_row, places.first_row + len(token))
            found = found + self.place.weight[rows]
        return found

    def patch_places(self, embedded: torch.Tensor) -> torch.Tensor:
        """(S / patch, D) of embedded places (S, D), S a multiple of the patch."""
        if self.config.patch == 1:
            return embedded
        found: torch.Tensor = self.join_places(embedded.view(-1, self.join_places.in_features))
        return found

    def patch_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, S / patch, D) of embedded codes (B, S, D)."""
        if self.config.patch == 1:
            return codes
        width = self.join_codes.in_features
        found: torch.Tensor = self.join_codes(codes.reshape(len(codes), -1, width))
        return found

    # --- passes -------------------------------------------------------------------------------------------------------

    def forward(
        self, prefix: torch.Tensor, codes: torch.Tensor, places: Places
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass over S places.

        Args:
            prefix: (B, C, D).
            codes: (B, S) what stands there; the code at a place is seen from the next place on.
            places: of the S places.

        Returns:
            (B, S, D) hidden states, for `logits`, and the table of codes.
        """
        table, patch = self.table(), self.config.patch
        length = codes.shape[1]
        more = -length % patch  # the last patch is filled up; what is there nobody looks at
        embedded = F.pad(self.embed_places(places), (0, 0, 0, more))
        flat = table.view(-1, table.shape[2])
        known = F.pad(F.embedding(codes + places.levels * self.codes, flat), (0, 0, 0, more))
        inputs = self.inputs(self.patch_codes(known[:, :-patch]), self.patch_places(embedded))
        hidden = self.run(prefix, inputs, None)
        if patch == 1:
            return self.to_code(hidden), table
        x = hidden.repeat_interleave(patch, dim=1) + embedded
        inside = known.view(len(codes), -1, patch, known.shape[2])
        for offset, layer in enumerate(self.before, start=1):
            moved = F.pad(inside[:, :, :-offset], (0, 0, offset, 0))
            x = x + layer(moved).flatten(1, 2)
        return self.finish(x)[:, :length], table

    def inputs(self, before: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(B, S, D) what stands at patches: the start and the S - 1 patches before (B, S - 1, D), and places (S, D)."""
        start = self.start.expand(len(before), 1, -1)
        return torch.cat([start, before], dim=1) + places

    def run(self, prefix: torch.Tensor, x: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """(B, S, D) hidden states of S patches that follow the prefix, or what the cache holds.

        With a cache, `prefix` (B, C, D) is part of the first pass; later passes have none, and one patch each.
        """
        skip = prefix.shape[1]
        x = torch.cat([prefix, x], dim=1) if skip else x
        before = 0 if cache is None else cache.length
        turn = self.turns[:, before : before + x.shape[1]]
        for number, block in enumerate(self.blocks):
            x = block(x, turn, cache, number)
        if cache is not None:
            cache.length += x.shape[1]
        hidden: torch.Tensor = self.last_norm(x[:, skip:])
        return hidden

    def local(
        self, hidden: torch.Tensor, place: torch.Tensor, before: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """(B, D) at one place of a patch: the patch's state (B, D), the place (D,), and the embedded codes (B, D) that
        stand before it in the patch, the nearest first."""
        if self.config.patch == 1:
            found: torch.Tensor = self.to_code(hidden)
            return found
        x = hidden + place
        for layer, one in zip(self.before, before, strict=False):
            x = x + layer(one)
        return self.finish(x)

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        """What reads the places of a patch."""
        found: torch.Tensor = self.to_code(x + self.local_net(self.local_norm(x)))
        return found

    def logits(self, hidden: torch.Tensor, table: torch.Tensor, level: int) -> torch.Tensor:
        """(..., K) of hidden states (..., D) at places of one level; -inf for codes that the level does not have."""
        scores = hidden @ table[level].T / math.sqrt(table.shape[2]) + self.code_bias[level]
        absent = self._absent[level]
        return scores if absent is None else scores + absent.to(scores.device)

    def nll(
        self, prefix: torch.Tensor, codes: torch.Tensor, places: Places, smoothing: float = 0.0
    ) -> torch.Tensor:
        """(B, S) negative log-likelihood of every code, in nats."""
        hidden, table = self(prefix, codes, places)
        losses = torch.empty(codes.shape, dtype=hidden.dtype, device=hidden.device)
        present = sorted(set(places.levels.tolist()))
        for level in present:
            at = places.levels == level
            whole = len(present) == 1
            scores = self.logits(hidden if whole else hidden[:, at], table, level)
            wanted = codes if whole else codes[:, at]
            loss = F.cross_entropy(
                scores.flatten(0, 1), wanted.flatten(), reduction="none",
                label_smoothing=smoothing if self._absent[level] is None else 0.0,
            )  # fmt: skip
            if whole:
                return loss.view(codes.shape)
            losses[:, at] = loss.view(len(codes), -1)
        return losses


def _turned(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): pairs of values turned by angles (2, S, h / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = turn
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5 * 0.7)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
