"""The only place that prints: data to stdout, everything said about it to stderr."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli._text import cell, display_width, shorten, to_json

if TYPE_CHECKING:
    from typing import TextIO

    from zooplatform.interfaces import Progress

__all__ = ["Output", "Row", "out", "progress_callback", "survive_any_text"]

Row = Mapping[str, Any] | Sequence[Any]

QUIET_KEY = "zooplatform.quiet"
VERBOSE_KEY = "zooplatform.verbose"
SHOW_PROGRESS_KEY = "zooplatform.progress"

# Rows are aligned block by block, so that a result of any length is printed in bounded memory.
_BLOCK = 1000
# A column that has to give way keeps at least this many characters.
_NARROWEST = 8
# Where the width is unknown (a pipe, a file) nothing is cut but single monstrous cells.
_WIDEST_CELL = 400


def survive_any_text() -> None:
    """Let a name that the terminal's encoding lacks be printed as an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _setting(key: str, default: Any) -> Any:
    """What `-q`, `-v` or `--no-progress` of the running command said."""
    ctx = click.get_current_context(silent=True)
    return default if ctx is None else ctx.find_root().meta.get(key, default)


def _styled(text: str, stream: TextIO, **style: Any) -> str:
    """`text` in colour where `stream` is a terminal and NO_COLOR does not forbid it."""
    return (
        click.style(text, **style) if stream.isatty() and not os.environ.get("NO_COLOR") else text
    )


class Output:
    """Prints results to stdout (or to `stream`) and notes to stderr.

    It holds no settings: what `-q` and the like said belongs to the running command.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._given = stream

    @property
    def stream(self) -> TextIO:
        """Where data goes. Looked up each time, since stdout is replaced under test."""
        return self._given or sys.stdout

    @property
    def quiet(self) -> bool:
        return bool(_setting(QUIET_KEY, False))

    # --- stdout: data ----------------------------------------------------------------------------

    def text(self, text: str) -> None:
        """`text` as it is."""
        click.echo(text, file=self.stream, nl=False)

    def line(self, text: str = "") -> None:
        """One line of text."""
        click.echo(text, file=self.stream)

    def data(self, value: Any) -> None:
        """`value` as one indented JSON document."""
        self.line(to_json(value, indent=2))

    def fields(self, values: Mapping[str, Any]) -> None:
        """Names and values below each other; what is None is left out."""
        shown = {name: cell(value) for name, value in values.items() if value is not None}
        widest = max(map(len, shown), default=0)
        for name, text in shown.items():
            self.line(f"{_styled(f'{name:<{widest}}', self.stream, bold=True)}  {text}".rstrip())

    def heading(self, text: str) -> None:
        """A title over a table or a list, with an empty line before it."""
        self.line(f"\n{_styled(text, self.stream, bold=True)}")

    def table(
        self, rows: Iterable[Row], columns: Sequence[str] | None = None, *, null: str = ""
    ) -> None:
        """Rows as aligned columns; numbers to the right, too wide columns cut.

        Args:
            rows: mappings, or sequences in the order of `columns`.
            columns: names to show; those of the first mapping where missing.
            null: how None is shown.
        """
        header_due, widths = True, [0]
        for block in _blocks(rows):
            if columns is None:
                if not isinstance(block[0], Mapping):
                    raise TypeError("rows that are sequences need column names")
                columns = list(block[0])
            names = columns
            values = [[r.get(n) for n in names] if isinstance(r, Mapping) else r for r in block]
            texts = [[cell(value, null=null) for value in row] for row in values]
            if header_due:
                widths = [display_width(name) for name in names]
            widths = [
                max(width, *(display_width(row[i]) for row in texts))
                for i, width in enumerate(widths)
            ]
            right = [all(_is_number(row[i]) for row in values) for i in range(len(names))]
            fitted = _fit(widths, self._width())
            if header_due:
                self._table_header(names, fitted, right)
                header_due = False
            for row in texts:
                self.line(_aligned(row, fitted, right))
        if header_due and columns is not None:
            self._table_header(columns, [display_width(name) for name in columns], [])

    def _width(self) -> int | None:
        """Columns of the screen that a table may take: COLUMNS, else the terminal's, else any."""
        if self._given is not None:
            return None
        if os.environ.get("COLUMNS", "").isdigit() or self.stream.isatty():
            return max(20, shutil.get_terminal_size().columns)
        return None

    def _table_header(
        self, names: Sequence[str], widths: Sequence[int], right: Sequence[bool]
    ) -> None:
        self.line(_styled(_aligned(names, widths, right), self.stream, bold=True))
        self.line("  ".join("-" * width for width in widths))

    # --- stderr: notes ---------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something worth knowing; `-q` turns it off."""
        if not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Something to look into."""
        click.echo(f"{_styled('Warning:', sys.stderr, fg='yellow')} {text}", err=True)

    def error(self, text: str) -> None:
        """Why the command did not do all that it was asked."""
        click.echo(f"{_styled('Error:', sys.stderr, fg='red')} {text}", err=True)


out = Output()


def _blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    block: list[Row] = []
    for row in rows:
        block.append(row)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _fit(widths: Sequence[int], limit: int | None) -> list[int]:
    """Narrow the widest columns until the row fits into `limit` columns of the screen.

    The first column gives way last: it holds the name or the id that a row is known by.
    """
    first, *others = (min(width, _WIDEST_CELL) for width in widths)
    if limit is not None:
        room = limit - 2 * len(others)
        widest = max(others, default=0)
        while widest > _NARROWEST and first + sum(min(w, widest) for w in others) > room:
            widest -= 1
        others = [min(width, widest) for width in others]
        # With more columns than the screen can hold the terminal wraps the lines.
        first = min(first, max(_NARROWEST, room - sum(others)))
    return [first, *others]


def _aligned(texts: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    pieces = []
    for index, (text, width) in enumerate(zip(texts, widths, strict=True)):
        short = shorten(text, width)
        padding = " " * (width - display_width(short))
        pieces.append(padding + short if index < len(right) and right[index] else short + padding)
    return "  ".join(pieces).rstrip()


@contextmanager
def progress_callback() -> Iterator[Progress | None]:
    """A `Progress` that draws on stderr, or None where nobody would see it.

    Nothing is drawn unless stderr is a terminal, nor after `--no-progress` or `-q`; the line is
    wiped at the end.
    """
    if not sys.stderr.isatty() or out.quiet or not _setting(SHOW_PROGRESS_KEY, True):
        yield None
        return
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.close()


class _Bars:
    """One bar at a time: what is reported last replaces what was reported before."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        from tqdm import tqdm

        if what != self._what:
            self.close()
            self._what = what
            self._bar = tqdm(
                desc=shorten(what, 40), total=total, unit_scale=True, leave=False, file=sys.stderr
            )
        elif total != self._bar.total:
            self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._what, self._bar = None, None
