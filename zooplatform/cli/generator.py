"""`zoo generator`: weights of new networks, from an instruction."""

from __future__ import annotations

from typing import Any

import click

from zooplatform.cli._fitting import (
    artifact_fields,
    config_options,
    data_options,
    fit_query_option,
    fit_split_option,
    json_value,
    max_minutes_option,
    name_option,
    pairs,
    print_artifacts,
)
from zooplatform.cli._loading import LazyGroup
from zooplatform.cli._options import (
    catalog_option,
    device_option,
    json_option,
    note_options,
    progress_option,
    seed_option,
)
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_count

__all__ = ["generator"]

# Below so much confidence a generator has not understood what was asked for.
_SURE = 0.5


@click.group(
    cls=LazyGroup,
    elsewhere={
        "evaluate": "zooplatform.cli.scorecard:evaluate",
        "render": "zooplatform.cli.scorecard:render",
    },
)
def generator() -> None:
    """Write the weights of new networks, from an instruction.

    \b
    zoo generator fit igpg --name my-igpg --query "select checkpoint_id from wide where epoch >= 6"
    zoo generator sample my-igpg --n 8 --instruction "a small CNN for fashion items, gelu"
    zoo generator evaluate my-igpg --dataset fashion
    """


@generator.command()
@click.argument("backend", metavar="BACKEND")
@name_option
@fit_query_option
@fit_split_option
@config_options
@data_options
@seed_option
@device_option
@max_minutes_option
@catalog_option
@json_option
@progress_option
@note_options
def fit(
    backend: str,
    name: str,
    query: str,
    split: str | None,
    config: str | None,
    settings: tuple[str, ...],
    data_folder: str | None,
    data: tuple[str, ...],
    seed: int,
    device: str,
    max_minutes: float | None,
    catalog: str,
    as_json: bool,
) -> None:
    """Fit a generator and store it under a name.

    BACKEND is a generator that `zoo plugins` lists. The images that the networks were trained on
    are read again where they can be had; what is left out is said. A fit that is interrupted goes
    on when the same command is given again.

    \b
    zoo generator fit cluster-pca --name baseline --query "select checkpoint_id from wide where epoch = 8"
    zoo generator fit igpg --name my-igpg --query "from wide" --data-folder images --max-minutes 60
    zoo generator fit igpg --name quick --query "from wide" --split main --config debug
    """
    from zooplatform.generation.stored_fits import fit_generator

    with open_catalog(catalog) as opened, progress_callback() as progress:
        made = fit_generator(
            opened,
            backend,
            name=name,
            query=query,
            split=split,
            config=config,
            settings=settings,
            seed=seed,
            device=device,
            max_minutes=max_minutes,
            data_folder=data_folder,
            sources=pairs("--data", data),
            progress=progress,
        )
    for note in made.data["notes"]:
        out.note(note)
    if as_json:
        out.data(artifact_fields(made))
        return
    train, validation = (
        human_count(made.data[side]["checkpoints"], "network") for side in ("train", "validation")
    )
    out.line(f"{made.name} ({made.artifact_id}): {made.backend}")
    out.fields(
        {
            "fitted on": f"{train}, split {made.data['split']}",
            "chosen by": validation,
            "data sets": ", ".join(
                name if item["images"] else f"{name} (without images)"
                for name, item in made.data["datasets"].items()
            )
            or None,
            "licences": ", ".join(made.data["licenses"]),
            **{
                key: value
                for key, value in made.metrics.items()
                # Those of single groups, `mnist/0`, are in --json.
                if isinstance(value, int | float) and key != "fit_seconds" and "/" not in key
            },
            "seconds": made.metrics["fit_seconds"],
        }
    )


@generator.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--n",
    "number",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many networks.",
)
@click.option(
    "--instruction",
    metavar="TEXT",
    help="What they are to be, in plain words. [default: whatever NAME was fitted on]",
)
@click.option(
    "--dataset",
    metavar="DATASET",
    help="A data set that NAME was fitted on. [default: as the instruction says]",
)
@click.option(
    "--architecture",
    metavar="NAME|ID",
    help="An architecture that NAME was fitted on. [default: as the instruction says]",
)
@click.option(
    "--build",
    "build",
    metavar="KEY=VALUE",
    multiple=True,
    help="A value of the configuration that builds them, such as activation=gelu. Can be given "
    "often. [default: none]",
)
@click.option(
    "--images",
    metavar="SOURCE",
    help="Show it examples of this data set, such as npz:usps.npz. [default: none]",
)
@click.option(
    "--data-folder",
    metavar="FOLDER",
    help="Where a relative path of --images starts. [default: ZOO_DATA_FOLDER, else here]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="How random they are; 0 is the least that NAME can be.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    metavar="K",
    help="Draw among the K likeliest codes only. [default: all]",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="P",
    help="Draw among the likeliest codes that make up P. [default: the backend's own]",
)
@click.option(
    "--guidance",
    type=float,
    metavar="X",
    help="Weight of the instruction against none (classifier-free guidance). "
    "[default: the backend's own]",
)
@click.option(
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="A further option of the backend. Can be given often. [default: none]",
)
@click.option(
    "--best-of",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="K",
    help="Draw K candidates for each network and let --judge pick one.",
)
@click.option(
    "--judge",
    metavar="PREDICTOR",
    help="A stored predictor that picks, and whose predictions are kept. [default: none]",
)
@click.option("--zoo", metavar="ZOO", help="Zoo that they go to. [default: generated-NAME]")
@seed_option
@catalog_option
@json_option
@progress_option
@note_options
def sample(
    name: str,
    number: int,
    instruction: str | None,
    dataset: str | None,
    architecture: str | None,
    build: tuple[str, ...],
    images: str | None,
    data_folder: str | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: float | None,
    options: tuple[str, ...],
    best_of: int,
    judge: str | None,
    zoo: str | None,
    seed: int,
    catalog: str,
    as_json: bool,
) -> None:
    """Draw networks and store them, with what they came from.

    The same generator, request and seed give the same networks under the same ids; of what is
    stored already nothing is stored again.

    \b
    zoo generator sample my-igpg --n 8 --instruction "a small CNN for fashion items, gelu"
    zoo generator sample my-igpg --dataset mnist --build activation=gelu --temperature 0.3 --seed 7
    zoo generator sample my-igpg --images npz:usps.npz --n 4 --best-of 16 --judge accuracy --json
    """
    from zooplatform.generation.sampling import sample_networks

    said: dict[str, Any] = {"top_p": top_p, "guidance": guidance}
    said = {key: value for key, value in said.items() if value is not None}
    with open_catalog(catalog) as opened, progress_callback() as progress:
        report = sample_networks(
            opened,
            name,
            number,
            instruction=instruction,
            dataset=dataset,
            architecture=architecture,
            build_config=_values("--build", build) or None,
            images=images,
            data_folder=data_folder,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            options={**said, **_values("--option", options)} or None,
            best_of=best_of,
            judge=judge,
            zoo=zoo,
            progress=progress,
        )
    known = len(report.checkpoint_ids) - report.new
    if known:
        out.note(f"{human_count(known, 'network')} of these were there already.")
    if report.differing:
        out.warn(
            f"{human_count(report.differing, 'network')} came out with other weights than before; those that are "
            "stored stay. Another machine or another version of the plugin drew them."
        )
    if report.new:
        out.note(f"{human_count(report.new, 'new network')} in zoo {report.zoo}.")
    for kind, count in report.kinds.items():
        out.note(f"{human_count(count, 'network')}: {kind}")
    if report.confidence is not None and report.confidence < _SURE:
        out.warn(
            f"{name} is not sure what was meant (confidence {report.confidence:.2f}) and gave what it knows. Name a "
            "--dataset or an --architecture, or use words of the networks that it was fitted on."
        )
    if as_json:
        out.data(
            {
                "checkpoint_ids": list(report.checkpoint_ids),
                "zoo": report.zoo,
                "new": report.new,
                "license": report.license,
                "predictions": list(report.predictions),
                "kinds": dict(report.kinds),
                "confidence": report.confidence,
                "artifact_id": report.generator.artifact_id,
            }
        )
        return
    if report.predictions:
        rows = list(zip(report.checkpoint_ids, report.predictions, strict=True))
        out.table(rows, ("checkpoint_id", "prediction"))
    else:
        out.table([(one,) for one in report.checkpoint_ids], ("checkpoint_id",))


def _values(option: str, given: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE` texts; values are JSON (`2`, `true`), and what is not JSON is a text."""
    return {key: json_value(text) for key, text in pairs(option, given).items()}


@generator.command("ls")
@catalog_option
@json_option
@note_options
def ls(catalog: str, as_json: bool) -> None:
    """List stored generators, the latest first.

    \b
    zoo generator ls
    zoo generator ls --json
    """
    print_artifacts(catalog, "generator", as_json=as_json)
