"""Figures as SVG that lives inside the page: its own names, the page's colours and fonts."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "GRID", "INK", "MUTED", "figure", "label", "style", "to_svg"]

# Colours that nothing else uses stand for the page's own, which follow light and dark.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
COLOURS = tuple(f"#0102{number:02x}" for number in range(0x10, 0x18))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)},
}

style: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zoo report",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


def figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of some inches with its axes, row by row; made under `mpl.rc_context(style)`."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(made)
    axes = made.subplots(rows, columns, squeeze=False, **options)
    return made, list(axes.flat)


def label(text: str, limit: int = 28) -> str:
    """A name of any length as a label."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def to_svg(made: Figure, prefix: str) -> str:
    """The `<svg>` element; ids get a prefix, so that several figures live in one page."""
    sink = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text: what the font that measures it lacks, the reader's may have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        with mpl.rc_context(style):
            made.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]+", r"font: \1 system-ui, sans-serif", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # As wide as the page allows, at most as it was drawn.
    return re.sub(r' width="[^"]*pt" height="[^"]*pt"| height="[^"]*pt"', "", text, count=2)
