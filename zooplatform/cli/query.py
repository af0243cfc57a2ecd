"""`zoo query`: SQL over the catalog, in every output format."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from zooplatform.cli._options import catalog_option, json_option, limit_option, note_options
from zooplatform.cli._output import out
from zooplatform.cli._results import BINARY_FORMATS, FORMATS, write_result
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_count
from zooplatform.errors import ConfigError

__all__ = ["query"]

_SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


@click.command()
@click.argument("sql", metavar="SQL")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    help="Form of the result. [default: that of FILE's name, else table]",
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write to, complete or not at all. [default: stdout]",
)
@limit_option("Stop after N rows. [default: all]")
@catalog_option
@json_option
@note_options
def query(
    sql: str,
    output_format: str | None,
    output: Path | None,
    limit: int | None,
    catalog: str,
    as_json: bool,
) -> None:
    """Ask the catalog in SQL.

    SQL is DuckDB's dialect, read-only; `-` reads it from stdin. `zoo query "show tables"` lists
    the views. Only the table format shortens long lists; the others print every value. parquet
    and arrow are binary: give a FILE or send stdout to another program. Arrow is the file format
    in a FILE and the stream format on stdout.

    \b
    zoo query "select name, num_parameters from architectures"
    zoo query "select * from metrics where name = 'test_accuracy'" --output acc.parquet
    zoo query - --format csv < question.sql
    """
    if as_json and output_format not in (None, "json"):
        raise click.UsageError(f"--json and --format {output_format} exclude each other.")
    chosen = "json" if as_json else output_format
    if chosen is None:
        chosen = _SUFFIXES.get(output.suffix.lower(), "table") if output else "table"
    if chosen in BINARY_FORMATS and output is None and sys.stdout.isatty():
        raise click.UsageError(
            f"{chosen} is binary and stdout is a terminal. Give --output FILE or a pipe."
        )
    text = sys.stdin.read() if sql == "-" else sql
    if not text.strip():
        raise ConfigError('The SQL is empty. Try: zoo query "show tables"')
    with open_catalog(catalog) as opened, opened.engine().reader(text) as reader:
        num_rows, more = write_result(reader, chosen, output=output, limit=limit)
    where = f" in {output}" if output else ""
    cut = ", more were left out by --limit" if more else ""
    out.note(f"{human_count(num_rows, 'row')}{where}{cut}")
