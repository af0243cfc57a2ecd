"""The rule that compares declared values with what stored predictions say of the weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from zooplatform.catalog.views import quote
from zooplatform.linting.findings import Finding, finding, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zooplatform.catalog import Catalog

__all__ = ["predicted"]

# A value this many typical errors from its prediction is doubted. The errors of a predictor have long tails, so three
# would accuse honest networks.
_TIMES = 5.0
# Of a mean absolute error below this, a predictor is thought to have seen what it predicts.
_LEAST_ERROR = 0.002

_PREDICTORS = """
    select p.dataset as artifact_id, p.name as target, any_value(a.name) as predictor,
        any_value(a.metrics) as metrics
    from metrics p join artifacts a on a.artifact_id = p.dataset
    where p.origin = 'predicted' group by all order by all"""

# The typical error is that of validation, or of the zoo at hand where that is larger: of data that the predictor was
# not fitted on, everything would be doubted otherwise. The median does not notice a minority of wrong values.
_DOUBTFUL = """
    with pairs as (
        select w.zoo_id, w.checkpoint_id, w.{target} as declared, p.value as predicted,
            abs(p.value - w.{target}) as difference
        from wide w join metrics p using (checkpoint_id)
        where p.origin = 'predicted' and p.dataset = $artifact and p.name = $target
            and isfinite(p.value) and isfinite(w.{target})
    ),
    typical as (
        select zoo_id, count(*) as num_pairs, greatest(median(difference), $error) as error
        from pairs group by zoo_id
    )
    select p.zoo_id, any_value(t.num_pairs) as num_pairs, any_value(t.error) as error,
        list(p.checkpoint_id order by p.difference desc, p.checkpoint_id) as ids,
        max(p.difference) as difference, arg_max(p.declared, p.difference) as declared,
        arg_max(p.predicted, p.difference) as predicted
    from pairs p join typical t on t.zoo_id is not distinct from p.zoo_id
    where p.difference > $times * t.error
    group by p.zoo_id order by max(p.difference) desc, p.zoo_id"""


def predicted(catalog: Catalog) -> Iterator[Finding]:
    """A declared value is within five typical errors of what a predictor says, where predictions are stored.

    The first id of a finding is the one that is furthest off.
    """
    columns = set(catalog.sql("describe wide").column("column_name").to_pylist())
    for row in catalog.sql(_PREDICTORS).to_pylist():
        # A target that the fit's own query computed is no column, so nothing is declared of it.
        if row["target"] in columns:
            yield from _doubtful(catalog, row)


def _doubtful(catalog: Catalog, of: Mapping[str, Any]) -> Iterator[Finding]:
    target = of["target"]
    parameters = {
        "artifact": of["artifact_id"],
        "target": target,
        "error": _validation_error(of["metrics"]),
        "times": _TIMES,
    }
    query = _DOUBTFUL.format(target=quote(target))
    for row in catalog.engine().sql(query, parameters).to_pylist():
        yield finding(
            "predicted",
            "warning",
            "checkpoint",
            row["ids"],
            zoo=row["zoo_id"],
            declared=f"{target} = {row['declared']:.6g} is declared",
            found=f"predictor {of['predictor']} says {row['predicted']:.6g} from the weights, "
            f"{row['difference'] / row['error']:.1f} times its typical error of {row['error']:.3g} "
            f"({plural(len(row['ids']), 'value')} of {row['num_pairs']:,} beyond {_TIMES:g} times)",
            repair="Measure these networks again (`Catalog.build` gives one) and correct what is declared, or leave "
            "them out.",
        )


def _validation_error(metrics: str | None) -> float:
    """The mean absolute error of an artifact on its validation data, at least `_LEAST_ERROR`."""
    error = json.loads(metrics or "{}").get("validation_mae")
    return max(_LEAST_ERROR, float(error)) if isinstance(error, int | float) else _LEAST_ERROR
