"""`zoo ls` and `zoo show`: what is in a catalog, without writing SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli._describe import describe
from zooplatform.cli._find import find
from zooplatform.cli._options import catalog_option, json_option, limit_option, note_options
from zooplatform.cli._output import out
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_bytes, human_count

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

__all__ = ["ls", "show"]

# A screenful or two; JSON, which programs read, is never cut unless asked.
_TABLE_ROWS = 100

_LISTS = {
    "zoos": """
        select z.zoo_id as zoo, count(distinct m.model_id) as num_models,
            count(c.checkpoint_id) as num_checkpoints,
            count(distinct m.architecture_id) as num_architectures,
            coalesce(sum(c.size_bytes), 0)::bigint as size_bytes, z.license, z.source
        from zoos z
        left join models m on m.zoo_id = z.zoo_id
        left join checkpoints c on c.model_id = m.model_id
        where ? is null or z.zoo_id = ?
        group by z.zoo_id, z.license, z.source
        order by zoo""",
    "models": """
        select m.model_id, m.name, m.zoo_id as zoo, a.name as architecture, a.num_parameters,
            (select count(*) from checkpoints c where c.model_id = m.model_id) as num_checkpoints,
            m.license, m.revision
        from models m left join architectures a on a.architecture_id = m.architecture_id
        where ? is null or m.zoo_id = ?
        order by zoo, m.name, m.model_id""",
    "checkpoints": """
        select c.checkpoint_id, m.name as model, m.zoo_id as zoo, c.step, c.epoch, c.dtype,
            c.num_parameters, c.size_bytes, c.state
        from checkpoints c left join models m on m.model_id = c.model_id
        where ? is null or m.zoo_id = ?
        order by zoo, model, m.model_id, c.step, c.epoch, c.checkpoint_id""",
}


@click.command()
@click.argument("what", type=click.Choice(tuple(_LISTS)), default="zoos")
@click.option("--zoo", metavar="NAME", help="Only what belongs to this zoo. [default: all zoos]")
@limit_option(f"List at most N, 0 for all. [default: {_TABLE_ROWS} as a table, all as JSON]")
@catalog_option
@json_option
@note_options
def ls(what: str, zoo: str | None, limit: int | None, catalog: str, as_json: bool) -> None:
    """List zoos, models or checkpoints.

    \b
    zoo ls
    zoo ls models --zoo my-runs
    zoo ls checkpoints --json
    """
    if limit is None and not as_json:
        limit = _TABLE_ROWS
    query = _LISTS[what] + (f" limit {limit + 1}" if limit else "")
    with open_catalog(catalog) as opened:
        zoo_id = _zoo_id(opened, zoo)
        rows = opened.sql(query, [zoo_id, zoo_id]).to_pylist()
        outside = _outside(opened) if what == "zoos" and zoo is None else 0
    more = bool(limit) and len(rows) > (limit or 0)
    if more:
        rows.pop()
    if as_json:
        out.data(rows)
    else:
        out.table([_readable(row) for row in rows])
        if outside:
            # What was ingested without --zoo must not look as if it were not there.
            also = "" if rows else "No zoos here. "
            of = human_count(outside, "model")
            out.note(f"{also}{of} outside of any zoo: `zoo ls models` lists them.")
        elif not rows:
            out.note(f"No {what} here. Store some with `zoo ingest REF`.")
    if more:
        out.note(f"The first {limit:,} are listed; --limit 0 lists all.")


def _outside(catalog: Catalog) -> int:
    rows = catalog.sql("select count(*) from models where zoo_id is null")
    return int(rows.column(0)[0].as_py())


def _zoo_id(catalog: Catalog, zoo: str | None) -> str | None:
    return None if zoo is None else catalog.resolve("zoo", zoo)


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with a size that people read."""
    return {
        name: human_bytes(value) if name == "size_bytes" and value is not None else value
        for name, value in row.items()
    }


def _telling(rows: list[dict[str, Any]]) -> list[str]:
    """Columns worth a place on the screen: not those that only order, are empty or count nothing."""
    return [
        name
        for name in rows[0]
        if not name.endswith("_index")
        and any(row[name] not in (None, "", [], {}) for row in rows)
        and not (name.startswith("num_") and not any(row[name] for row in rows))
    ]


@click.command()
@click.argument("identity", metavar="ID")
@catalog_option
@json_option
@note_options
def show(identity: str, catalog: str, as_json: bool) -> None:
    """Show one zoo, model or checkpoint whole.

    ID is an id, the beginning of one that only one thing has, or a zoo's name.

    \b
    zoo show my-runs
    zoo show 01935c2f
    zoo show 01935c2f --json
    """
    with open_catalog(catalog) as opened:
        kind, found = find(opened, identity)
        parts = describe(opened, kind, found)
    if as_json:
        out.data({"kind": kind, **parts})
        return
    for title, part in parts.items():
        if isinstance(part, dict):
            if title != kind and part:
                out.heading(title.replace("_", " "))
            out.fields(_readable(part))
        elif part:
            out.heading(f"{title.replace('_', ' ')} ({len(part):,})")
            out.table([_readable(row) for row in part], _telling(part))
