"""`zoo report`: a zoo as one page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from zooplatform.cli._options import catalog_option, folder_option, json_option, note_options
from zooplatform.cli._output import out
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_bytes, human_count

__all__ = ["report"]


@click.command()
@click.argument("zoo", metavar="ZOO")
@folder_option("Folder for index.html. [default: ./report-ZOO]")
@click.option(
    "--metric",
    metavar="NAME",
    help="Compare the networks by this. [default: test_accuracy, else what most have]",
)
@catalog_option
@json_option
@note_options
def report(zoo: str, output: Path | None, metric: str | None, catalog: str, as_json: bool) -> None:
    """Draw a zoo: one HTML page that needs nothing else.

    Accuracy by epoch and by every hyper-parameter, norms of the weights by layer and epoch, counts,
    licence and citation. Needs matplotlib: pip install 'zooplatform[report]'.

    \b
    zoo report digits
    zoo report digits --output pages/digits --metric test_loss
    """
    from zooplatform.reporting import write_report

    with open_catalog(catalog) as opened:
        name = opened.resolve("zoo", zoo)
        # A zoo's name may hold anything, also what is no name of a folder.
        folder = output or Path(
            f"report-{''.join(c if c.isalnum() or c in '-_.' else '-' for c in name)}"
        )
        written = write_report(opened, name, folder, metric=metric)
    if as_json:
        out.data({**asdict(written), "path": str(written.path)})
    else:
        out.line(str(written.path))
    out.note(
        f"{human_count(written.num_models, 'model')}, {human_count(len(written.figures), 'figure')}, "
        f"{human_bytes(written.size_bytes)}"
    )
