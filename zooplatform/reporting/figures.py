"""The figures of a report, each with its title, what it shows in words, and the words for who cannot see it."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter

from zooplatform.reporting.svg import COLOURS, GRID, INK, MUTED, figure, label, style, to_svg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from zooplatform.reporting.factors import Factor
    from zooplatform.reporting.facts import Architecture, Facts

__all__ = ["Drawing", "draw_all"]

# Points of a scatter plot, panels of the hyper-parameters, layers with a line of their own.
_POINTS, _PANELS, _LAYERS = 600, 12, 8


class Drawing(NamedTuple):
    """A figure: `text` explains it to everyone, `alt` says what is to be seen."""

    title: str
    text: str
    alt: str
    svg: str


def draw_all(facts: Facts) -> list[Drawing]:
    """The figures that the facts allow, in the order of the page."""
    with mpl.rc_context(style):
        return list(_figures(facts))


def _figures(facts: Facts) -> Iterator[Drawing]:
    if facts.metric and facts.finals:
        if len(facts.courses[facts.metric]) > 1:
            yield _course(facts)
        yield _finals(facts)
        if facts.factors:
            yield _factors(facts)
    for number, architecture in enumerate(facts.architectures):
        if architecture.norms:
            yield _norms(architecture, facts, number)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _sample(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of at most `_POINTS` evenly spaced points of `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, _POINTS)).astype(np.int64))


# --- accuracy by epoch -----------------------------------------------------------------------------------------------


def _course(facts: Facts) -> Drawing:
    assert facts.metric
    made, (axis,) = figure(8.4, 3.6)
    for _, run in groupby(facts.runs, key=lambda row: row["rank"]):
        points = list(run)
        axis.plot(
            [p["moment"] for p in points],
            [p["value"] for p in points],
            color=COLOURS[0],
            linewidth=0.5,
            alpha=0.35,
        )
    for name, colour, dashes in (
        (facts.train_metric, COLOURS[1], (4.0, 2.0)),
        (facts.metric, COLOURS[0], ()),
    ):
        if name is None:
            continue
        rows = facts.courses[name]
        moments = [row["moment"] for row in rows]
        quantiles = np.asarray([row["quantiles"] for row in rows])
        if name == facts.metric:
            _band(axis, moments, quantiles[:, 0], quantiles[:, 4], colour, 0.12)
            _band(axis, moments, quantiles[:, 1], quantiles[:, 3], colour, 0.22)
        (line,) = axis.plot(
            moments,
            quantiles[:, 2],
            color=colour,
            linewidth=2,
            marker="o" if len(moments) <= 12 else "",
            markersize=4,
            label=f"{name}, median",
        )
        if dashes:
            line.set_dashes(dashes)
    axis.set_xlabel(facts.clock)
    axis.set_ylabel(facts.metric)
    _time(axis, [row["moment"] for row in facts.courses[facts.metric]])
    axis.legend(loc="best")
    rows = facts.courses[facts.metric]
    first, last = rows[0], rows[-1]
    return Drawing(
        f"{facts.metric} by {facts.clock}",
        f"Median over all models, with the middle half and the middle 90 % shaded; thin lines are "
        f"{len({row['rank'] for row in facts.runs})} single runs, spread evenly from the worst to the best.",
        f"Line plot: the median of {facts.metric} goes from {_number(first['quantiles'][2])} at {facts.clock} "
        f"{first['moment']:g} to {_number(last['quantiles'][2])} at {facts.clock} {last['moment']:g}, where the middle "
        f"half of the models lies between {_number(last['quantiles'][1])} and {_number(last['quantiles'][3])}.",
        to_svg(made, "course"),
    )


def _time(axis: Axes, moments: Sequence[float]) -> None:
    """Epochs or steps along the axis."""
    axis.margins(x=0.02)
    if all(float(moment).is_integer() for moment in moments):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _band(axis: Axes, x: Sequence[float], low: Any, high: Any, colour: str, alpha: float) -> None:
    axis.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)


# --- final values ----------------------------------------------------------------------------------------------------


def _finals(facts: Facts) -> Drawing:
    assert facts.metric
    values = facts.final_values
    pairs = np.asarray(
        [(row["train"], row["value"]) for row in facts.finals if row["train"] is not None]
    )
    made, axes = figure(8.4, 3.2, 1, 2 if len(pairs) else 1)
    axis = axes[0]
    axis.hist(
        values, bins=min(40, max(8, int(math.sqrt(len(values))))), color=COLOURS[0], alpha=0.8
    )
    axis.axvline(float(np.median(values)), color=INK, linewidth=1)
    axis.set_xlabel(f"final {facts.metric}")
    axis.set_ylabel("models")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    alt = (
        f"Histogram of the final {facts.metric} of {len(values):,} models: from {_number(values.min())} to "
        f"{_number(values.max())}, median {_number(float(np.median(values)))}."
    )
    text = "The last checkpoint of every model; the line is the median."
    if len(pairs):
        axis = axes[1]
        shown = pairs[np.argsort(pairs[:, 1])][_sample(len(pairs))]
        low, high = float(pairs.min()), float(pairs.max())
        axis.plot([low, high], [low, high], color=GRID, linewidth=1.2)
        axis.scatter(shown[:, 0], shown[:, 1], s=9, color=COLOURS[0], alpha=0.55, linewidths=0)
        axis.set_xlabel(f"final {facts.train_metric}")
        axis.set_ylabel(f"final {facts.metric}")
        gap = float(np.median(pairs[:, 0] - pairs[:, 1]))
        text += " Right: training against test; on the diagonal nothing is lost." + _shown(
            len(shown), len(pairs)
        )
        alt += f" Scatter plot of {facts.train_metric} against it: the median difference is {_number(gap)}."
    return Drawing(f"Final {facts.metric}", text, alt, to_svg(made, "finals"))


def _shown(shown: int, total: int) -> str:
    return f" {shown:,} of {total:,} models are drawn." if shown < total else ""


# --- hyper-parameters ------------------------------------------------------------------------------------------------


def _factors(facts: Facts) -> Drawing:
    chosen = facts.factors[:_PANELS]
    columns = min(3, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    made, axes = figure(8.4, 2.35 * rows, rows, columns, sharey=True)
    for axis in axes[len(chosen) :]:
        axis.remove()
    for axis, factor in zip(axes, chosen, strict=False):
        if factor.levels:
            _boxes(axis, factor)
        else:
            _scatter(axis, factor)
        axis.set_title(f"{label(factor.key)}: {factor.explained:.0%}")
    for axis in axes[: len(chosen) : columns]:
        axis.set_ylabel(f"final {facts.metric}")
    left_out = len(facts.factors) - len(chosen)
    models = max(len(f.x) or sum(len(y) for _, y in f.levels) for f in chosen)
    text = (
        "Settings with few values as boxes (middle half, median, and whiskers to 1.5 times its length), numbers as "
        "points with medians of groups of equal size. The percentage is the share of the variance that the setting "
        "explains by itself; the most telling come first."
    )
    if any(not f.levels for f in chosen):
        text += _shown(min(models, _POINTS), models)
    if left_out:
        text += f" {left_out} more settings explain less and are left out."
    told = ", ".join(f"{f.key} ({f.explained:.0%})" for f in chosen[:4])
    return Drawing(
        f"Final {facts.metric} by hyper-parameter",
        text,
        f"One panel for each of {len(chosen)} hyper-parameters. The share of variance that each explains by itself: "
        f"{told}{', and less for the others' if len(chosen) > 4 else ''}.",
        to_svg(made, "factors"),
    )


def _boxes(axis: Axes, factor: Factor) -> None:
    box = axis.boxplot(
        [results for _, results in factor.levels],
        widths=0.55,
        patch_artist=True,
        showfliers=False,
        medianprops={"color": INK, "linewidth": 1.4},
        whiskerprops={"color": MUTED, "linewidth": 0.8},
        capprops={"color": MUTED, "linewidth": 0.8},
    )
    for patch in box["boxes"]:
        patch.set(facecolor=COLOURS[0], alpha=0.45, linewidth=0)
    names = [label(name, 16) for name, _ in factor.levels]
    # Long names, or many, would run into each other.
    turned = sum(map(len, names)) > 26
    axis.set_xticklabels(
        names,
        rotation=35 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor",
    )
    axis.grid(visible=False, axis="x")


def _scatter(axis: Axes, factor: Factor) -> None:
    order = np.argsort(factor.x, kind="stable")[_sample(len(factor.x))]
    axis.scatter(factor.x[order], factor.y[order], s=7, color=COLOURS[0], alpha=0.45, linewidths=0)
    axis.plot(*factor.trend(), color=INK, linewidth=1.4, marker="o", markersize=2.5)
    if factor.logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5))


# --- norms -----------------------------------------------------------------------------------------------------------


def _norms(architecture: Architecture, facts: Facts, number: int) -> Drawing:
    layers = [
        (name, list(rows)) for name, rows in groupby(architecture.norms, key=lambda r: r["name"])
    ]
    moments = sorted({row["moment"] for row in architecture.norms})
    made, (axis,) = figure(8.4, 3.4)
    if len(layers) <= _LAYERS and len(moments) > 1:
        text = _by_moment(axis, layers, facts.clock)
    else:
        text = _by_layer(axis, layers, moments, facts.clock)
    row = architecture.row
    title = f"Norm of the weights: {row['name'] or row['family'] or row['architecture_id']}"
    changes = [(name, rows[0]["middle"], rows[-1]["middle"]) for name, rows in layers]
    told = "; ".join(f"{n} {_number(a)} to {_number(b)}" for n, a, b in changes[:6])
    return Drawing(
        title,
        text,
        f"Norms of {len(layers)} weight tensors in {row['num_checkpoints']:,} checkpoints. Medians at the first and "
        f"the last {facts.clock}: {told}{'; …' if len(changes) > 6 else ''}.",
        to_svg(made, f"norms{number}"),
    )


def _by_moment(axis: Axes, layers: list[tuple[str, list[dict[str, Any]]]], clock: str) -> str:
    for colour, (name, rows) in zip(COLOURS, layers, strict=False):
        x = [row["moment"] for row in rows]
        _band(axis, x, [r["low"] for r in rows], [r["high"] for r in rows], colour, 0.15)
        shape = " × ".join(map(str, rows[0]["shape"]))
        axis.plot(
            x,
            [row["middle"] for row in rows],
            color=colour,
            linewidth=1.8,
            marker="o" if len(x) <= 12 else "",
            markersize=3.5,
            label=f"{label(name)}  ({shape})",
        )
    axis.set_xlabel(clock)
    axis.set_ylabel("L2 norm")
    _time(axis, [row["moment"] for _, rows in layers for row in rows])
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return (
        f"Median L2 norm of every weight tensor by {clock}, with the middle half of the checkpoints shaded; biases and "
        "vectors are left out."
    )


def _by_layer(
    axis: Axes, layers: list[tuple[str, list[dict[str, Any]]]], moments: list[float], clock: str
) -> str:
    picked = [moments[i] for i in np.unique(np.linspace(0, len(moments) - 1, 5).astype(int))]
    for colour, moment in zip(COLOURS, picked, strict=False):
        places = [
            (place, row["rms"])
            for place, (_, rows) in enumerate(layers, 1)
            for row in rows
            if row["moment"] == moment
        ]
        axis.plot(
            *zip(*places, strict=True),
            color=colour,
            linewidth=1.2,
            marker="o",
            markersize=3,
            label=f"{clock} {moment:g}" if len(picked) > 1 else None,
        )
    axis.set_ylabel("L2 norm / √elements")
    if len(layers) <= _LAYERS:
        axis.set_xticks(range(1, len(layers) + 1), [label(name, 18) for name, _ in layers])
    else:
        axis.set_xlabel("weight tensor, from input to output")
    if len(picked) > 1:
        axis.legend(loc="best")
    return (
        "Root mean square of every weight tensor in the order of the layers, median over the checkpoints; biases and "
        "vectors are left out."
    )
