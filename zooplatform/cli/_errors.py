"""How a command ends: 0 done, 1 foreseen failure, 2 usage (click's own), 130 interrupted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from zooplatform.cli._output import out
from zooplatform.config import load_settings
from zooplatform.errors import ConfigError, ZooError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FAILED", "INTERRUPTED", "debugging", "ending_with_exit_codes"]

FAILED = 1
INTERRUPTED = 130


def debugging() -> bool:
    """Whether the settings (`ZOO_DEBUG=1`) ask for the traceback of foreseen failures too."""
    try:
        return load_settings().debug
    except ConfigError:
        return False  # This may be the very failure that is being reported.


@contextmanager
def ending_with_exit_codes(ctx: click.Context) -> Iterator[None]:
    """Turn foreseen failures into a line on stderr and an exit code.

    What nobody foresaw passes through with its traceback: it is a bug, and hiding it helps nobody.
    """
    try:
        yield
    except ZooError as error:
        if debugging():
            raise
        out.error(str(error))
        ctx.exit(FAILED)
    except (KeyboardInterrupt, click.Abort):
        # click turns an interrupt at a prompt into Abort, which it would end with 1.
        out.error("interrupted")
        ctx.exit(INTERRUPTED)
