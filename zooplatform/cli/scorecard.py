"""`zoo generator evaluate` and `zoo generator render`: the report card of generators, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli._fitting import json_value
from zooplatform.cli._options import (
    catalog_option,
    device_option,
    figures_option,
    folder_option,
    image_folder_option,
    json_option,
    note_options,
    pages_option,
    progress_option,
    results_option,
    seed_option,
)
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_count
from zooplatform.errors import ZooError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["evaluate", "render"]


def _listed(kind: type[Any], least: float) -> Callable[[click.Context, click.Parameter, str], Any]:
    """A callback that reads `0,1,5` as numbers."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
        try:
            numbers = tuple(kind(text) for text in value.split(",") if text.strip())
        except ValueError as exc:
            raise click.BadParameter(f"{value!r} is no list of numbers such as 0,1,5.") from exc
        if not numbers or min(numbers) < least:
            raise click.BadParameter(f"{value!r}: give numbers of at least {least:g}, as in 0,1,5.")
        return tuple(dict.fromkeys(numbers))

    return read


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--against",
    metavar="NAME",
    multiple=True,
    help="Another generator to measure beside. Can be given often. [default: none]",
)
@click.option(
    "--dataset",
    metavar="NAME",
    help="The data set that networks are made for and measured on. [default: that of the training networks]",
)
@click.option(
    "--instruction",
    "instructions",
    metavar="TEXT",
    multiple=True,
    help="Ask in words. Can be given often. [default: the data set by its name]",
)
@click.option(
    "--architecture",
    metavar="NAME|ID",
    help="Ask for networks of this architecture. [default: left to the generator]",
)
@click.option(
    "--wrong-dataset",
    metavar="NAME",
    help="Ask for this data set too and measure across. [default: do not]",
)
@click.option(
    "--wrong-instruction",
    "wrong_instructions",
    metavar="TEXT",
    multiple=True,
    help="Ask for something else in words and measure. Can be given often. [default: do not]",
)
@click.option(
    "--n",
    "n",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="N",
    help="Networks of each method.",
)
@click.option(
    "--finetune-samples",
    "finetuned",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="How many of them are fine-tuned.",
)
@click.option(
    "--tried",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Networks that every learning rate is tried on.",
)
@click.option(
    "--epochs",
    default="0,1,5,25",
    show_default=True,
    metavar="N,...",
    callback=_listed(int, 0),
    help="Epochs of fine-tuning; 0 is without.",
)
@click.option(
    "--train-images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Fine-tune and fit read-outs on N training images, all classes alike. [default: on all]",
)
@click.option(
    "--final",
    is_flag=True,
    help="A last look: measure on images that the recipe of the networks left out, at most 10,000. [default: on "
    "the test images]",
)
@click.option(
    "--readout",
    "readouts",
    metavar="N,...",
    callback=lambda ctx, param, value: _listed(int, 1)(ctx, param, value) if value else (),
    help="Also fit the last layer to N training images of each class; each N is a row. [default: do not]",
)
@click.option(
    "--temperature",
    "temperatures",
    default="1.0",
    show_default=True,
    metavar="T,...",
    callback=_listed(float, 0),
    help="How random sampling is; each value is a row.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    metavar="K",
    help="Draw among so many codes. [default: all]",
)
@click.option(
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the backend, such as top_p=0.9. Can be given often. [default: none]",
)
@click.option(
    "--compared-images",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    metavar="N",
    help="Test images on which answers are compared, at most.",
)
@click.option(
    "--query",
    metavar="SQL",
    help="What the training and held-out networks are chosen from. [default: what NAME was fitted on]",
)
@click.option(
    "--split",
    metavar="NAME",
    help="Its role train are training networks, test held-out ones. [default: that of NAME]",
)
@image_folder_option
@click.option(
    "--data",
    "sources",
    metavar="NAME=SOURCE",
    multiple=True,
    help="Where the images of one data set are. Can be given often. [default: as the networks say]",
)
@results_option(
    "JSON file for the report card; finished parts lie beside it. [default: none is kept]"
)
@pages_option(
    "Write the page and its figures there, as `zoo generator render` does. [default: do not]"
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0),
    metavar="M",
    help="Begin nothing after this time; with --output the next run goes on. [default: no limit]",
)
@seed_option
@device_option
@catalog_option
@json_option
@progress_option
@note_options
def evaluate(
    names: tuple[str, ...],
    against: tuple[str, ...],
    sources: tuple[str, ...],
    options: tuple[str, ...],
    output: Path | None,
    pages: Path | None,
    data_folder: Path | None,
    max_minutes: float | None,
    device: str,
    catalog: str,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write the report card of generators.

    Networks are drawn from each NAME and measured on test images, as made and after fine-tuning,
    together with how new they are: the distance to the nearest training network relative to that
    between training runs. Beside them stand random networks (scratch), held-out runs (zoo) and
    training networks as they are (copy). Nothing is added to the catalog.

    \b
    zoo generator evaluate my-igpg --dataset mnist --data-folder images
    zoo generator evaluate my-igpg --against pca --temperature 0.3,0.7,1.0 -o card.json --pages docs/results
    zoo generator evaluate my-igpg --readout 5,50 --epochs 0
    zoo generator evaluate my-igpg --train-images 200 --epochs 0,1,5
    zoo generator evaluate my-igpg --final --epochs 0,1
    zoo generator evaluate my-igpg --instruction "a CNN for digits" --wrong-dataset fashion --json
    """
    from zooplatform.scorecard.card import evaluate_generators
    from zooplatform.scorecard.wishes import Wishes

    wishes = Wishes(
        options={key: json_value(text) for key, text in _pairs("--option", options)}, **asked
    )
    with open_catalog(catalog) as opened, progress_callback() as progress:
        report = evaluate_generators(
            opened,
            [*names, *against],
            wishes,
            output=output,
            data_folder=data_folder,
            sources=dict(_pairs("--data", sources)),
            device=device,
            max_minutes=max_minutes,
            progress=progress,
        )
    results = report.results
    if as_json:
        out.data(results)
    else:
        _print(results)
    for note in results["notes"]:
        out.note(note)
    for item in results["refused"]:
        out.warn(f"{item['method']}: {item['reason']}")
    if report.path is not None:
        reused = (
            f", {human_count(report.reused, 'part')} of it from before" if report.reused else ""
        )
        out.note(f"{report.path}{reused}")
    if pages is not None:
        _render(dict(results), pages, figures=True)
    if report.missing:
        out.note(
            f"{human_count(report.missing, 'part')} to be done; repeat the command"
            f"{'' if report.path else ' with --output'} to go on."
        )
    elif results["refused"] and not _made(results):
        raise ZooError(
            f"No generator gave networks that could be measured, first {results['refused'][0]['method']}: "
            f"{results['refused'][0]['reason']}"
        )


@click.command()
@click.argument("card", type=click.Path(dir_okay=False, path_type=Path), metavar="CARD")
@folder_option("Folder for the page and its figures. [default: that of CARD]")
@figures_option("Draw accuracy against novelty and by epochs; needs matplotlib. [default: on]")
@json_option
@note_options
def render(card: Path, output: Path | None, figures: bool, as_json: bool) -> None:
    """Write the tables and figures of a report card.

    CARD is what `zoo generator evaluate` wrote; nothing else is read. Figures need matplotlib: pip
    install 'zooplatform[report]'.

    \b
    zoo generator render card.json --output docs/results
    zoo generator render card.json --no-figures
    """
    from zooplatform.scorecard.render import load_card

    written = _render(load_card(card), output or card.parent, figures=figures, say=not as_json)
    if as_json:
        out.data({"files": [str(path) for path in written]})


def _render(card: dict[str, Any], folder: Path, *, figures: bool, say: bool = False) -> list[Path]:
    from zooplatform.scorecard.render import render as render_card

    written = render_card(card, folder, figures=figures)
    for path in written:
        if say:
            out.line(str(path))
        else:
            out.note(str(path))
    return written


def _made(results: Mapping[str, Any]) -> bool:
    return any(row.get("kind") == "generator" for row in results["rows"])


_COLUMNS = (
    *("method", "epochs", "accuracy", "std", "best", "relative_novelty", "error_overlap"),
    *("diversity", "n"),
)


def _print(results: Mapping[str, Any]) -> None:
    """Rows only: they have an accuracy and its novelty, or are not there."""
    from zooplatform.scorecard.render import rows_of

    rows = [
        (
            *(row.method, row.epochs, row.accuracy.mean, row.accuracy.std, row.accuracy.best),
            *(row.novelty.relative, row.novelty.error_overlap),
            *(row.diversity.relative_distance, row.accuracy.n),
        )
        for row in rows_of(results)
    ]
    out.table(rows, _COLUMNS)
    for title, name, columns in _MORE:
        if results[name]:
            out.heading(title)
            out.table([{c: row.get(c) for c in columns} for row in results[name]], columns)


_MORE = (
    (
        "Asked for something else",
        "wrong",
        ("method", "asked_for", "measured_on", "accuracy_mean", "chance", "n", "refused"),
    ),
    (
        "Held-out networks reconstructed",
        "reconstruction",
        (
            *("method", "original_accuracy", "accuracy", "agreement_own", "agreement_other"),
            *("relative_distance", "n"),
        ),
    ),
    ("Cost", "cost", ("method", "n", "seconds", "networks_per_second", "peak_bytes", "peak_of")),
)


def _pairs(name: str, given: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE.", param_hint=name)
        found.append((key, value))
    return found
