"""Values as text, tables that fit, notes that stay off stdout."""

from __future__ import annotations

import datetime as dt
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from zooplatform.cli._output import Output, out, progress_callback
from zooplatform.cli._text import (
    cell,
    csv_value,
    display_width,
    human_bytes,
    human_count,
    jsonable,
    shorten,
    to_json,
)

NOON = dt.datetime(2026, 1, 2, 12, 0, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "in_table", "in_json", "in_csv"),
    [
        (None, "", None, ""),
        (True, "true", True, "true"),
        (7, "7", 7, 7),
        (0.1234567, "0.123457", 0.1234567, 0.1234567),
        (float("nan"), "nan", "NaN", "NaN"),
        (float("-inf"), "-inf", "-Infinity", "-Infinity"),
        (Decimal("340282366920938463463"), "340282366920938463463", 340282366920938463463, ...),
        (Decimal("1.50"), "1.50", 1.5, 1.5),
        (NOON, "2026-01-02 12:00:00Z", "2026-01-02T12:00:00Z", "2026-01-02T12:00:00Z"),
        (dt.date(2026, 1, 2), "2026-01-02", "2026-01-02", "2026-01-02"),
        (b"\x00\xff", "00ff", "00ff", "00ff"),
        ([1, None, 2.5], "[1, NULL, 2.5]", [1, None, 2.5], "[1, null, 2.5]"),
        ({"a": [1], "b": None}, "{a: [1], b: NULL}", {"a": [1], "b": None}, ...),
        (Path("a/b"), "a/b", "a/b", "a/b"),
        (UUID(int=1), str(UUID(int=1)), str(UUID(int=1)), str(UUID(int=1))),
        ("two\nlines\x1b[31m", "two\\nlines\\x1b[31m", "two\nlines\x1b[31m", ...),
        ("modèle 模型", "modèle 模型", "modèle 模型", "modèle 模型"),
    ],
)
def test_one_value_in_every_form(value: Any, in_table: str, in_json: Any, in_csv: Any) -> None:
    assert cell(value) == in_table
    assert jsonable(value) == in_json
    assert json.loads(to_json(value)) == in_json
    if in_csv is not ...:
        assert csv_value(value) == in_csv


def test_a_long_list_is_shown_by_its_ends_in_a_table_only() -> None:
    weights = [0.5] * 2464
    assert cell(weights) == "[0.5, 0.5, 0.5, … 0.5, 0.5, 0.5; 2,464 values]"
    assert jsonable(weights) == weights


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json({"a": object()})


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("模型模型", 5, "模型…"),
        ("e\u0301x", 2, "e\u0301x"),
    ],
)
def test_shortening_counts_terminal_columns(text: str, width: int, short: str) -> None:
    assert shorten(text, width) == short
    assert display_width(shorten(text, width)) <= width


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (90_900_000, "90.9 MB"),
        (5_400_000_000, "5.4 GB"),
        (7 * 10**18, "7000.0 PB"),
    ],
)
def test_human_bytes(size: int, text: str) -> None:
    assert human_bytes(size) == text


def test_human_count() -> None:
    assert human_count(1, "model") == "1 model"
    assert human_count(1152, "model") == "1,152 models"
    assert human_count(0, "entry", "entries") == "0 entries"


# --- tables ----------------------------------------------------------------------------------------


def table(rows: Any, columns: Any = None, **options: Any) -> list[str]:
    stream = io.StringIO()
    Output(stream).table(rows, columns, **options)
    return stream.getvalue().splitlines()


def test_numbers_to_the_right_text_to_the_left() -> None:
    assert table([{"name": "a", "n": 1}, {"name": "long", "n": 100}, {"name": "c", "n": None}]) == [
        "name    n",
        "----  ---",
        "a       1",
        "long  100",
        "c",
    ]


def test_columns_choose_and_order() -> None:
    assert table([{"a": 1, "b": 2}], ["b", "a"])[2] == "2  1"
    assert table([(1, 2)], ["x", "x"])[0] == "x  x"
    assert table([{"a": None}], null="NULL")[2].strip() == "NULL"


def test_an_empty_result_still_names_its_columns() -> None:
    assert table([], ["a", "b"]) == ["a  b", "-  -"]
    assert table([]) == []


def test_rows_without_names_are_a_mistake() -> None:
    with pytest.raises(TypeError, match="column names"):
        table([(1, 2)])


def test_a_long_result_streams_and_loses_nothing() -> None:
    """Later, wider rows widen the columns; what came before need not be known in full."""
    lines = table(((i, "x" * (1 + i // 1000)) for i in range(3500)), ["n", "text"])
    assert len(lines) == 3502
    assert lines[-1] == "3499  xxxx"


@pytest.mark.parametrize("columns", ["40", "60"])
def test_a_table_fits_the_screen(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out.table([{"id": "i" * 10, "text": "t" * 100, "more": "m" * 30}])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert lines[2].startswith("i" * 10 + "  ")
    assert "…" in lines[2]


def test_the_first_column_gives_way_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    row = {"name": "n" * 20, "text": "t" * 19, "more": "m" * 19}
    out.table([row])
    assert capsys.readouterr().out.splitlines()[2] == "n" * 20 + "  ttttttt…  mmmmmmm…"
    out.table([row | {"name": "n" * 30}])
    assert capsys.readouterr().out.splitlines()[2] == "n" * 19 + "…  ttttttt…  mmmmmmm…"


def test_a_pipe_of_unknown_width_cuts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out.table([{"text": "t" * 300}])
    assert "t" * 300 in capsys.readouterr().out


def test_fields_leave_out_what_is_unknown() -> None:
    stream = io.StringIO()
    Output(stream).fields({"name": "a", "licence": None, "size": 3})
    assert stream.getvalue() == "name  a\nsize  3\n"


def test_notes_and_errors_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out.line("data")
    out.note("note")
    out.warn("care")
    out.error("bad")
    captured = capsys.readouterr()
    assert captured.out == "data\n"
    assert captured.err == "note\nWarning: care\nError: bad\n"


def test_progress_is_silent_where_nobody_sees_it(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_callback() as progress:
        assert progress is None
    assert capsys.readouterr().err == ""


# --- on a terminal ---------------------------------------------------------------------------------

PROGRAM = """
import sys, click
from zooplatform.cli._options import note_options, progress_option
from zooplatform.cli._output import out, progress_callback

@click.command()
@progress_option
@note_options
def main():
    with progress_callback() as progress:
        if progress is not None:
            progress("reading", 1, 10)
            progress("reading", 10, 10)
            progress("storing", 1, None)
    out.note("a note")
    out.warn("care")
    out.table([{"name": "x"}])

main()
"""


def on_terminal(*words: str, **environment: str) -> str:
    """What `PROGRAM` shows on a real terminal."""
    leader, follower = pty.openpty()
    # A new terminal has no size; tqdm draws nothing on one.
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=follower,
        stderr=follower,
        stdin=follower,
        env={**variables, "TERM": "xterm", **environment},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # Linux ends a closed terminal this way.
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(30) == 0, shown
    return shown.decode()


def test_a_terminal_shows_progress_and_colour() -> None:
    shown = on_terminal()
    assert "reading:" in shown
    assert "storing" in shown
    assert "\x1b[33mWarning:" in shown
    assert "\x1b[1mname" in shown


def test_no_color_and_no_progress() -> None:
    shown = on_terminal("--no-progress", NO_COLOR="1")
    assert "reading" not in shown
    assert "\x1b[33m" not in shown
    assert "\x1b[1m" not in shown
    assert "a note" in shown


def test_quiet_keeps_warnings_and_data() -> None:
    shown = on_terminal("-q")
    assert "a note" not in shown
    assert "reading" not in shown
    assert "Warning:" in shown
    assert "name" in shown
