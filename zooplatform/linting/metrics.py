"""Rules about measured values: accuracies in percent, values that are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zooplatform.linting.findings import Finding, finding, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zooplatform.catalog import Catalog

__all__ = ["missing", "percent"]

_ACCURACY = r"(^|[^a-z])(acc|accuracy|top[-_ ]?[15])($|[^a-z])"

_PERCENT = """
    select m.zoo_id, x.dataset, x.name, count(*) as num_values, max(x.value) as largest,
        min(x.value) as smallest,
        list(x.checkpoint_id order by x.checkpoint_id)
            filter (where x.value > 1.000001 or x.value < 0) as ids
    from metrics x join checkpoints c using (checkpoint_id) join models m using (model_id)
    where regexp_matches(x.name, ?, 'i') and x.origin <> 'predicted' and isfinite(x.value)
    group by all having ids is not null order by all"""


def percent(catalog: Catalog) -> Iterator[Finding]:
    """Accuracies are fractions of 1.

    Percentages that are all at most 1 cannot be told from fractions. Predictions are not checked: a regression may
    leave the range.
    """
    for row in catalog.sql(_PERCENT, [_ACCURACY]).to_pylist():
        wrong, rest = len(row["ids"]), row["num_values"] - len(row["ids"])
        if row["smallest"] < 0 or row["largest"] > 100:
            reading = "which is neither a fraction nor a percentage"
        elif row["largest"] <= 1.5:
            reading = "a little more than a fraction can be"
        elif rest:
            reading = f"while {plural(rest, 'other')} are at most 1: percentages among fractions"
        else:
            reading = "so they are percentages"
        on = f" on {row['dataset']}" if row["dataset"] else ""
        yield finding(
            "percent",
            "warning",
            "checkpoint",
            row["ids"],
            zoo=row["zoo_id"],
            declared=f"{row['name']}{on} is an accuracy, a fraction by definition",
            found=f"{plural(wrong, 'value')} lie outside 0 to 1 (between {row['smallest']:.6g} and "
            f"{row['largest']:.6g}), {reading}",
            repair="Write the fractions with `catalog.commit(message, {'metrics': rows}, replaces=['metrics'])`.",
        )


# A metric is expected where at least half of the checkpoints of the same zoo at the same step have it, so that values
# that are only measured now and then are not asked for everywhere. The data set does not count: a zoo may hold models
# of several.
_MISSING = """
    with taken as (
        select c.checkpoint_id, m.zoo_id, coalesce(c.step, c.epoch) as moment
        from checkpoints c join models m using (model_id)
    ),
    present as (
        select distinct checkpoint_id, name from metrics
        where value is not null and origin <> 'predicted'
    ),
    totals as (select zoo_id, moment, count(*) as total from taken group by all),
    partial as (
        select t.zoo_id, t.moment, p.name
        from taken t join present p using (checkpoint_id)
        join totals n on n.zoo_id is not distinct from t.zoo_id
            and n.moment is not distinct from t.moment
        group by all having count(*) < any_value(n.total) and 2 * count(*) >= any_value(n.total)
    )
    select q.zoo_id, q.name, list(t.checkpoint_id order by t.checkpoint_id) as ids
    from partial q join taken t on t.zoo_id is not distinct from q.zoo_id
        and t.moment is not distinct from q.moment
    anti join present p on p.checkpoint_id = t.checkpoint_id and p.name = q.name
    group by all order by all"""

_NAN = """
    select m.zoo_id, x.name, list(x.checkpoint_id order by x.checkpoint_id) as ids
    from metrics x join checkpoints c using (checkpoint_id) join models m using (model_id)
    where isnan(x.value)
        and x.checkpoint_id not in (
            select checkpoint_id from tensor_stats where num_nan + num_inf > 0)
    group by all order by all"""

# Properties that plugins measure from the weights alone do not count.
_NONE = """
    with performance as (
        select distinct checkpoint_id from metrics
        where not (origin = 'measured' and name in (select unnest(?)))
    )
    select m.zoo_id, list(c.checkpoint_id order by c.checkpoint_id) as ids
    from checkpoints c join models m using (model_id)
    where c.shard_id is not null
    group by all
    having not bool_or(c.checkpoint_id in (from performance))
    order by all"""


def missing(catalog: Catalog) -> Iterator[Finding]:
    """A checkpoint has the metrics that most of its zoo have at the same step; a population has some."""
    for row in catalog.sql(_MISSING).to_pylist():
        yield _lacking(
            row,
            "warning",
            declared=f"most checkpoints of the zoo at the same step have {row['name']}",
            found=f"{plural(len(row['ids']), 'checkpoint')} have no value",
            repair="Measure it and add it with `catalog.commit`, or leave these out "
            "(`where checkpoint_id in (select checkpoint_id from metrics where ...)`).",
        )
    for row in catalog.sql(_NAN).to_pylist():
        yield _lacking(
            row,
            "note",
            declared=f"all weights are finite, so {row['name']} should be",
            found=f"it is NaN for {plural(len(row['ids']), 'checkpoint')}",
            repair=f"Measure {row['name']} again, or leave these out (`where not isnan(value)`).",
        )
    properties = [spec.name for _, spec in catalog.registry.properties]
    for row in catalog.sql(_NONE, [properties]).to_pylist():
        yield _lacking(
            row,
            "note",
            declared="a population is compared by what was measured of it",
            found="no checkpoint has any metric",
            repair="Measure the networks and add the values with `catalog.commit(message, {'metrics': rows})`.",
        )


def _lacking(row: Mapping[str, Any], severity: Any, **words: str) -> Finding:
    return finding(
        "missing-metrics", severity, "checkpoint", row["ids"], zoo=row["zoo_id"], **words
    )
