"""Finds what an id, the beginning of one, or a name means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform.errors import CatalogError, UnknownIdError

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

__all__ = ["find", "find_checkpoint"]

_BEGIN_SO = """
    select 'zoo' as kind, zoo_id as id from zoos where starts_with(zoo_id, $1)
    union all select 'model', model_id from models where starts_with(model_id, $1)
    union all
    select 'checkpoint', checkpoint_id from checkpoints where starts_with(checkpoint_id, $1)
    order by id <> $1, kind, id limit 5"""


def find(catalog: Catalog, given: str) -> tuple[str, str]:
    """The kind (`zoo`, `model`, `checkpoint`) and the whole id of what `given` names.

    Raises:
        UnknownIdError: nothing has this id.
        CatalogError: several things begin like this; the text lists them.
    """
    found = [(row["kind"], row["id"]) for row in catalog.sql(_BEGIN_SO, [given]).to_pylist()]
    if not found or not given:
        raise _unknown(catalog, given)
    if len(found) > 1 and found[0][1] != given:
        hits = ", ".join(f"{kind} {identity}" for kind, identity in found[:4])
        more = ", …" if len(found) > 4 else ""
        raise CatalogError(f"Several ids begin with {given!r}: {hits}{more}. Give more of one.")
    return found[0]


def _unknown(catalog: Catalog, given: str) -> UnknownIdError:
    """Several models may have one name, so names are no ids; the error says whose name it is."""
    named = catalog.sql("select model_id from models where name = ? order by 1 limit 4", [given])
    ids = named.column("model_id").to_pylist()
    if not ids:
        return UnknownIdError("zoo, model or checkpoint", given)
    remedy = f"It is a name; give the id: {', '.join(ids)}{', …' if len(ids) > 3 else ''}"
    return UnknownIdError("zoo, model or checkpoint", given, remedy=remedy)


def find_checkpoint(catalog: Catalog, given: str) -> str:
    """The checkpoint that `given` names: its id, or a model's that has exactly one.

    Raises:
        UnknownIdError: there is none.
        CatalogError: there are several.
    """
    kind, identity = find(catalog, given)
    if kind == "checkpoint":
        return identity
    if kind == "zoo":
        raise CatalogError(
            f"{given!r} is a zoo, not a checkpoint. `zoo ls checkpoints --zoo {identity}` lists "
            "its checkpoints."
        )
    ids: list[str] = (
        catalog.sql("select checkpoint_id from checkpoints where model_id = ?", [identity])
        .column("checkpoint_id")
        .to_pylist()
    )
    if len(ids) != 1:
        raise CatalogError(
            f"Model {identity} has {len(ids)} checkpoints. Give the id of one; "
            f"`zoo show {identity}` lists them."
        )
    return ids[0]
