"""Writes the page of a zoo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zooplatform.errors import ConfigError
from zooplatform.formats.extras import need
from zooplatform.reporting.facts import gather
from zooplatform.reporting.page import render

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

__all__ = ["Report", "write_report"]


@dataclass(frozen=True, slots=True)
class Report:
    """A page that was written: where, of what, and the titles of its figures."""

    path: Path
    zoo: str
    metric: str | None
    num_models: int
    num_checkpoints: int
    figures: tuple[str, ...]
    size_bytes: int


def write_report(
    catalog: Catalog, zoo: str, folder: str | os.PathLike[str], *, metric: str | None = None
) -> Report:
    """Write `index.html` about a zoo into a folder; an older one is replaced.

    Args:
        catalog: where the zoo is.
        zoo: its name, or the beginning of one.
        folder: made if it is not there.
        metric: what the networks are compared by; `test_accuracy` where there is one, else the accuracy or other metric
            that most checkpoints have.

    Raises:
        UnknownIdError: there is no such zoo.
        ConfigError: the zoo has no such metric, or the folder cannot be written.
        NotInstalledError: matplotlib is missing.
    """
    need("matplotlib", "report", "A report")
    from zooplatform.reporting.figures import draw_all

    facts = gather(catalog, catalog.resolve("zoo", zoo), metric)
    figures = draw_all(facts)
    data = render(facts, figures).encode()
    target = Path(folder) / "index.html"
    temporary = target.with_name(f".index.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as exc:
        raise ConfigError(
            f"{folder}: the report cannot be written there ({exc.strerror}). Give another --output."
        ) from exc
    return Report(
        target,
        facts.zoo["zoo_id"],
        facts.metric,
        facts.zoo["num_models"],
        facts.zoo["num_checkpoints"],
        tuple(figure.title for figure in figures),
        len(data),
    )
