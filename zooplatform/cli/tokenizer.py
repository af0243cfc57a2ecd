"""`zoo tokenizer`: fit a tokenizer and store it, and measure what is lost at which rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zooplatform.cli._fitting import (
    artifact_fields,
    config_options,
    data_options,
    name_option,
    pairs,
    print_artifacts,
)
from zooplatform.cli._options import (
    catalog_option,
    image_folder_option,
    json_option,
    member_options,
    note_options,
    pages_option,
    progress_option,
    refuse_role_alone,
    results_option,
    seed_option,
)
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["tokenizer"]


@click.group()
def tokenizer() -> None:
    """Fit tokenizers, which turn weights into tokens and back.

    \b
    zoo tokenizer fit vq --name codes --query "select checkpoint_id from wide" --split main
    zoo tokenizer evaluate codes --query "select checkpoint_id from wide" --split main
    """


@tokenizer.command()
@click.argument("backend", metavar="BACKEND")
@name_option
@click.option(
    "--query",
    metavar="SQL",
    help="What to fit on: SQL with a column checkpoint_id. [default: every stored checkpoint]",
)
@click.option(
    "--split",
    metavar="NAME",
    help="Learn from role train of this split, measure on role val. [default: no split]",
)
@config_options
@data_options
@seed_option
@catalog_option
@json_option
@progress_option
@note_options
def fit(
    backend: str,
    name: str,
    query: str | None,
    split: str | None,
    config: str | None,
    settings: tuple[str, ...],
    data_folder: str | None,
    data: tuple[str, ...],
    seed: int,
    catalog: str,
    as_json: bool,
) -> None:
    """Fit a tokenizer and store it under a name.

    BACKEND is a tokenizer that `zoo plugins` lists. Weights are read only as far as it learns from
    them; images only by settings that learn from what networks compute.

    \b
    zoo tokenizer fit chunk --name chunks --set chunk_size=32
    zoo tokenizer fit vq --name codes --query "from wide" --split main --config best
    zoo tokenizer fit neuron --name units --config units.toml --json
    """
    from zooplatform.evaluation.stored_fits import fit_tokenizer

    with open_catalog(catalog) as opened, progress_callback() as progress:
        made = fit_tokenizer(
            opened,
            backend,
            name=name,
            query=query,
            split=split,
            config=config,
            settings=settings,
            data_folder=data_folder,
            sources=pairs("--data", data),
            seed=seed,
            progress=progress,
        )
    for note in made.data.get("notes", ()):
        out.note(note)
    if as_json:
        out.data(artifact_fields(made))
        return
    read = made.data["checkpoints"]
    learned = f"fitted on {read:,} checkpoints" if read else "there was nothing to learn"
    out.line(f"{made.name} ({made.artifact_id}): {made.backend}, {learned}")
    if made.metrics:
        out.fields(dict(made.metrics))


@tokenizer.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--query",
    required=True,
    metavar="SQL",
    help="Whom to send through the codes: SQL with a column checkpoint_id.",
)
@member_options
@click.option(
    "--n",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    metavar="N",
    help="At most so many networks, drawn by the seed.",
)
@data_options
@seed_option
@catalog_option
@json_option
@note_options
def evaluate(
    name: str,
    query: str,
    split: str | None,
    role: str | None,
    n: int,
    data_folder: str | None,
    data: tuple[str, ...],
    seed: int,
    catalog: str,
    as_json: bool,
) -> None:
    """Send networks through a tokenizer and back, and measure what is left.

    Bits a weight and the error of weights are measured for every network. Where the images can be
    had that networks were trained on, their accuracy afterwards is shown with how often answers
    agree with the own network and with another, with the distance in pairs, and beside a decoder
    that always emits one and the same network.

    \b
    zoo tokenizer evaluate codes --query "select checkpoint_id from wide" --split main
    zoo tokenizer evaluate chunks --query "from wide" --n 50 --data-folder images --json
    """
    from zooplatform.scorecard.tokenizers import evaluate_tokenizer

    refuse_role_alone(role, split)
    with open_catalog(catalog) as opened:
        found = evaluate_tokenizer(
            opened,
            name,
            query,
            split=split,
            role=role,
            n=n,
            seed=seed,
            data_folder=data_folder,
            sources=pairs("--data", data),
        )
    for note in found.notes:
        out.note(note)
    known = found.to_json()
    if as_json:
        out.data({**known, "query": query, "split": split, "role": role, "seed": seed})
        return
    out.fields({key: value for key, value in known.items() if key != "datasets"})
    shown = (
        "accuracy",
        "original_accuracy",
        "agreement_own",
        "agreement_other",
        "relative_distance",
    )
    rows = [
        {"dataset": dataset, "decoder": label, **{key: values[key] for key in shown}}
        for dataset, own in known["datasets"].items()
        for label, values in ((found.artifact.name, own), ("one network", own["constant"]))
    ]
    if rows:
        out.table(rows, ("dataset", "decoder", *shown))


@tokenizer.command()
@click.argument("protocol", metavar="PROTOCOL")
@results_option(
    "JSON file for the results; settings that it holds are not measured again. [default: none is kept]"
)
@pages_option("Write the table and its figure there. [default: do not]")
@image_folder_option
@catalog_option
@json_option
@progress_option
@note_options
def rates(
    protocol: str,
    output: Path | None,
    pages: Path | None,
    data_folder: Path | None,
    catalog: str,
    as_json: bool,
) -> None:
    """Measure how many bits a weight networks need.

    Settings of tokenizers are fitted on training networks; held-out ones go through their codes
    and back, and are measured on test images. PROTOCOL is a TOML file or rates-igpg.

    \b
    zoo tokenizer rates rates-igpg --data-folder images -o docs/results/rates-igpg.json --pages docs/results
    zoo tokenizer rates my-rates.toml --json
    """
    from zooplatform.scorecard.rates import load_rates, measure_rates, rates_page

    asked = load_rates(protocol)
    with open_catalog(catalog) as opened, progress_callback() as progress:
        found = measure_rates(
            opened, asked, output=output, data_folder=data_folder, progress=progress
        )
    if pages is not None:
        for path in rates_page(found, pages):
            out.note(str(path))
    if as_json:
        out.data(found)
        return
    shown = (
        "label",
        "bits_per_weight",
        "relative_error",
        "accuracy",
        "agreement_own",
        "agreement_other",
    )
    rows = [
        {name: row[name] for name in shown}
        for row in [
            *found["rows"],
            {"label": "one network", "bits_per_weight": 0.0, **found["constant"]},
        ]
    ]
    out.table(rows, shown)


@tokenizer.command("ls")
@catalog_option
@json_option
@note_options
def ls(catalog: str, as_json: bool) -> None:
    """List stored tokenizers, the latest first.

    \b
    zoo tokenizer ls
    zoo tokenizer ls --json
    """
    print_artifacts(catalog, "tokenizer", as_json=as_json)
