"""What a report tells, asked from the catalog: small tables, however large the zoo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import ConfigError
from zooplatform.reporting.factors import Factor, factors

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

    Row = dict[str, Any]

__all__ = ["Architecture", "Facts", "gather"]

# Runs that are drawn one by one, and architectures whose norms are drawn.
_RUNS, _ARCHITECTURES = 40, 3


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture of the zoo; `norms` has a row per weight tensor and moment: low, middle, high, rms."""

    row: Row
    norms: list[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything on the page.

    Attributes:
        zoo: its row, with counts and the commit that was read.
        metric: what networks are compared by; None where nothing was measured.
        train_metric: the same on the training data, if there is one.
        clock: `epoch` or `step`, whichever the checkpoints have.
        courses: quantiles (q05 to q95) of the metrics by name and moment.
        runs: values of single runs, spread evenly over the final ones.
        finals: last value of every model: value, train value (or None).
        factors: hyper-parameters that differ, the most telling first.
        fixed: hyper-parameters that are the same in every model.
        metrics: every metric with its range.
        left_out: values of the metric that are NaN or infinite.
    """

    zoo: Row
    metric: str | None
    train_metric: str | None
    clock: str
    courses: dict[str, list[Row]]
    runs: list[Row]
    finals: list[Row]
    factors: list[Factor]
    fixed: list[Row]
    metrics: list[Row]
    architectures: list[Architecture]
    left_out: int

    @property
    def final_values(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Last value of the metric of every model."""
        return np.asarray([row["value"] for row in self.finals], dtype=np.float64)


def gather(catalog: Catalog, zoo_id: str, metric: str | None) -> Facts:
    """Ask for everything.

    Raises:
        ConfigError: the zoo has no such metric.
    """
    zoo = _rows(catalog, _ZOO, zoo_id)[0]
    zoo["commit"] = catalog.snapshot().last_commit
    metrics = _rows(catalog, _METRICS, zoo_id)
    chosen = _choose(catalog, zoo_id, metrics, metric)
    names = {row["name"] for row in metrics}
    train = chosen.replace("test", "train").replace("val", "train") if chosen else None
    train = train if train in names and train != chosen else None
    clock = "epoch" if zoo["num_epochs"] else "step"
    named = [name for name in (chosen, train) if name]
    courses = {name: _rows(catalog, _course(clock), zoo_id, name) for name in named}
    finals = _rows(catalog, _finals(clock), zoo_id, chosen or "", train or "")
    return Facts(
        zoo=zoo,
        metric=chosen,
        train_metric=train,
        clock=clock,
        courses=courses,
        runs=_rows(catalog, _runs(clock), zoo_id, chosen or "") if chosen else [],
        finals=finals,
        factors=factors(_rows(catalog, _HYPERPARAMETERS, zoo_id), finals),
        fixed=_rows(catalog, _FIXED, zoo_id),
        metrics=metrics,
        architectures=_architectures(catalog, zoo_id, clock),
        left_out=sum(row["num_left_out"] for row in metrics if row["name"] == chosen),
    )


def _rows(catalog: Catalog, query: str, *parameters: Any) -> list[Row]:
    rows: list[Row] = catalog.sql(query, parameters).to_pylist()
    return rows


def _choose(catalog: Catalog, zoo_id: str, metrics: list[Row], asked: str | None) -> str | None:
    names = {row["name"] for row in metrics}
    if asked is not None:
        if asked not in names:
            raise ConfigError(
                f"Zoo {zoo_id!r} has no metric {asked!r}. It has: {', '.join(sorted(names)) or 'none'}."
            )
        return asked
    # What plugins compute from the weights says nothing about how good a network is.
    properties = {spec.name for _, spec in catalog.registry.properties}
    known = [row for row in metrics if row["name"] not in properties and row["mean"] is not None]
    if not known:
        return None
    best = max(
        known,
        key=lambda row: (
            row["name"] == "test_accuracy",
            "acc" in row["name"] and "train" not in row["name"],
            row["num_checkpoints"],
        ),
    )
    return str(best["name"])


# --- queries; `?` is the zoo, then names of metrics ------------------------------------------------------------------

_OF_ZOO = "checkpoints c join models m using (model_id)"

_ZOO = f"""
    select z.zoo_id, z.source, z.license, z.citation, z.created_at, n.*
    from zoos z, (
        select count(distinct c.model_id) as num_models, count(*) as num_checkpoints,
            count(distinct c.architecture_id) as num_architectures, count(c.epoch) as num_epochs,
            count(distinct coalesce(c.epoch, c.step)) as num_moments,
            coalesce(sum(c.size_bytes), 0) as size_bytes,
            coalesce(sum(c.num_parameters), 0)::bigint as num_weights,
            coalesce(min(c.num_parameters), 0) as fewest, coalesce(max(c.num_parameters), 0) as most,
            list(distinct m.license) as licenses
        from {_OF_ZOO} where m.zoo_id = $1
    ) n
    where z.zoo_id = $1"""

_METRICS = f"""
    select x.name, x.split, string_agg(distinct x.dataset, ', ') as dataset,
        string_agg(distinct x.origin, ', ') as origin,
        count(distinct x.checkpoint_id) as num_checkpoints,
        min(x.value) filter (isfinite(x.value)) as min,
        avg(x.value) filter (isfinite(x.value)) as mean,
        max(x.value) filter (isfinite(x.value)) as max,
        count(*) filter (x.value is null or not isfinite(x.value)) as num_left_out
    from metrics x join {_OF_ZOO} using (checkpoint_id)
    where m.zoo_id = ? group by x.name, x.split order by x.name, x.split"""


def _values(clock: str) -> str:
    """One value per checkpoint; of several data sets their mean."""
    return f"""
        select c.model_id, c.checkpoint_id, coalesce(c.{clock}, 0) as moment, x.name,
            avg(x.value) as value
        from metrics x join {_OF_ZOO} using (checkpoint_id)
        where m.zoo_id = $1 and x.origin <> 'predicted' and isfinite(x.value)
        group by all"""


def _course(clock: str) -> str:
    return f"""
        select moment, count(*) as num_models, min(value) as low, max(value) as high,
            quantile_cont(value, [0.05, 0.25, 0.5, 0.75, 0.95]) as quantiles
        from ({_values(clock)}) where name = $2 group by moment order by moment"""


def _runs(clock: str) -> str:
    return f"""
        with points as materialized (select * from ({_values(clock)}) where name = $2),
        ranked as (
            select model_id, row_number() over (order by arg_max(value, moment), model_id) as rank,
                count(*) over () as total
            from points group by model_id
        )
        select p.model_id, p.moment, p.value, r.rank from points p join ranked r using (model_id)
        where r.total <= {_RUNS}
            or floor(r.rank * {_RUNS} / r.total) > floor((r.rank - 1) * {_RUNS} / r.total)
        order by r.rank, p.moment"""


def _finals(clock: str) -> str:
    return f"""
        with points as materialized (select * from ({_values(clock)}) where name in ($2, $3)),
        last as (
            select model_id, arg_max(checkpoint_id, moment) as checkpoint_id
            from points where name = $2 group by model_id
        )
        select l.model_id, any_value(p.value) filter (p.name = $2) as value,
            any_value(p.value) filter (p.name = $3) as train
        from last l join points p using (checkpoint_id) group by l.model_id order by l.model_id"""


_HYPERPARAMETERS = """
    with own as (
        select h.model_id, h.key, h.value from hyperparameters h join models m using (model_id)
        where m.zoo_id = ? and h.value is not null
    ),
    differing as (select key from own group by key having count(distinct value) > 1)
    select key, list(model_id order by model_id) as models, list(value order by model_id) as values
    from own semi join differing using (key) group by key order by key"""

_FIXED = """
    select h.key, any_value(h.value) as value
    from hyperparameters h join models m using (model_id)
    where m.zoo_id = ? group by h.key
    having count(distinct h.value) = 1 order by h.key"""

_MOST_COMMON = f"""
    select a.architecture_id, a.family, a.name, a.dtype, a.num_parameters, a.num_tensors,
        count(distinct c.model_id) as num_models, count(*) as num_checkpoints
    from {_OF_ZOO} join architectures a on a.architecture_id = c.architecture_id
    where m.zoo_id = ? group by all order by num_checkpoints desc, a.architecture_id"""


def _norms(clock: str) -> str:
    """Norms of the matrices and kernels; rms is the norm per square root of elements."""
    return f"""
        with layout as (
            select unnest(layout, recursive := true) from architectures where architecture_id = $2
        )
        select s.tensor_index, s.name, l.shape, coalesce(c.{clock}, 0) as moment, count(*) as num,
            quantile_cont(s.l2, 0.25) as low, quantile_cont(s.l2, 0.5) as middle,
            quantile_cont(s.l2, 0.75) as high, quantile_cont(s.l2, 0.5) / sqrt(l.numel) as rms
        from tensor_stats s join {_OF_ZOO} using (checkpoint_id) join layout l on l.name = s.name
        where m.zoo_id = $1 and c.architecture_id = $2 and len(l.shape) >= 2 and isfinite(s.l2)
        group by s.tensor_index, s.name, l.shape, l.numel, c.{clock}
        order by s.tensor_index, moment"""


def _architectures(catalog: Catalog, zoo_id: str, clock: str) -> list[Architecture]:
    rows = _rows(catalog, _MOST_COMMON, zoo_id)
    return [
        Architecture(
            row,
            _rows(catalog, _norms(clock), zoo_id, row["architecture_id"])
            if index < _ARCHITECTURES
            else [],
        )
        for index, row in enumerate(rows)
    ]
