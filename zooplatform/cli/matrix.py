"""`zoo predictor matrix` and `zoo predictor render`: compare predictors across zoos, show the comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zooplatform.cli._options import (
    catalog_option,
    device_option,
    figures_option,
    folder_option,
    json_option,
    note_options,
    pages_option,
    progress_option,
    results_option,
)
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_count
from zooplatform.errors import ZooError

__all__ = ["matrix", "render"]


@click.command()
@click.argument("protocol", metavar="PROTOCOL")
@results_option("JSON file for the results; finished fits lie beside it. [default: ./NAME.json]")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that fit, of one thread each.",
)
@click.option(
    "--only", metavar="METHOD,...", help="Only these methods. [default: all of the protocol]"
)
@click.option(
    "--final",
    is_flag=True,
    help="Score the networks that were kept for the last look instead. [default: off]",
)
@click.option(
    "--refit",
    is_flag=True,
    help="Fit again what was fitted by other code than is installed. [default: off]",
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0),
    metavar="M",
    help="Begin no fit after this time; the next run goes on. [default: no limit]",
)
@click.option(
    "--predictions",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the predictions behind the figures to a .npz file. [default: do not]",
)
@pages_option("Write tables and figures there, as `zoo predictor render` does. [default: do not]")
@device_option
@catalog_option
@json_option
@progress_option
@note_options
def matrix(
    protocol: str,
    output: Path | None,
    jobs: int,
    only: str | None,
    final: bool,
    refit: bool,
    max_minutes: float | None,
    predictions: Path | None,
    pages: Path | None,
    device: str,
    catalog: str,
    as_json: bool,
) -> None:
    """Compare predictors across zoos, as a protocol says.

    PROTOCOL is a TOML file, or the name of one that comes with the package. It names zoos, targets,
    methods and cells; the zoos are split once, and the splits are frozen in the catalog. A run that
    was interrupted goes on where it was.

    \b
    zoo predictor matrix matrix-sne -c zoo -o results.json --jobs 2
    zoo predictor matrix my-protocol.toml --only rich-mlp,best --max-minutes 30
    zoo predictor matrix matrix-sne -c zoo -o final.json --final --pages docs/results
    """
    from zooplatform.evaluation.matrix import run_matrix
    from zooplatform.evaluation.protocols import load_protocol

    loaded = load_protocol(protocol)
    path = output or Path(f"{loaded.name}.json")
    with open_catalog(catalog) as opened, progress_callback() as progress:
        report = run_matrix(
            opened,
            loaded,
            path,
            jobs=jobs,
            only=[name.strip() for name in only.split(",") if name.strip()] if only else (),
            final=final,
            refit=refit,
            device=device,
            max_minutes=max_minutes,
            predictions=predictions,
            progress=progress,
        )
    if as_json:
        out.data(
            {
                "path": str(report.path),
                "complete": report.missing == 0,
                "fitted": report.fitted,
                "reused": report.reused,
                "missing": report.missing,
                "failed": [{"fit": what, "reason": why} for what, why in report.failed],
                "summaries": report.results["summaries"],
            }
        )
    else:
        out.table(_rows(report.results), _COLUMNS)
    out.note(
        f"{human_count(report.fitted, 'fit')} done, {report.reused:,} from before: {report.path}"
    )
    if report.changed:
        out.warn(
            f"Fits of {', '.join(report.changed)} were made by other code than is installed now; --refit repeats them."
        )
    if pages is not None:
        _render(report.path, pages, figures=True)
    if report.failed:
        what, why = report.failed[0]
        raise ZooError(
            f"{human_count(len(report.failed), 'fit')} failed, first {what}: {why} The rest is in {report.path}; "
            "correct the protocol and repeat the command."
        )
    if report.missing:
        out.note(f"{human_count(report.missing, 'fit')} to be done; repeat the command to go on.")


@click.command()
@click.argument("results", type=click.Path(dir_okay=False, path_type=Path), metavar="RESULTS")
@folder_option("Folder for the page and its figures. [default: that of RESULTS]")
@figures_option("Draw heat maps and curves; needs matplotlib. [default: on]")
@json_option
@note_options
def render(results: Path, output: Path | None, figures: bool, as_json: bool) -> None:
    """Write the tables and figures of a comparison.

    RESULTS is what `zoo predictor matrix` wrote; nothing else is read. Figures need matplotlib: pip
    install 'zooplatform[report]'.

    \b
    zoo predictor render results.json --output docs/results
    zoo predictor render results.json --no-figures
    """
    written = _render(results, output or results.parent, figures=figures, say=not as_json)
    if as_json:
        out.data({"files": [str(path) for path in written]})


_COLUMNS = (
    "target",
    "kind",
    "fraction",
    "subset",
    "method",
    "tau",
    "low",
    "high",
    "to",
    "difference",
)


def _rows(results: dict[str, Any] | Any) -> list[dict[str, Any]]:
    rows = []
    for item in results["summaries"]:
        for entry in item["methods"]:
            low, high = entry["kendall_tau_ci"]
            against = entry.get("difference", {})
            rows.append(
                {
                    **{name: item[name] for name in ("target", "kind", "fraction", "subset")},
                    "method": entry["method"],
                    "tau": entry["kendall_tau"],
                    "low": low,
                    "high": high,
                    "to": against.get("to"),
                    "difference": against.get("value"),
                }
            )
    return rows


def _render(results: Path, folder: Path, *, figures: bool, say: bool = False) -> list[Path]:
    from zooplatform.evaluation.render import load_results, render

    written = render(load_results(results), folder, figures=figures)
    for path in written:
        (out.line if say else out.note)(str(path))
    return written
