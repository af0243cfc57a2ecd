"""What a lint rule yields: one fault, however many objects share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zooplatform.catalog.checking import Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LAYOUT", "Finding", "finding", "plural"]

# The tensors of every architecture, as a subquery.
LAYOUT = "(select architecture_id, unnest(layout, recursive := true) from architectures)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Problem):
    """A doubt about what the catalog says.

    Attributes:
        declared: what is declared, or expected of any network.
        found: what the tensors, or the other rows, say.
        repair: what to do.
        ids: every object that has the fault: ids of models (rules about hyper-parameters and splits) or of checkpoints.
    """

    declared: str
    found: str
    repair: str
    ids: tuple[str, ...]


def finding(
    rule: str,
    severity: Severity,
    what: str,
    ids: Sequence[str],
    *,
    zoo: str | None,
    declared: str,
    found: str,
    repair: str,
) -> Finding:
    """A finding about the objects `ids` (of kind `what`) of a zoo; names the first and counts the others."""
    subject = f"{what} {ids[0]}"
    if len(ids) > 1:
        subject += f" and {plural(len(ids) - 1, 'other')}"
    if zoo:
        subject += f" of zoo {zoo}"
    return Finding(
        kind=rule,
        subject=subject,
        message=f"{declared}, but {found}. {repair}",
        severity=severity,
        declared=declared,
        found=found,
        repair=repair,
        ids=tuple(ids),
    )


def plural(count: int, noun: str) -> str:
    """`1 model`, `2,000 models`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
