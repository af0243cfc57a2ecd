"""Rules about who is who: equal networks under different names, and what splits keep apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zooplatform.catalog.stats import SAMPLE
from zooplatform.linting.findings import LAYOUT, Finding, finding, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog

__all__ = ["duplicates", "permuted", "split_leak"]

# Networks of different runs may start from the same weights on purpose.
_INITIAL = "bool_and(coalesce(c.step, c.epoch, 1) = 0)"

_DUPLICATES = f"""
    with same as (
        select c.content_hash, list(c.checkpoint_id order by c.checkpoint_id) as ids,
            coalesce(list(distinct m.zoo_id order by m.zoo_id)
                filter (m.zoo_id is not null), []) as zoos,
            count(distinct c.model_id) as num_models, {_INITIAL} as initial
        from checkpoints c join models m using (model_id)
        where c.content_hash is not null
        group by c.content_hash having num_models > 1
    )
    select zoos, initial, count(*) as num_groups, flatten(list(ids order by ids)) as ids,
        first(ids order by ids) as group_ids, max(num_models) as largest
    from same group by all order by all"""


def duplicates(catalog: Catalog) -> Iterator[Finding]:
    """Different models hold different networks: no two have a checkpoint of equal content.

    Equal networks at step 0 are a note: a shared initialisation.
    """
    for row in catalog.sql(_DUPLICATES).to_pylist():
        first, second = row["group_ids"][:2]
        groups = plural(row["num_groups"], "network")
        occur = "occurs" if row["num_groups"] == 1 else "occur"
        yield finding(
            "duplicates",
            "note" if row["initial"] else "warning",
            "checkpoint",
            row["ids"],
            zoo=", ".join(row["zoos"]) or None,
            declared="these are checkpoints of different models",
            found=f"{groups} {occur} in up to {row['largest']:,} models each ({first} equals {second} bit for bit)",
            repair="The runs share their initialisation; leave step 0 out of splits (`where step > 0`)."
            if row["initial"]
            else "Keep one: `select min(checkpoint_id) from checkpoints group by content_hash`, or check the seeds of "
            "the runs.",
        )


# Smallest and largest value, quantiles and zeros of a tensor do not depend on the order of its values, so networks that
# differ by a permutation of neurons agree in them to the last bit. Quantiles of larger tensors come from a sample by
# position and are left out.
_PERMUTED = f"""
    with fingerprints as (
        select s.checkpoint_id, bit_xor(hash(s.tensor_index, s.min, s.max, s.num_zero,
            case when l.numel <= {SAMPLE} then [s.q05, s.q25, s.q50, s.q75, s.q95] end
        )) as fingerprint
        from tensor_stats s join checkpoints c using (checkpoint_id)
        join {LAYOUT} l on l.architecture_id = c.architecture_id and l.name = s.name
        group by s.checkpoint_id having sum(s.num_nan + s.num_inf) = 0
    ),
    distinct_ones as (
        select f.fingerprint, c.architecture_id, c.content_hash, m.zoo_id,
            min(c.checkpoint_id) as checkpoint_id, min(c.model_id) as model_id
        from fingerprints f join checkpoints c using (checkpoint_id) join models m using (model_id)
        group by all
    )
    select list(checkpoint_id order by checkpoint_id) as ids,
        coalesce(list(distinct zoo_id order by zoo_id) filter (zoo_id is not null), []) as zoos
    from distinct_ones group by fingerprint, architecture_id
    having count(distinct content_hash) > 1 and count(distinct model_id) > 1 order by all"""


def permuted(catalog: Catalog) -> Iterator[Finding]:
    """No two models hold one network with its neurons in another order.

    Found by a fingerprint of statistics that do not depend on order, then confirmed on the weights: every tensor holds
    the same values.
    """
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for row in catalog.sql(_PERMUTED).to_pylist():
        first, *others = row["ids"]
        alike = [other for other in others if _same_values(catalog, first, other)]
        if alike:
            groups.setdefault(tuple(row["zoos"]), []).append([first, *alike])
    for zoos, members in groups.items():
        first, second = members[0][:2]
        yield finding(
            "permuted",
            "warning",
            "checkpoint",
            [checkpoint for group in members for checkpoint in group],
            zoo=", ".join(zoos) or None,
            declared="these are different networks",
            found=f"{plural(len(members), 'network')} occur again with every tensor holding the same values in another "
            f"order, as after permuting neurons ({first}, {second})",
            repair="They compute the same function: keep one of each in splits and when counting novelty.",
        )


def _same_values(catalog: Catalog, one: str, other: str) -> bool:
    """Whether every tensor of both holds the same values, in any order."""
    import torch

    left, right = catalog.state_dict(one), catalog.state_dict(other)
    return all(
        torch.equal(left[name].flatten().sort().values, right[name].flatten().sort().values)
        for name in left
    )


_RUNS_IN_TWO_ROLES = """
    with runs as (
        select split_id, any_value(name) as name, any_value("by") as kind, model_id,
            string_agg(distinct role, ' and ' order by role) as roles
        from splits group by split_id, model_id having count(distinct role) > 1
    )
    select split_id, any_value(name) as name, any_value(kind) as kind,
        list(model_id order by model_id) as ids, first(roles order by model_id) as roles
    from runs group by split_id order by all"""

_NETWORKS_IN_TWO_ROLES = f"""
    with members as (
        select s.split_id, s.name, s.role, c.checkpoint_id, c.model_id, c.content_hash, c.step,
            c.epoch
        from splits s join checkpoints c using (checkpoint_id)
        where c.content_hash in (
            select content_hash from checkpoints
            group by content_hash having count(distinct model_id) > 1)
    ),
    networks as (
        select split_id, any_value(name) as name, list(checkpoint_id order by checkpoint_id) as ids,
            list(distinct model_id) as models, {_INITIAL} as initial,
            string_agg(distinct role, ' and ' order by role) as roles
        from members c group by split_id, content_hash
        having count(distinct role) > 1 and count(distinct model_id) > 1
    )
    select split_id, any_value(name) as name, initial, count(*) as num_networks,
        list_sort(list_distinct(flatten(list(models)))) as ids,
        first(roles order by ids) as roles, first(ids order by ids) as example
    from networks group by split_id, initial order by all"""


def split_leak(catalog: Catalog) -> Iterator[Finding]:
    """The roles of a split share no run, and no network under two names."""
    for row in catalog.sql(_RUNS_IN_TWO_ROLES).to_pylist():
        yield _leak(
            row,
            "warning",
            found=f"{plural(len(row['ids']), 'run')} have checkpoints in more than one ({row['roles']} for the first)",
            repair="Neighbouring checkpoints of a run are nearly equal, which lifts test scores: "
            "`zoo split create NAME --by model`."
            + (" This split is by checkpoint." if row["kind"] == "checkpoint" else ""),
        )
    for row in catalog.sql(_NETWORKS_IN_TWO_ROLES).to_pylist():
        yield _leak(
            row,
            "note" if row["initial"] else "warning",
            found=f"{plural(row['num_networks'], 'network')} occur under different models in {row['roles']} "
            f"({', '.join(row['example'][:2])} are equal)",
            repair="Leave the shared initialisation out (`where step > 0`)."
            if row["initial"]
            else "Keep one model of each group of duplicates before splitting.",
        )


def _leak(row: dict[str, Any], severity: Any, *, found: str, repair: str) -> Finding:
    return finding(
        "split-leak",
        severity,
        "model",
        row["ids"],
        zoo=None,
        declared=f"split {row['name']!r} ({row['split_id']}) keeps its roles apart",
        found=found,
        repair=repair,
    )
