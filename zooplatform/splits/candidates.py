"""The checkpoints that a split is drawn from, and the values by which they are grouped or stratified."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.errors import CatalogError, ConfigError, QueryError, UnknownIdError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.catalog import Catalog

__all__ = ["Candidate", "Candidates", "Span", "grouping", "parse_span", "select", "strata"]

ALL_STORED = "select checkpoint_id from checkpoints where state = 'stored'"

_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:-\s*(\d+(?:\.\d+)?)\s*)?")


class Span(NamedTuple):
    """Steps or epochs from `low` to `high`, both included."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        low, high = (f"{value:g}" for value in self)
        return low if low == high else f"{low}-{high}"


class Candidate(NamedTuple):
    """One checkpoint that may become a member."""

    checkpoint_id: str
    model_id: str
    content_hash: str
    step: int | None
    epoch: float | None


@dataclass(frozen=True)
class Candidates:
    """What a query chose: `members` by checkpoint id, and all that the query `gave` about them."""

    members: tuple[Candidate, ...]
    gave: pa.Table


def parse_span(text: str, *, what: str) -> Span:
    """`86` or `21-25`.

    Raises:
        ConfigError: it is neither.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ConfigError(f"{what} {text!r} is no number and no range. Write 86 or 21-25.")
    low = float(found[1])
    high = low if found[2] is None else float(found[2])
    if high < low:
        raise ConfigError(f"{what} {text!r} ends before it begins. Write {high:g}-{low:g}.")
    return Span(low, high)


def select(
    catalog: Catalog,
    query: str | None,
    *,
    steps: Span | None = None,
    epochs: Span | None = None,
) -> Candidates:
    """The checkpoints that a query names, each once, whatever the order of its rows.

    Raises:
        CatalogError: the query has no column `checkpoint_id`, names nothing, or names checkpoints without weights.
        UnknownIdError: it names a checkpoint that is not there.
    """
    gave = catalog.sql(query or ALL_STORED)
    if "checkpoint_id" not in gave.column_names:
        raise CatalogError(
            f"The query gives {', '.join(gave.column_names)}; a split needs a column checkpoint_id."
        )
    columns = ["checkpoint_id", "model_id", "content_hash", "step", "epoch", "state"]
    index = catalog.snapshot().table("checkpoints", columns, keep=True)
    ids = gave.column("checkpoint_id").unique().cast(pa.string())
    at = pc.index_in(ids, value_set=index.column("checkpoint_id").combine_chunks())
    if at.null_count:
        raise UnknownIdError("checkpoint", str(ids.filter(at.is_null())[0].as_py()))
    rows = index.take(at).sort_by("checkpoint_id")
    headers = rows.filter(pc.not_equal(rows.column("state"), "stored"))
    if headers.num_rows:
        raise CatalogError(
            f"{headers.num_rows} of the {rows.num_rows} checkpoints have no weights in the catalog (for example "
            f"{headers.column('checkpoint_id')[0].as_py()}), so there is no content to draw by. Add "
            "`where state = 'stored'` to the query, or ingest them without --header-only."
        )
    members = tuple(
        Candidate(*row)
        for row in zip(*(rows.column(c).to_pylist() for c in columns[:-1]), strict=True)
        if (steps is None or row[3] in steps) and (epochs is None or row[4] in epochs)
    )
    if not members:
        kept = [f"{n} {span}" for n, span in (("step", steps), ("epoch", epochs)) if span]
        raise CatalogError(
            f"None of the {rows.num_rows} checkpoints of the query is at {' and '.join(kept)}."
            if rows.num_rows
            else "The query names no checkpoint, so there is nothing to split."
        )
    return Candidates(members, gave)


def grouping(catalog: Catalog, candidates: Candidates, by: str) -> list[str]:
    """The value of `by` for every member: members of one value stay together.

    `by` is `model`, `checkpoint`, a column of the query, or a hyper-parameter.

    Raises:
        ConfigError: it is none of these, or some members have no value.
    """
    members = candidates.members
    if by == "model":
        return [member.model_id for member in members]
    if by == "checkpoint":
        return [member.checkpoint_id for member in members]
    values = _given(candidates, by)
    if values is None:
        values = _hyperparameter(catalog, members, by)
    if values is None:
        known = _hyperparameter_names(catalog, members)
        raise ConfigError(
            f"--by {by!r} is neither `model` nor `checkpoint`, no column of the query and no hyper-parameter of its "
            f"models.{_close(by, known)} Hyper-parameters: {', '.join(known) or 'none'}."
        )
    lacking = [member for member, value in zip(members, values, strict=True) if value is None]
    if lacking:
        raise ConfigError(
            f"{len(lacking)} of {len(members)} checkpoints have no {by!r} (for example {lacking[0].checkpoint_id} of "
            f"model {lacking[0].model_id}). Leave them out of the query, or split by something that all have."
        )
    return [str(value) for value in values]


def strata(catalog: Catalog, candidates: Candidates, expression: str) -> list[str]:
    """The stratum of every member.

    `expression` is a column of the query, a hyper-parameter, or SQL over the columns of `wide`. NULL is a stratum.

    Raises:
        QueryError: DuckDB refused the expression.
    """
    values = _given(candidates, expression)
    if values is None:
        values = _hyperparameter(catalog, candidates.members, expression)
    if values is None:
        try:
            table = catalog.sql(
                f"select checkpoint_id, ({expression})::varchar as stratum from wide"
            )
        except QueryError as exc:
            raise QueryError(
                f"--stratify {expression!r} is no column of the query, no hyper-parameter and no SQL over `wide`: {exc}"
            ) from exc
        found = _as_dict(table, "checkpoint_id", "stratum")
        values = [found[member.checkpoint_id] for member in candidates.members]
    return ["" if value is None else value for value in values]


def _given(candidates: Candidates, name: str) -> list[str | None] | None:
    """A column of the query, or None where it has none of this name."""
    gave = candidates.gave
    if name not in gave.column_names or name == "checkpoint_id":
        return None
    try:
        texts = gave.column(name).cast(pa.string())
    except pa.ArrowNotImplementedError as exc:
        raise ConfigError(
            f"Column {name!r} of the query holds {gave.schema.field(name).type}, no plain values."
        ) from exc
    pairs = pa.table({"id": gave.column("checkpoint_id"), "value": texts})
    pairs = pairs.group_by(["id", "value"]).aggregate([])
    found = _as_dict(pairs, "id", "value")
    if len(found) != pairs.num_rows:
        raise ConfigError(
            f"The query gives some checkpoints several values of {name!r}. Choose one of them in the query."
        )
    return [found[member.checkpoint_id] for member in candidates.members]


def _hyperparameter(
    catalog: Catalog, members: Sequence[Candidate], key: str
) -> list[str | None] | None:
    """A hyper-parameter as text, or None where no model has it."""
    table = catalog.sql("select model_id, value from hyperparameters where key = ?", [key])
    found = _as_dict(table, "model_id", "value")
    values = [found.get(member.model_id) for member in members]
    return None if all(value is None for value in values) else values


def _hyperparameter_names(catalog: Catalog, members: Sequence[Candidate]) -> list[str]:
    table = catalog.sql("select distinct key, model_id from hyperparameters order by key")
    chosen = pa.array({member.model_id for member in members}, type=pa.string())
    keys = table.filter(pc.is_in(table.column("model_id"), value_set=chosen)).column("key")
    return list(dict.fromkeys(keys.to_pylist()))


def _as_dict(table: pa.Table, key: str, value: str) -> dict[str, str | None]:
    return dict(zip(table.column(key).to_pylist(), table.column(value).to_pylist(), strict=True))


def _close(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
