"""Timing of pairs: both sides in turns in one process, so that what disturbs one disturbs the other."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MIN_ROUNDS", "Pair", "Row", "Show", "compare", "single"]

MIN_ROUNDS = 7
# Short pairs are measured more often than that, for as long as this.
_SECONDS, _MAX_ROUNDS = 2.0, 51


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        suite: `storage`, `sql`, `ingest` or `memory`.
        pair: what is compared: ours / the baseline.
        ours, baseline: medians in `unit`; `baseline` is None where nothing is compared.
        ratio: median of the rounds' ratios; for information rows None.
        low, high: lowest and highest ratio of a round.
        bound: what the ratio may be at most, None for information.
        met: whether it is.
        unit: `ms`, `MB`, `GB/s`, ...
        rounds: how often both sides ran.
        note: what the two sides do exactly, or why a bound is missed.
    """

    suite: str
    pair: str
    ours: float
    baseline: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    met: bool | None = None
    unit: str = "ms"
    rounds: int = 1
    note: str = ""


Show = "Callable[[Row], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two functions that do the same thing; each is given what its `prepare` made, outside of the time."""

    suite: str
    name: str
    ours: Callable[[Any], object]
    baseline: Callable[[Any], object]
    bound: float | None = None
    prepare_ours: Callable[[], Any] | None = None
    prepare_baseline: Callable[[], Any] | None = None
    note: str = ""
    rounds: int = MIN_ROUNDS


def _settle() -> None:
    """Have done what the other side left to do, so that it is not counted here.

    Python's garbage is one part. The other is in malloc, which sorts the pieces that were freed only when it is next
    asked for a larger one: some milliseconds after thousands of tensors.
    """
    gc.collect()
    for _ in range(8):
        bytearray(1 << 16)


def _timed(work: Callable[[Any], object], prepare: Callable[[], Any] | None) -> float:
    given = prepare() if prepare is not None else None
    _settle()
    gc.disable()
    try:
        begun = time.perf_counter()
        kept = work(given)
        seconds = time.perf_counter() - begun
    finally:
        gc.enable()
    del kept  # giving memory back belongs to neither side
    return seconds


def compare(pair: Pair) -> Row:
    """Run both sides in turns, each first in every second round, after one round that does not count."""
    sides = {
        "ours": (pair.ours, pair.prepare_ours),
        "baseline": (pair.baseline, pair.prepare_baseline),
    }
    times: dict[str, list[float]] = {"ours": [], "baseline": []}
    for work, prepare in sides.values():
        _timed(work, prepare)
    begun = time.perf_counter()
    done = 0
    while done < pair.rounds or (done < _MAX_ROUNDS and time.perf_counter() - begun < _SECONDS):
        order = list(sides) if done % 2 == 0 else list(reversed(sides))
        for side in order:
            times[side].append(_timed(*sides[side]))
        done += 1
    ratios = [a / b for a, b in zip(times["ours"], times["baseline"], strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        suite=pair.suite,
        pair=pair.name,
        ours=statistics.median(times["ours"]) * 1e3,
        baseline=statistics.median(times["baseline"]) * 1e3,
        ratio=ratio,
        low=min(ratios),
        high=max(ratios),
        bound=pair.bound,
        met=None if pair.bound is None else ratio <= pair.bound,
        rounds=done,
        note=pair.note,
    )


def single(
    suite: str,
    pair: str,
    ours: float,
    baseline: float | None = None,
    *,
    bound: float | None = None,
    unit: str,
    note: str = "",
) -> Row:
    """A row that is counted or measured once: bytes, peak memory, rates. The bound is one of the ratio."""
    ratio = None if baseline is None else ours / baseline
    return Row(
        suite=suite,
        pair=pair,
        ours=ours,
        baseline=baseline,
        ratio=ratio,
        low=ratio,
        high=ratio,
        bound=bound,
        met=None if bound is None or ratio is None else ratio <= bound,
        unit=unit,
        note=note,
    )
