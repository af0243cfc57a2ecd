"""Makes the page of the measurements from the figures that `run.py --json` wrote.

python tests/benchmarks/report.py docs/results/benchmarks.json docs/results/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HEAD", "line", "page"]

HEAD = (
    "| pair: ours / baseline | ours | baseline | median ratio | spread | at most | met |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def line(row: Mapping[str, Any]) -> str:
    """One row as a line of the table."""
    unit = row["unit"]
    baseline = "" if row["baseline"] is None else f"{_number(row['baseline'])} {unit}"
    spread = (
        ""
        if row["low"] is None or row["low"] == row["high"]
        else f"{_number(row['low'])} to {_number(row['high'])}"
    )
    met = {None: "", True: "yes", False: "**no**"}[row["met"]]
    bound = "" if row["bound"] is None else f"{row['bound']:g}"
    cells = (
        row["pair"],
        f"{_number(row['ours'])} {unit}",
        baseline,
        _number(row["ratio"]),
        spread,
        bound,
        met,
    )
    return f"| {' | '.join(cells)} |"


def page(result: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    about = result["conditions"]
    text = [
        "<!-- Made by tests/benchmarks/report.py from benchmarks.json; do not edit. -->",
        "",
        "Both sides of a pair run in turns in one process on one core with one thread, at least "
        "seven times each; a ratio is the middle of the rounds' ratios.",
        "",
        *HEAD,
        *(line(row) for row in result["rows"]),
        "",
        f"{about['cpu']}, {about['cores_of_the_machine']} cores, load of the machine "
        f"{about['load_before']} before and {about['load_after']} after; Python {about['python']}, "
        + ", ".join(
            f"{name} {about[name]}"
            for name in ("duckdb", "numpy", "pandas", "pyarrow", "safetensors", "torch")
        )
        + f"; {about['date']}.",
    ]
    notes = [f"- {row['pair']}: {row['note']}" for row in result["rows"] if row["note"]]
    if notes:
        text += ["", "What the sides do:", "", *notes]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    result = json.loads(arguments.figures.read_text(encoding="utf-8"))
    arguments.page.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
