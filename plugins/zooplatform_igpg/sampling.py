"""Codes of many networks at once: one after the other with a key-value cache, and block by block where a network is
longer than what the transformer sees.

A pass has a fixed number of rows, and every network draws from numbers of its own. So the first networks do not depend
on how many are asked for.

Legend for shapes: B networks of a pass, C tokens of the prefix, T tokens of a network, K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from zooplatform.errors import ConfigError
from zooplatform_igpg.transformer import Cache

if TYPE_CHECKING:
    from zooplatform.interfaces import Progress
    from zooplatform_igpg.transformer import CodeTransformer, Places

__all__ = ["Block", "Draw", "blocks_of", "draw_codes", "numbers_of", "pick"]


class Block(NamedTuple):
    """Places `start` to `stop`, generated in one pass; what stands from `window` to `start` is seen."""

    window: int
    start: int
    stop: int


def blocks_of(tokens: int, context: int, window: int) -> tuple[Block, ...]:
    """How a sequence is written by passes of at most `context` places (IGPG, algorithm 1).

    The first pass fills the context, every later one repeats the last `window` places before it.

    Raises:
        ConfigError: nothing is left of the context beside the window.
    """
    if not 0 <= window < context:
        raise ConfigError(f"window is {window}; use 0 to below the context of {context} tokens.")
    found = [Block(0, 0, min(tokens, context))]
    while found[-1].stop < tokens:
        start = found[-1].stop
        found.append(Block(start - window, start, min(tokens, start + context - window)))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How codes are drawn.

    Attributes:
        temperature: what logits are divided by; 0 takes the likeliest code.
        top_k: draw among so many of the likeliest codes; None among all.
        top_p: draw among the likeliest codes whose probabilities make up this much together.
        guidance: how far to go from what is likely without the condition to what is likely with it; 1 is no guidance
            (Ho and Salimans 2022, arXiv 2207.12598).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}; use a number from 0 on.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}; use a whole number from 1 on, or none.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; use a number above 0, up to 1.")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ConfigError(f"guidance is {self.guidance}; use a number from 0 on.")


def numbers_of(seed: int, first: int, count: int, tokens: int) -> torch.Tensor:
    """(count, tokens) float64 in [0, 1): the random numbers of networks `first` to `first + count`."""
    rows = [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number]))).random(tokens)
        for number in range(first, first + count)
    ]
    return torch.from_numpy(np.stack(rows))


def pick(logits: torch.Tensor, numbers: torch.Tensor, how: Draw) -> torch.Tensor:
    """(B,) codes drawn from logits (B, K) by numbers (B,) in [0, 1)."""
    if how.temperature == 0:
        return logits.argmax(dim=1)
    probabilities = (logits / how.temperature).softmax(dim=1)
    if how.top_k is not None and how.top_k < probabilities.shape[1]:
        kept = probabilities.topk(how.top_k, dim=1)
        probabilities = torch.zeros_like(probabilities).scatter(1, kept.indices, kept.values)
    if how.top_p < 1:
        ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
        whole = ordered.cumsum(dim=1)
        # The first code that reaches the sum still belongs to it.
        ordered = ordered.masked_fill(whole - ordered >= how.top_p * whole[:, -1:], 0)
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered)
    summed = probabilities.cumsum(dim=1)
    whole = summed[:, -1:]
    # Strictly below the sum, so that the first code beyond it is one of a probability above 0.
    wanted = torch.minimum(numbers[:, None].to(summed) * whole, whole.nextafter(whole * 0))
    return torch.searchsorted(summed, wanted, right=True).squeeze(1)


@torch.no_grad()
def draw_codes(
    model: CodeTransformer,
    prefix: torch.Tensor,
    places: Places,
    numbers: torch.Tensor,
    how: Draw,
    *,
    without: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """(B, T) codes of B networks.

    Args:
        model: in evaluation mode.
        prefix: (B, C, D) what the networks are for.
        places: of the T tokens.
        numbers: (B, T) in [0, 1).
        how: temperature and so on.
        without: (B, C, D) the prefix that says nothing, for guidance.
        given: (B, t) codes that networks begin with.
        progress: told of every hundred places.
    """
    total = len(places.levels)
    batch = len(prefix)
    guided = how.guidance != 1 and without is not None
    codes = torch.zeros((batch, total), dtype=torch.int64, device=prefix.device)
    known = 0
    if given is not None:
        known = given.shape[1]
        codes[:, :known] = given
    seen = torch.cat([prefix, without]) if guided and without is not None else prefix
    table = model.table()
    flat = table.view(-1, table.shape[2])
    levels, patch = places.levels.tolist(), model.config.patch
    for block in blocks_of(total, model.config.context, model.config.window):
        if block.stop <= known:
            continue
        here = places.cut(block.window, block.stop)
        more = -len(here.levels) % patch
        embedded = F.pad(model.embed_places(here), (0, 0, 0, more))
        joined = model.patch_places(embedded)
        cache = Cache(model, len(seen), seen.shape[1] + len(joined))
        first = max(block.start, known) - block.window
        begin = first // patch  # the patch that the first code to be drawn is of
        told = F.embedding(
            codes[:, block.window : block.window + begin * patch]
            + here.levels[: begin * patch] * model.codes,
            flat,
        )
        x = model.inputs(model.patch_codes(told), joined[: begin + 1])
        hidden = model.run(seen, _twice(x, guided), cache)[:, -1]
        for number in range(begin, len(joined)):
            inside: list[torch.Tensor] = []  # the embedded codes of this patch
            for own in range(number * patch, min((number + 1) * patch, len(here.levels))):
                at = block.window + own
                if own >= first:
                    near = [_twice(one, guided) for one in reversed(inside)]
                    state = model.local(hidden, embedded[own], near)
                    logits = model.logits(state, table, levels[at])
                    if guided:
                        logits = _guided(logits, how.guidance)
                    codes[:, at] = pick(logits, numbers[:, at], how)
                if patch > 1 or own + 1 < len(here.levels):
                    inside.append(F.embedding(codes[:, at] + levels[at] * model.codes, flat))
                if progress is not None and (at + 1) % 100 == 0:
                    progress("codes", at + 1, total)
            if number + 1 < len(joined):
                one = model.patch_codes(torch.stack(inside, dim=1)) + joined[number + 1]
                hidden = model.run(seen[:, :0], _twice(one, guided), cache)[:, 0]
    return codes


def _twice(x: torch.Tensor, guided: bool) -> torch.Tensor:
    return torch.cat([x, x]) if guided else x


def _guided(logits: torch.Tensor, guidance: float) -> torch.Tensor:
    """(B, K) of logits (2 B, K) with and without the condition."""
    told, untold = logits.chunk(2)
    return torch.where(told.isfinite(), untold + guidance * (told - untold), -math.inf)
