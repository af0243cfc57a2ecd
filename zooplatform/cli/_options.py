"""Options that several commands share, so that one thing has one name everywhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli._output import QUIET_KEY, SHOW_PROGRESS_KEY, VERBOSE_KEY
from zooplatform.config import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

__all__ = [
    "catalog_option",
    "device_option",
    "dry_run_option",
    "figures_option",
    "folder_option",
    "image_folder_option",
    "json_option",
    "limit_option",
    "member_options",
    "note_options",
    "pages_option",
    "progress_option",
    "refuse_role_alone",
    "results_option",
    "seed_option",
    "yes_option",
]


def _remember(key: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that keeps an option's value for `out`, whichever command it was given to."""

    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> Any:
        ctx.find_root().meta[key] = value
        return value

    return callback


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Show what the library logs, for the length of this command."""
    ctx.find_root().meta[VERBOSE_KEY] = value
    if not value:
        return
    logger = logging.getLogger("zooplatform")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    ctx.find_root().call_on_close(undo)


catalog_option: Decorator = click.option(
    "-c",
    "--catalog",
    metavar="PATH",
    # The variable is named for the help only: it wins over `zooplatform.toml` in the settings.
    envvar="ZOO_CATALOG",
    show_envvar=True,
    default=lambda: load_settings().catalog,
    show_default=False,
    help="Folder of the catalog. [default: ./zoo]",
)

json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of text. [default: off]"
)

seed_option: Decorator = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of everything random."
)

device_option: Decorator = click.option(
    "--device", default="cpu", show_default=True, metavar="DEVICE", help="torch device to run on."
)

yes_option: Decorator = click.option(
    "-y", "--yes", is_flag=True, help="Answer yes to every question. [default: off]"
)

dry_run_option: Decorator = click.option(
    "--dry-run", is_flag=True, help="Say what would be done and do nothing. [default: off]"
)

progress_option: Decorator = click.option(
    "--progress/--no-progress",
    default=True,
    expose_value=False,
    callback=_remember(SHOW_PROGRESS_KEY),
    help="Show progress on stderr when that is a terminal. [default: on]",
)


image_folder_option: Decorator = click.option(
    "--data-folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the files of images lie. [default: ZOO_DATA_FOLDER, else the working directory]",
)


def results_option(help_text: str) -> Decorator:
    """`--output FILE` of a command whose results are kept; `help_text` says what lies in it."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help=help_text,
    )


def folder_option(help_text: str) -> Decorator:
    """`--output DIR` of a command that writes pages."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help=help_text,
    )


def pages_option(help_text: str) -> Decorator:
    """`--pages DIR` of a command that can write pages beside its results."""
    return click.option(
        "--pages",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help=help_text,
    )


def figures_option(help_text: str) -> Decorator:
    """`--figures/--no-figures`; `help_text` says what is drawn."""
    return click.option("--figures/--no-figures", default=True, help=help_text)


def limit_option(help_text: str, default: int | None = None) -> Decorator:
    """`--limit N`; `help_text` says of what, since that differs by command."""
    return click.option(
        "--limit", type=click.IntRange(min=0), default=default, metavar="N", help=help_text
    )


def member_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--split NAME` and `--role ROLE`: which members of a split a command looks at."""
    split = click.option(
        "--split", metavar="NAME", help="Only members of this split. [default: no split]"
    )
    role = click.option(
        "--role",
        type=click.Choice(["train", "val", "test"]),
        help="Only this role of the split. [default: test]",
    )
    return split(role(command))


def refuse_role_alone(role: str | None, split: str | None) -> None:
    """Check what `member_options` gave.

    Raises:
        click.UsageError: a role, but of no split.
    """
    if role is not None and split is None:
        raise click.UsageError("--role is a role of a split; give --split too.")


def note_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`-q` and `-v`: how much is said on stderr; stdout never changes."""
    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_remember(QUIET_KEY),
        help="No notes and no progress; errors and warnings stay. [default: off]",
    )
    verbose = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="Say more about what is being done. [default: off]",
    )
    return quiet(verbose(command))
