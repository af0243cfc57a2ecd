"""Frozen splits in the table `splits`: written once under a name, found by name or id."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.errors import CatalogError, ConfigError, UnknownIdError
from zooplatform.splits.drawing import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zooplatform.catalog import Catalog
    from zooplatform.catalog.snapshot import Snapshot

__all__ = [
    "ROLES",
    "Split",
    "SplitMember",
    "check_name",
    "find_split",
    "freeze",
    "list_splits",
    "split_id_of",
    "split_members",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SplitMember(NamedTuple):
    """One checkpoint in one role."""

    role: str
    content_hash: str
    checkpoint_id: str
    model_id: str


@dataclass(frozen=True, slots=True)
class Split:
    """A frozen split.

    Attributes:
        name: what people call it.
        split_id: hash of its members, see `split_id_of`.
        by: what was kept together: `model`, `checkpoint`, a column or a hyper-parameter.
        seed: of the draw, or None where nothing was drawn.
        checkpoints: members by role.
        models: models by role.
        detail: how it was made: query, ratio, stratification, protocol, filters, notes.
        created: whether this call made it; False where it was there already.
    """

    name: str
    split_id: str
    by: str
    seed: int | None
    checkpoints: Mapping[str, int]
    models: Mapping[str, int]
    detail: Mapping[str, Any]
    created: bool = field(default=False, compare=False)

    @property
    def notes(self) -> list[str]:
        """What is worth knowing about it."""
        return list(self.detail.get("notes", []))


def split_id_of(members: Iterable[SplitMember]) -> str:
    """The id of a split: the first 32 hex digits of the SHA-256 of its lines `role content_hash`, each once, sorted.

    It depends on nothing but the weights of the members and their roles, so equal splits of different catalogs have one
    id.
    """
    lines = sorted({f"{member.role} {member.content_hash}\n" for member in members})
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` can name a split."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a split. Use letters, digits, '.', '_' and '-', a letter or digit first."
        )


def freeze(
    catalog: Catalog,
    name: str,
    members: Sequence[SplitMember],
    *,
    by: str,
    seed: int | None,
    detail: Mapping[str, Any],
) -> Split:
    """Store a split; the same members under the same name again change nothing.

    Raises:
        CatalogError: the name belongs to a split with other members.
    """
    check_name(name)
    split_id = split_id_of(members)
    before = _named(catalog, name)
    if before is None:
        rows = sorted(set(members))
        count = len(rows)
        columns = [pa.array(column, type=pa.string()) for column in zip(*rows, strict=True)]
        table = pa.table(
            {
                **dict(zip(SplitMember._fields, columns, strict=True)),
                "split_id": pa.array([split_id] * count),
                "name": pa.array([name] * count),
                "seed": pa.array([seed] * count, type=pa.int64()),
                "by": pa.array([by] * count),
                "detail": pa.array(
                    [json.dumps(detail, sort_keys=True, ensure_ascii=False)] * count
                ),
            }
        )
        try:
            catalog.commit(f"split {name}", {"splits": table}, guard=partial(_refuse_taken, name))
        except _TakenError:
            before = find_split(catalog, name)  # another process was first
    stored = before or find_split(catalog, name)
    if stored.split_id != split_id:
        raise CatalogError(
            f"Split {name!r} is frozen as {stored.split_id} ({_sizes(stored.checkpoints)}); what is asked for now is "
            f"{split_id} ({_sizes(_count(members))}). Choose another name for it."
        )
    return stored if before is not None else _with_created(stored)


class _TakenError(CatalogError):
    """A split of this name was frozen meanwhile."""


def _refuse_taken(name: str, snapshot: Snapshot) -> None:
    if name in snapshot.table("splits", ["name"]).column("name").unique().to_pylist():
        raise _TakenError(f"Split {name!r} was frozen meanwhile.")


def _with_created(split: Split) -> Split:
    from dataclasses import replace

    return replace(split, created=True)


def _count(members: Iterable[SplitMember]) -> dict[str, int]:
    counts = dict.fromkeys(ROLES, 0)
    for member in set(members):
        counts[member.role] += 1
    return counts


def _sizes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {role}" for role, count in counts.items() if count)


def list_splits(catalog: Catalog) -> list[Split]:
    """Every split, by name."""
    table = catalog.sql(
        """
        select name, split_id, role, min(commit_id) as commit_id, any_value(seed) as seed,
            any_value("by") as "by", any_value(detail) as detail,
            count(distinct checkpoint_id) as checkpoints, count(distinct model_id) as models
        from splits group by name, split_id, role order by name, commit_id, split_id
        """
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        rows = found.setdefault(row["name"], [])
        # Catalogs of versions that did not look once more at the moment of the commit may hold a second one.
        if not rows or rows[0]["split_id"] == row["split_id"]:
            rows.append(row)
    return [_from_rows(name, rows) for name, rows in found.items()]


def _from_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> Split:
    by_role = {row["role"]: row for row in rows}
    present = [role for role in ROLES if role in by_role]
    first = rows[0]
    return Split(
        name=name,
        split_id=first["split_id"],
        by=first["by"],
        seed=first["seed"],
        checkpoints={role: by_role[role]["checkpoints"] for role in present},
        models={role: by_role[role]["models"] for role in present},
        detail=json.loads(first["detail"] or "{}"),
    )


def _named(catalog: Catalog, name: str) -> Split | None:
    return next((split for split in list_splits(catalog) if split.name == name), None)


def find_split(catalog: Catalog, given: str) -> Split:
    """A split by its name, its id or the beginning of its id.

    Raises:
        UnknownIdError: there is none, or ids of several begin so.
    """
    splits = list_splits(catalog)
    for split in splits:
        if split.name == given:
            return split
    found = [split for split in splits if given and split.split_id.startswith(given)]
    if len({split.split_id for split in found}) > 1:
        names = ", ".join(split.name for split in found)
        raise UnknownIdError("split", given, remedy=f"Ids of {names} begin so; give more of it.")
    if not found:
        known = ", ".join(split.name for split in splits) or "none; `zoo split create` makes one"
        raise UnknownIdError("split", given, remedy=f"Splits: {known}.")
    return found[0]


def split_members(catalog: Catalog, split: Split, role: str | None = None) -> list[SplitMember]:
    """Members of a split by role and content hash; of one role where `role` is given.

    Raises:
        ConfigError: the split has no such role.
    """
    if role is not None and role not in split.checkpoints:
        raise ConfigError(
            f"Split {split.name!r} has no role {role!r}. Its roles: {', '.join(split.checkpoints)}."
        )
    columns = [*SplitMember._fields, "split_id", "name"]
    table = catalog.snapshot().table("splits", columns)
    chosen = pc.and_(
        pc.equal(table.column("split_id"), split.split_id),
        pc.equal(table.column("name"), split.name),
    )
    if role is not None:
        chosen = pc.and_(chosen, pc.equal(table.column("role"), role))
    table = table.filter(chosen)
    values = (table.column(name).to_pylist() for name in SplitMember._fields)
    order = {name: at for at, name in enumerate(ROLES)}
    return sorted(
        (SplitMember(*row) for row in zip(*values, strict=True)),
        key=lambda member: (order.get(member.role, len(order)), member[1:]),
    )
