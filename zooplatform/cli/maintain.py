"""`zoo check`, `zoo gc` and `zoo compact`: keep a catalog whole and tidy."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from zooplatform.cli._errors import FAILED
from zooplatform.cli._options import catalog_option, dry_run_option, json_option, note_options
from zooplatform.cli._output import out
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_bytes, human_count

if TYPE_CHECKING:
    from zooplatform.catalog.checking import Severity

__all__ = ["check", "compact", "gc"]


@click.command()
@click.option(
    "--deep",
    is_flag=True,
    help="Read every stored byte and compare it with its hash. [default: off]",
)
@click.option(
    "--lint/--no-lint",
    default=True,
    help="Also compare what is declared with what the tensors say. [default: on]",
)
@click.option("--strict", is_flag=True, help="Fail for warnings of the lint, too. [default: off]")
@catalog_option
@json_option
@note_options
@click.pass_context
def check(
    ctx: click.Context, deep: bool, lint: bool, strict: bool, catalog: str, as_json: bool
) -> None:
    """Check that the catalog is whole and that metadata fits the tensors.

    Damage is an error, and the exit code is then 1. Where nothing is damaged, the lint adds warnings
    (something declared is wrong) and notes (worth knowing); docs/lint.md explains every rule.

    \b
    zoo check
    zoo check --strict
    zoo check --deep --no-lint --json
    """
    with open_catalog(catalog) as opened:
        problems = opened.check(deep=deep, lint=lint)
    if as_json:
        out.data([asdict(problem) for problem in problems])
    else:
        for problem in problems:
            rule = "" if problem.severity == "error" else f" [{problem.kind}]"
            out.line(f"{problem.severity}{rule}: {problem.subject}: {problem.message}")
    counts = Counter(problem.severity for problem in problems)
    names: dict[Severity, str] = {"error": "problem", "warning": "warning", "note": "note"}
    found = [human_count(counts[s], name) for s, name in names.items() if counts[s]]
    out.note(
        f"{catalog}: {', '.join(found) or 'no problem'} found"
        f"{'' if deep else '; --deep also reads every weight'}"
    )
    if counts["error"] or (strict and counts["warning"]):
        ctx.exit(FAILED)


@click.command()
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=3600,
    show_default=True,
    help="Spare files younger than this: another process may be about to commit them.",
)
@dry_run_option
@catalog_option
@json_option
@note_options
def gc(grace: float, dry_run: bool, catalog: str, as_json: bool) -> None:
    """Remove files that no commit refers to.

    Such files are left by an interrupted write and by `zoo compact`.

    \b
    zoo gc --dry-run
    zoo gc --grace 0 --json
    """
    with open_catalog(catalog) as opened:
        removed = opened.gc(grace_seconds=grace, dry_run=dry_run)
    if as_json:
        out.data([asdict(file) for file in removed])
    else:
        for file in removed:
            out.line(f"{file.path}: {human_bytes(file.size_bytes)}, {file.reason}")
    size = human_bytes(sum(file.size_bytes for file in removed))
    verb = "would be removed" if dry_run else "removed"
    out.note(f"{human_count(len(removed), 'file')}, {size} {verb}")


@click.command()
@catalog_option
@json_option
@note_options
def compact(catalog: str, as_json: bool) -> None:
    """Merge small files; every answer stays the same.

    The files that were merged stay for readers that still use them; `zoo gc` removes them later.

    \b
    zoo compact
    zoo compact --json
    """
    with open_catalog(catalog) as opened:
        merged = opened.compact()
    if as_json:
        out.data(merged)
    elif merged:
        out.table([{"table": table, "files_merged": count} for table, count in merged.items()])
    if not merged:
        out.note("Nothing to merge.")
