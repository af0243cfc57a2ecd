"""Figures: accuracy against relative novelty and by epochs of fine-tuning; accuracy by bits a weight."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from zooplatform.errors import NotInstalledError
from zooplatform.scorecard.render import figure_files, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from zooplatform.scorecard.rows import Row

__all__ = ["draw", "draw_rates"]

# A fixed salt and no date: the same card gives the same files.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "zoo generator evaluate",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "text.parse_math": False,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_REFERENCES = {"scratch": ("#777777", "x"), "zoo": ("#222222", "*"), "copy": ("#777777", "s")}
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#11a579"),
    *("#3969ac", "#80ba5a", "#e68310", "#cf1c90", "#f97b72", "#4b4b8f", "#a5aa99", "#b3b300"),
)
_MARKERS = "oD^vP<>hp"


def draw(card: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name, as `figure_files` names them.

    Raises:
        NotInstalledError: matplotlib is missing.
    """
    mpl = _matplotlib()
    rows = rows_of(card)
    drawn = {}
    with mpl.rc_context(_STYLE):
        for name, _ in figure_files(card):
            make = _by_epochs if name.endswith("-epochs.svg") else _against_novelty
            drawn[name] = _svg(make(rows))
    return drawn


def draw_rates(results: Mapping[str, Any]) -> str:
    """SVG of the accuracy of held-out networks by bits a weight, as `zooplatform.scorecard.rates` measures them.

    Raises:
        NotInstalledError: matplotlib is missing.
    """
    with _matplotlib().rc_context(_STYLE):
        figure, (axis,) = _panels(1)
        kinds = (("encoded for weights", False, "x"), ("encoded for the function", True, "o"))
        for at, (label, feedback, mark) in enumerate(kinds):
            own = [
                row for row in results["rows"] if bool(row["config"].get("feedback")) is feedback
            ]
            axis.plot(
                [row["bits_per_weight"] for row in own],
                [row["accuracy"] for row in own],
                mark, color=_COLOURS[at], label=label,
            )  # fmt: skip
        constant = results["constant"]
        axis.axhline(
            constant["original_accuracy"], color="#777777", linewidth=0.8, label="originals"
        )
        axis.axhline(
            constant["accuracy"], color="#777777", linewidth=0.8, linestyle=":", label="one network"
        )
        axis.set_xlabel("bits a weight")
        axis.set_ylabel("accuracy on test images")
        _legend(figure, [axis], 4)
        return _svg(figure)


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as exc:
        raise NotInstalledError(
            "Drawing figures", ["matplotlib"], "pip install 'zooplatform[report]'"
        ) from exc
    return mpl


def _looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every method; rows of one generator share a colour."""
    looks: dict[str, tuple[str, str]] = {}
    generators = list(
        dict.fromkeys(
            row.about.get("generator", row.method) for row in rows if row.method not in _REFERENCES
        )
    )
    used: dict[str, int] = {}
    for row in rows:
        if row.method in looks:
            continue
        if row.method in _REFERENCES:
            looks[row.method] = _REFERENCES[row.method]
            continue
        name = row.about.get("generator", row.method)
        number = used[name] = used.get(name, -1) + 1
        colour = _COLOURS[generators.index(name) % len(_COLOURS)]
        looks[row.method] = colour, _MARKERS[number % len(_MARKERS)]
    return looks


def _against_novelty(rows: Sequence[Row]) -> Figure:
    epochs = sorted({row.epochs for row in rows})
    looks = _looks(rows)
    figure, axes = _panels(len(epochs))
    for axis, epoch in zip(axes, epochs, strict=False):
        own = [row for row in rows if row.epochs == epoch]
        for row in own:
            colour, marker = looks[row.method]
            novelty, accuracy = row.novelty, row.accuracy
            across = [
                [max(0.0, novelty.relative - novelty.relative_q10)],
                [max(0.0, novelty.relative_q90 - novelty.relative)],
            ]
            axis.errorbar(
                novelty.relative,
                accuracy.mean,
                xerr=across,
                yerr=accuracy.std,
                fmt=marker,
                color=colour,
                markersize=5,
                elinewidth=0.6,
                label=row.method,
            )
        for generator in dict.fromkeys(row.about.get("generator") for row in own):
            line = [row for row in own if generator and row.about.get("generator") == generator]
            if len(line) > 1:
                axis.plot(
                    [row.novelty.relative for row in line],
                    [row.accuracy.mean for row in line],
                    color=looks[line[0].method][0],
                    linewidth=0.7,
                    alpha=0.6,
                )
        axis.axvline(1, color="#999999", linewidth=0.7, linestyle=":")
        for row in own:
            if row.method == "zoo":
                axis.axhline(row.accuracy.mean, color="#999999", linewidth=0.7, linestyle=":")
        axis.set_xlim(left=-0.05)
        axis.set_title(_title(epoch), loc="left")
        axis.grid(alpha=0.25)
    figure.supxlabel("relative novelty: distance to the nearest training network / that of the zoo")
    figure.supylabel("accuracy on test images")
    _legend(figure, axes, len(looks))
    return figure


def _by_epochs(rows: Sequence[Row]) -> Figure:
    epochs = sorted({row.epochs for row in rows})
    looks = _looks(rows)
    figure, axes = _panels(1)
    axis = axes[0]
    for method, (colour, marker) in looks.items():
        own = sorted((row for row in rows if row.method == method), key=lambda row: row.epochs)
        at = [epochs.index(row.epochs) for row in own]
        axis.plot(
            at,
            [row.accuracy.mean for row in own],
            marker=marker,
            markersize=4,
            color=colour,
            linewidth=1,
            # How new they are is part of what a method is called here.
            label=f"{method} (novelty {own[0].novelty.relative:.2f})",
        )
        axis.fill_between(
            at,
            [row.accuracy.ci[0] for row in own],
            [row.accuracy.ci[1] for row in own],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
    axis.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
    axis.grid(alpha=0.25)
    figure.supxlabel("epochs of fine-tuning")
    figure.supylabel("accuracy on test images")
    _legend(figure, axes, len(looks))
    return figure


def _title(epochs: int) -> str:
    return "as made" if not epochs else f"after {epochs} epoch{'' if epochs == 1 else 's'}"


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    across = min(2, count)
    down = -(-count // across)
    figure = Figure(figsize=(3.6 * across + 1.8, 2.8 * down + 0.3), layout="constrained")
    FigureCanvasSVG(figure)
    axes = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel())
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _legend(figure: Figure, axes: Sequence[Axes], count: int) -> None:
    named: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside right upper",
        frameon=False,
        fontsize=7 if count < 20 else 6,
    )


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # Lines end without spaces, as the files are kept under version control.
    return re.sub(r"[ \t]+$", "", buffer.getvalue().decode(), flags=re.MULTILINE)
