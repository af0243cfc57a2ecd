"""Finds what an id, the beginning of one, or a name means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform.errors import CatalogError, UnknownIdError

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

__all__ = ["find", "find_checkpoint"]

_KINDS = ("zoo", "model", "checkpoint")


def find(catalog: Catalog, given: str) -> tuple[str, str]:
    """The kind (`zoo`, `model`, `checkpoint`) and the whole id of what `given` names.

    Raises:
        UnknownIdError: nothing has this id.
        CatalogError: several things begin like this; the text lists them.
    """
    found: list[tuple[str, str]] = []
    ambiguous: list[CatalogError] = []
    for kind in _KINDS:
        try:
            found.append((kind, catalog.resolve(kind, given)))
        except UnknownIdError:
            continue
        except CatalogError as error:
            ambiguous.append(error)
    whole = [hit for hit in found if hit[1] == given]
    if whole:
        return whole[0]
    if ambiguous:
        raise ambiguous[0]
    if len(found) > 1:
        hits = ", ".join(f"{kind} {identity}" for kind, identity in found)
        raise CatalogError(f"{given!r} is the beginning of several ids: {hits}. Give more of one.")
    if not found:
        raise UnknownIdError("zoo, model or checkpoint", given)
    return found[0]


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
