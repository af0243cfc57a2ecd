"""`zoo grow`: a recipe in, a population of trained networks in the catalog."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from zooplatform.cli._options import (
    catalog_option,
    device_option,
    json_option,
    note_options,
    progress_option,
)
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_count

if TYPE_CHECKING:
    from zooplatform.growing.grow import StackDone

__all__ = ["grow"]


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Replace a value of the recipe, as in runs=50. Can be given often. [default: none]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Seed in place of the recipe's. [default: the recipe's]",
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Stop when so much time has passed; call again to go on. [default: no limit]",
)
@device_option
@catalog_option
@json_option
@progress_option
@note_options
def grow(
    recipe: str,
    settings: tuple[str, ...],
    seed: int | None,
    max_minutes: float | None,
    device: str,
    catalog: str,
    as_json: bool,
) -> None:
    """Train a zoo from a recipe.

    RECIPE is a TOML file, or the name of one that comes with zooplatform (digits-demo, tiny-zoo,
    sne-arch1, sne-arch2, sne16-arch1, sne16-arch2, inr-sine). Networks are stored a stack at a time;
    what is stored already is not trained again, so that after an interruption the same call goes on.
    The catalog is made when it is not there.

    \b
    zoo grow digits-demo
    zoo grow tiny-zoo --set runs=50 --set data.source=npz:mnist.npz
    zoo grow my-zoo.toml --device cuda --max-minutes 30
    """
    from zooplatform.growing import grow as grow_recipe
    from zooplatform.growing import load_recipe

    loaded = load_recipe(recipe, settings)
    if seed is not None:
        loaded = replace(loaded, seed=seed)
    with open_catalog(catalog, create=True) as opened, progress_callback() as progress:
        report = grow_recipe(
            loaded,
            opened,
            device=device,
            max_minutes=max_minutes,
            progress=progress,
            on_stack=_note,
        )
    if as_json:
        out.data(
            {
                "zoos": report.zoos,
                "networks": report.networks,
                "networks_known": report.networks_known,
                "networks_left": report.networks_left,
                "networks_per_minute": report.networks_per_minute,
                "checkpoint_ids": report.checkpoint_ids,
                "stacks": [asdict(stack) for stack in report.done],
            }
        )
        return
    speed = f", {report.networks_per_minute:.0f} a minute" if report.done else ""
    out.line(
        f"{', '.join(report.zoos)}: {human_count(report.networks, 'network')} trained and stored in "
        f"{catalog}{speed}; {report.networks_known:,} were there before"
    )
    if report.networks_left:
        out.note(
            f"The time was up: {human_count(report.networks_left, 'network')} left. "
            "The same command goes on."
        )


def _note(done: StackDone) -> None:
    out.note(
        f"{done.zoo} stack {done.stack}: {human_count(done.networks, 'network')} in "
        f"{done.seconds:.1f} s ({done.engine})"
    )
