"""What the commands that fit share: their options, and how artifacts are printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli._output import out
from zooplatform.cli._session import open_catalog

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.artifacts import Artifact
    from zooplatform.cli._options import Decorator

__all__ = [
    "artifact_fields",
    "config_options",
    "data_options",
    "fit_query_option",
    "fit_split_option",
    "json_value",
    "max_minutes_option",
    "name_option",
    "pairs",
    "print_artifacts",
]

name_option: Decorator = click.option(
    "--name", required=True, metavar="NAME", help="What to call it; the latest of a name is meant."
)

fit_query_option: Decorator = click.option(
    "--query", required=True, metavar="SQL", help="What to fit on: SQL with a column checkpoint_id."
)

fit_split_option: Decorator = click.option(
    "--split",
    metavar="NAME",
    help="Learn from role train of this split, choose by role val. "
    "[default: 70/15/15 by training run, drawn from the seed and frozen]",
)

max_minutes_option: Decorator = click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="End with the best so far when so much time has passed. [default: no limit]",
)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--config NAME|FILE` and `--set KEY=VALUE`."""
    config = click.option(
        "--config",
        metavar="NAME|FILE",
        help="A configuration that BACKEND has a name for, such as debug, or a TOML file. "
        "[default: the backend's own]",
    )
    settings = click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="Replace a value of the configuration. Can be given often. [default: none]",
    )
    return config(settings(command))


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--data-folder FOLDER` and `--data NAME=SOURCE`: where the images of data sets are."""
    folder = click.option(
        "--data-folder",
        metavar="FOLDER",
        help="Where relative paths of the images start that networks were trained on. "
        "[default: ZOO_DATA_FOLDER, else here]",
    )
    sources = click.option(
        "--data",
        "data",
        metavar="NAME=SOURCE",
        multiple=True,
        help="Where the images of data set NAME are now, such as mnist=npz:images/mnist.npz. Can be "
        "given often. [default: where they were]",
    )
    return folder(sources(command))


def pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    """`KEY=VALUE` texts of an option that can be given often.

    Raises:
        click.UsageError: one is none.
    """
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.UsageError(f"{option} {text!r}: write it as KEY=VALUE.")
        found[key.strip()] = value
    return found


def json_value(text: str) -> Any:
    """A number, a truth value or a list as JSON has it, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def artifact_fields(artifact: Artifact) -> dict[str, Any]:
    """An artifact as JSON."""
    names = ("artifact_id", "kind", "name", "backend", "plugin_version")
    more = ("config", "data", "metrics", "path", "created_at")
    return {name: getattr(artifact, name) for name in (*names, *more)}


def print_artifacts(catalog: str, kind: str, *, as_json: bool) -> None:
    """What `ls` prints."""
    from zooplatform.artifacts import list_artifacts

    with open_catalog(catalog) as opened:
        found = list_artifacts(opened, kind)
    if as_json:
        out.data([artifact_fields(item) for item in found])
        return
    rows = [
        {
            "name": item.name,
            "artifact_id": item.artifact_id,
            "backend": item.backend,
            "target": item.data.get("target"),
            "data_sets": ", ".join(item.data.get("datasets", {})),
            "fitted_on": item.data.get("train", {}).get(
                "checkpoints", item.data.get("checkpoints")
            ),
            "validation_tau": item.metrics.get("validation_tau"),
            "created": f"{item.created_at:%Y-%m-%d %H:%M}",
        }
        for item in found
    ]
    left_out = ("target", "validation_tau") if kind == "generator" else ("data_sets",)
    columns = (
        *("name", "artifact_id", "backend", "target", "data_sets"),
        *("fitted_on", "validation_tau", "created"),
    )
    out.table(rows, [name for name in columns if name not in left_out])
    if not found:
        out.note(f"No {kind} yet; `zoo {kind} fit` makes one.")
