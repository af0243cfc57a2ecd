"""Heat maps of tau by training and test zoo, and curves over the share of the training runs."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import NotInstalledError
from zooplatform.evaluation.render import figure_files, row_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

__all__ = ["draw"]

# A fixed salt and no date: the same results give the same files.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "zoo predictor matrix",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "text.parse_math": False,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(results: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name, as `figure_files` names them.

    Raises:
        NotInstalledError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
    except ImportError as exc:
        raise NotInstalledError(
            "Drawing figures", ["matplotlib"], "pip install 'zooplatform[report]'"
        ) from exc
    drawn = {}
    with mpl.rc_context(_STYLE):
        for target in results["protocol"]["targets"]:
            cells = [
                cell
                for cell in results["cells"]
                if cell["target"] == target and cell["subset"] == "all" and cell["methods"]
            ]
            for name, _ in figure_files(dict(results), target):
                curve = name.endswith("-fractions.svg")
                own = [cell for cell in cells if (cell["kind"] == "data-fraction") == curve]
                labels = [
                    label
                    for label in results["protocol"]["methods"]
                    if any(label == entry["method"] for cell in own for entry in cell["methods"])
                ]
                drawn[name] = _svg(_curves(own, labels) if curve else _heat(own, labels))
    return drawn


def _heat(cells: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(row_label(cell) for cell in cells))
    columns = list(dict.fromkeys(cell["test"] for cell in cells))
    across = min(3, max(1, len(labels)))
    down = -(-max(1, len(labels)) // across)
    figure = Figure(
        figsize=(across * (1.6 + 0.42 * len(columns)), down * (1.5 + 0.3 * len(rows))),
        layout="constrained",
    )
    FigureCanvasSVG(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(labels) :]:
        axis.set_axis_off()
    for at, (axis, label) in enumerate(zip(axes, labels, strict=False)):
        values = np.full((len(rows), len(columns)), np.nan)
        for cell in cells:
            for entry in cell["methods"]:
                if entry["method"] == label and entry["kendall_tau"] is not None:
                    values[rows.index(row_label(cell)), columns.index(cell["test"])] = entry[
                        "kendall_tau"
                    ]
        axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            axis.text(
                column,
                row,
                f"{value:.2f}".replace("0.", "."),
                ha="center",
                va="center",
                fontsize=6.5,
                color="black" if value > 0.6 else "white",
            )
        axis.set_title(label, loc="left")
        axis.set_xticks(
            range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor"
        )
        first = at % across == 0
        axis.set_yticks(range(len(rows)), rows if first else [""] * len(rows))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.supxlabel("test zoo")
    figure.supylabel("fitted on")
    return figure


def _curves(cells: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    zoos = list(dict.fromkeys(cell["test"] for cell in cells))
    across = min(3, len(zoos))
    down = -(-len(zoos) // across)
    figure = Figure(figsize=(3.1 * across, 2.4 * down + 0.4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axis in axes[len(zoos) :]:
        axis.set_axis_off()
    fractions = sorted({cell["fraction"] for cell in cells})
    for axis, zoo in zip(axes, zoos, strict=False):
        for label in labels:
            points = sorted(
                (cell["fraction"], entry["kendall_tau"], *entry["kendall_tau_ci"])
                for cell in cells
                for entry in cell["methods"]
                if cell["test"] == zoo
                and entry["method"] == label
                and entry["kendall_tau"] is not None
            )
            if points:
                share, tau, low, high = (
                    np.array(column, float) for column in zip(*points, strict=True)
                )
                (line,) = axis.plot(
                    share, tau, marker="o", markersize=3, linewidth=1.2, label=label
                )
                axis.fill_between(share, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axis.set_xscale("log")
        axis.set_xticks(fractions, [f"{share:g}" for share in fractions])
        axis.minorticks_off()
        axis.set_title(zoo, loc="left")
        axis.grid(alpha=0.3)
    figure.supxlabel("share of the training runs")
    figure.supylabel("Kendall's tau")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # Lines end without spaces, as the files are kept under version control.
    return re.sub(r"[ \t]+$", "", buffer.getvalue().decode(), flags=re.MULTILINE)
