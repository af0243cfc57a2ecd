"""Networks from a fitted generator: what is asked for, what the transformer is told, its codes, their weights.

Legend for shapes: B networks of a pass, T tokens of a network, I size of a data set's vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.errors import ConfigError
from zooplatform.interfaces import GeneratedBatch
from zooplatform_igpg.conditions import Told, told_on, untold
from zooplatform_igpg.sampling import Draw, draw_codes, numbers_of
from zooplatform_igpg.understanding import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zooplatform.interfaces import Condition, Progress
    from zooplatform_igpg.fitted import Known
    from zooplatform_igpg.resolving import Meaning

__all__ = ["OPTIONS", "Order", "make_order", "networks"]

OPTIONS = ("basin", "flat", "guidance", "level", "progress", "spread", "top_p")
_ROWS, _TOKENS = (
    128,
    1 << 17,
)  # networks of a pass, and tokens of all of them where networks are long
_FEWEST = 4


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be drawn.

    Attributes:
        meaning: what the condition was taken for.
        how: temperature and so on.
        level: how good, -1 for no word of it.
        basins: numbers of basins to draw from.
        shares: (basins,) how often each.
        spread: how many times as far from the centre of a basin networks lie as their codes say.
        flat: noise along flat directions, in units of the usual distance between runs of a basin.
        progress: where to say how far it is.
    """

    meaning: Meaning
    how: Draw
    level: int
    basins: tuple[int, ...]
    shares: torch.Tensor
    spread: float = 1.0
    flat: float = 0.0
    progress: Progress | None = None


def make_order(
    known: Known,
    condition: Condition | None,
    temperature: float,
    top_k: int | None,
    options: Mapping[str, Any],
) -> Order:
    """What a call of `sample` asks for.

    Raises:
        ConfigError: an option is unknown or not usable, or nothing known meets the condition.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ConfigError(f"Unknown option {unknown[0]!r}. Known: {', '.join(OPTIONS)}.")
    how = Draw(
        temperature=temperature,
        top_k=top_k,
        top_p=_number(options, "top_p"),
        guidance=_number(options, "guidance"),
    )
    meaning = known.resolver(condition)
    basins, shares = _basins(known, meaning, options.get("basin"))
    return Order(
        meaning=meaning,
        how=how,
        level=_level(known, meaning, options.get("level")),
        basins=tuple(basins),
        shares=shares,
        spread=_spread(known, options),
        flat=_flat(known, options.get("flat")),
        progress=options.get("progress"),
    )


def networks(known: Known, order: Order, n: int, seed: int) -> Iterator[GeneratedBatch]:
    """`n` networks, in batches as they are made.

    Every pass has the same number of rows, whatever `n`: the first networks then do not depend on it.
    """
    blueprint = order.meaning.cell.blueprint
    tokens = len(known.places(blueprint).levels)
    rows = known.config.rows or max(_FEWEST, min(_ROWS, _TOKENS // tokens))
    table = known.tables[blueprint]
    for start in range(0, n, rows):
        numbers = numbers_of(seed, start, rows, tokens + 1)
        at = torch.searchsorted(order.shares.cumsum(0), numbers[:, 0].contiguous(), right=True)
        basins = torch.tensor(order.basins)[at.clamp_max(len(order.basins) - 1)]
        codes = _codes(known, order, basins, numbers[:, 1:])
        made = min(rows, n - start) if known.codec.by_row else rows
        weights = known.decode(codes[:made], blueprint, basins[:made], order.spread)[: n - start]
        if order.flat:
            weights = _moved(known, order, weights, basins, seed, start)
        details = tuple(
            {
                **order.meaning.details,
                "basin": basin,
                "basin_networks": table.counts[basin],
                "temperature": order.how.temperature,
                **({"spread": order.spread} if order.spread != 1 else {}),
                **({"flat": order.flat} if order.flat else {}),
            }
            for basin in basins[: len(weights)].tolist()
        )
        drawn = known.kinds.blueprints[blueprint]
        yield GeneratedBatch(weights.clone(), drawn, order.meaning.cell.dataset, details)


def _moved(
    known: Known,
    order: Order,
    weights: torch.Tensor,
    basins: torch.Tensor,
    seed: int,
    start: int,
) -> torch.Tensor:
    """Networks (B, P) with noise that their function hardly feels; batch normalisation stays as it is."""
    blueprint = order.meaning.cell.blueprint
    spread = known.flatness.get(blueprint, {})
    moved = weights.clone()
    for row, basin in enumerate(basins[: len(weights)].tolist()):
        if basin in spread:
            own = int(np.random.SeedSequence([seed, start + row, 61]).generate_state(1)[0])
            moved[row] += order.flat * spread[basin].noise(weights.shape[1], [own])[0]
    return moved


@torch.no_grad()
def _codes(known: Known, order: Order, basins: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """(B, T) on the CPU."""
    writer, device = known.writer.eval(), known.device
    told = told_on(_told(known, order.meaning, order.level, basins), device)
    places = known.places(order.meaning.cell.blueprint)
    places = places._replace(positions=places.positions.to(device), levels=places.levels.to(device))
    without = writer.conditions(untold(told)) if order.how.guidance != 1 else None
    codes = draw_codes(
        writer.transformer, writer.conditions(told), places, numbers.to(device), order.how,
        without=without, progress=order.progress,
    )  # fmt: skip
    return codes.cpu()


def _told(known: Known, meaning: Meaning, level: int, basins: torch.Tensor) -> Told:
    batch, cell = len(basins), meaning.cell
    number = known.kinds.datasets.index(cell.dataset) if cell.dataset else -1
    vector, name = torch.full((known.datasets.draws.shape[2],), math.nan), number
    if meaning.dataset is not None:
        vector = meaning.dataset
        # Of images that come with a name or words both are told, of images alone no name.
        name = number if meaning.named else -1
    elif number >= 0:
        vector = known.datasets.typical[number]
    shown = None
    if known.datasets.classes is not None:
        shown = torch.full(known.datasets.classes.shape[2:], math.nan)
        if meaning.classes is not None:
            count = min(len(shown), len(meaning.classes))
            shown[:count] = meaning.classes[:count]
        elif number >= 0:
            shown = known.datasets.classes[number, 0]
        shown = shown.expand(batch, -1, -1)
    text = torch.full((HIDDEN,), math.nan) if meaning.text is None else meaning.text
    basin = torch.full((batch,), -1, dtype=torch.int64)
    if known.config.space.basins != 0:
        basin = basins + known.tables[cell.blueprint].first
    return Told(
        text=text.expand(batch, -1),
        dataset=vector.expand(batch, -1),
        name=torch.full((batch,), name, dtype=torch.int64),
        architecture=known.architectures[cell.blueprint].expand(batch, -1),
        level=torch.full((batch,), level, dtype=torch.int64),
        basin=basin,
        classes=shown,
    )


def _level(known: Known, meaning: Meaning, asked: Any) -> int:
    """How good a network is asked for: by an option, by the instruction, or the best."""
    levels = known.config.conditions.levels
    level = asked
    if asked is None:
        level = meaning.level if meaning.level >= 0 else levels - 1
    elif not (type(asked) is int and 0 <= asked < levels):
        raise ConfigError(f"level is {asked!r}; use a whole number from 0 to {levels - 1}.")
    return int(level) if known.has_levels else -1


def _basins(known: Known, meaning: Meaning, asked: Any) -> tuple[list[int], torch.Tensor]:
    """The basins that networks are drawn from, with their shares of the training networks."""
    table = known.tables[meaning.cell.blueprint]
    found = table.of_dataset(meaning.like.dataset)
    if asked is not None:
        if not (type(asked) is int and 0 <= asked < len(found)):
            raise ConfigError(
                f"basin is {asked!r}; data set {meaning.like.dataset!r} has basins 0 to {len(found) - 1}."
            )
        found = [found[asked]]
    counts = torch.tensor([table.counts[at] for at in found], dtype=torch.float64)
    return found, counts / counts.sum()


def _spread(known: Known, options: Mapping[str, Any]) -> float:
    spread = _number(options, "spread")
    if not 0 <= spread < math.inf:
        raise ConfigError(f"spread is {spread}; use a number, not negative.")
    if spread != 1 and known.config.space.center == "none":
        raise ConfigError(
            "spread is about differences from a centre, but this generator writes whole weights. "
            "Fit one with center mean or basin."
        )
    return spread


def _flat(known: Known, asked: Any) -> float:
    """How much noise along flat directions: by an option, or by the configuration."""
    if asked is None:
        return known.config.space.flat if known.flatness else 0.0
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not asked >= 0:
        raise ConfigError(f"flat is {asked!r}; use a number, not negative.")
    if asked and not known.flatness:
        raise ConfigError(
            "flat needs to know what layers are given, but there were no images at the fit. Fit again where the images "
            "of its data sets are (--data-folder)."
        )
    return float(asked)


def _number(options: Mapping[str, Any], name: str) -> float:
    value = options.get(name, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} is {value!r}; use a number.")
    return float(value)
