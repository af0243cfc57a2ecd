"""Makes splits: chooses the members, gives them roles, freezes the result."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError
from zooplatform.splits import protocols
from zooplatform.splits.candidates import Span, grouping, parse_span, select, strata
from zooplatform.splits.drawing import draw, join_groups, parse_ratio
from zooplatform.splits.store import Split, SplitMember, check_name, freeze, split_id_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from zooplatform.catalog import Catalog
    from zooplatform.splits.candidates import Candidates

__all__ = ["DEFAULT_BY", "DEFAULT_RATIO", "create_split"]

DEFAULT_BY = "model"
DEFAULT_RATIO = "70/15/15"


def create_split(
    catalog: Catalog,
    name: str | None,
    query: str | None = None,
    *,
    by: str | None = None,
    seed: int = 0,
    ratio: str | None = None,
    stratify: str | None = None,
    steps: str | None = None,
    epochs: str | None = None,
    protocol: str | None = None,
    order: str | os.PathLike[str] | None = None,
) -> Split:
    """Draw a split and freeze it under a name.

    Which role a network gets depends on the seed and on the content of the networks of the query alone: not on ids,
    files, the order of rows or the machine. Networks of equal content are always in one role.

    Args:
        catalog: what to split.
        name: of the split; None names it after its id, so that equal draws are one split.
        query: SQL with a column `checkpoint_id`; every stored checkpoint by default.
        by: what stays together: `model` (the default; all checkpoints of a run), `checkpoint`, a column of the query or
            a hyper-parameter, such as `stack` for networks that were trained together.
        seed: another seed, another split.
        ratio: `70/15/15` (the default) for train/val/test, or `80/20` for train/test; counts groups.
        stratify: a column of the query, a hyper-parameter, or SQL over `wide`, by which all roles are alike.
        steps: only checkpoints at this step (`86`) or in this range (`60-86`).
        epochs: the same by epoch.
        protocol: a published protocol, see `PROTOCOLS`; it decides `by`, `ratio` and `stratify`.
        order: the published file of row numbers that protocol `nfn-2023` reads.

    Raises:
        ConfigError: an argument is not usable, or there are too few groups.
        CatalogError: the name is taken by a split with other members; the text names both.
    """
    if name is not None:
        check_name(name)
    spans = {
        "steps": None if steps is None else parse_span(steps, what="--steps"),
        "epochs": None if epochs is None else parse_span(epochs, what="--epochs"),
    }
    if protocol is not None:
        _check_protocol(protocol, by=by, ratio=ratio, stratify=stratify, order=order)
        if protocol == protocols.SCHURHOLT:
            by, ratio = "model", protocols.SCHURHOLT_RATIO
        elif spans["steps"] is None:
            spans["steps"] = Span(protocols.NFN_STEP, protocols.NFN_STEP)
    elif order is not None:
        raise ConfigError(f"--order belongs to --protocol {protocols.NFN}.")
    candidates = select(catalog, query, **spans)
    detail: dict[str, Any] = {
        "query": query,
        "protocol": protocol,
        **{kind: str(span) for kind, span in spans.items() if span is not None},
    }
    notes: list[str] = []
    if protocol == protocols.NFN:
        assert order is not None
        assert spans["steps"] is not None
        roles, notes = protocols.nfn_roles(
            catalog, candidates, protocols.read_order(order), spans["steps"], subject=order
        )
        members = [SplitMember(r, m.content_hash, m.checkpoint_id, m.model_id) for r, m in roles]
        by, drawn_with = "checkpoint", None
    else:
        if protocol == protocols.SCHURHOLT:
            kept, dropped = protocols.within_schurholt_limits(catalog, candidates.members)
            candidates = replace(candidates, members=tuple(kept))
            notes.append(
                f"{dropped} checkpoints with NaN, infinities or weights beyond 5 left out."
            )
        by, ratio, drawn_with = by or DEFAULT_BY, ratio or DEFAULT_RATIO, seed
        detail |= {"ratio": ratio, "stratify": stratify}
        members, groups = _drawn(catalog, candidates, by, ratio, seed, stratify)
        detail["groups"] = groups
    detail["notes"] = [*notes, *_shared(members, by)]
    detail = {key: value for key, value in detail.items() if value is not None}
    if name is None:
        name = f"drawn-{split_id_of(members)[:12]}"
    return freeze(catalog, name, members, by=by, seed=drawn_with, detail=detail)


def _check_protocol(protocol: str, *, order: object, **decided: str | None) -> None:
    if protocol not in protocols.PROTOCOLS:
        known = ", ".join(protocols.PROTOCOLS)
        raise ConfigError(f"Unknown protocol {protocol!r}. Known: {known}.")
    given = [f"--{name}" for name, value in decided.items() if value is not None]
    if given:
        raise ConfigError(f"Protocol {protocol} decides {', '.join(given)} itself; leave it out.")
    if (order is not None) != (protocol == protocols.NFN):
        raise ConfigError(
            f"Protocol {protocols.NFN} needs --order FILE, the published `*_split.csv` of the zoo."
            if order is None
            else f"--order belongs to --protocol {protocols.NFN}."
        )


def _drawn(
    catalog: Catalog,
    candidates: Candidates,
    by: str,
    ratio: str,
    seed: int,
    stratify: str | None,
) -> tuple[list[SplitMember], int]:
    """Members with their roles, and the number of groups that were dealt."""
    members = candidates.members
    shares = parse_ratio(ratio)
    keys = grouping(catalog, candidates, by)
    contents = [member.content_hash for member in members]
    groups = join_groups(keys, contents)
    if len(groups) < len(shares):
        raise ConfigError(_too_few(by, ratio, keys, contents, len(groups)))
    roles = draw(
        groups,
        contents,
        ratio=shares,
        seed=seed,
        strata=None if stratify is None else strata(catalog, candidates, stratify),
    )
    return [
        SplitMember(role, member.content_hash, member.checkpoint_id, member.model_id)
        for role, member in zip(roles, members, strict=True)
    ], len(groups)


def _too_few(by: str, ratio: str, keys: Sequence[str], contents: Sequence[str], groups: int) -> str:
    """Why there are too few groups, and what to do."""
    values = len(set(keys))
    text = (
        f"{ratio} by {by} needs more groups: the {len(keys)} checkpoints of the query are {groups}"
    )
    if values > groups:
        sharing: dict[str, set[str]] = defaultdict(set)
        for key, content in zip(keys, contents, strict=True):
            sharing[content].add(key)
        content = max(sharing, key=lambda found: (len(sharing[found]), found))
        return (
            f"{text}, since groups that share a network of equal content are one (content hash {content} is in "
            f"{len(sharing[content])} of {values}; a shared initialisation does this). Leave such checkpoints out of "
            "the query, for example with `where epoch > 0`."
        )
    return f"{text}. Give a query with more, or split by `model` or `checkpoint`."


def _shared(members: Iterable[SplitMember], by: str) -> list[str]:
    """Notes about models and contents that are in several roles."""
    models: dict[str, set[str]] = defaultdict(set)
    contents: dict[str, set[str]] = defaultdict(set)
    for member in members:
        models[member.model_id].add(member.role)
        contents[member.content_hash].add(member.role)
    notes = []
    torn = sum(len(roles) > 1 for roles in models.values())
    if torn:
        advice = "" if by == "model" else " Splitting by model keeps each in one."
        notes.append(f"{torn} of {len(models)} models have checkpoints in several roles.{advice}")
    equal = sum(len(roles) > 1 for roles in contents.values())
    if equal:
        notes.append(
            f"{equal} networks of equal content are in several roles, as the protocol has it."
        )
    return notes
