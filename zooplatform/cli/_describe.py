"""Gathers everything that the catalog knows of one zoo, model or checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.catalog import Catalog

__all__ = ["describe"]

Part = dict[str, Any] | list[dict[str, Any]]


def describe(catalog: Catalog, kind: str, identity: str) -> dict[str, Part]:
    """Named parts, the thing itself first: a mapping is one thing, a list is rows.

    Args:
        catalog: where it is.
        kind: `zoo`, `model` or `checkpoint`.
        identity: its whole id.
    """
    gather = {"zoo": _zoo, "model": _model, "checkpoint": _checkpoint}[kind]
    return gather(catalog, identity)


def _zoo(catalog: Catalog, zoo_id: str) -> dict[str, Part]:
    zoo = _one(
        catalog,
        """select z.zoo_id as zoo, z.name, z.source, z.license, z.citation, z.created_at,
            (select count(*) from models m where m.zoo_id = z.zoo_id) as num_models,
            count(c.checkpoint_id) as num_checkpoints,
            coalesce(sum(c.size_bytes), 0)::bigint as size_bytes
        from zoos z left join models m on m.zoo_id = z.zoo_id
        left join checkpoints c on c.model_id = m.model_id
        where z.zoo_id = ? group by all""",
        [zoo_id],
    )
    architectures = _rows(
        catalog,
        """select a.architecture_id, a.family, a.name, a.dtype, a.num_parameters,
            count(distinct m.model_id) as num_models, count(*) as num_checkpoints
        from checkpoints c join models m on m.model_id = c.model_id
        join architectures a on a.architecture_id = c.architecture_id
        where m.zoo_id = ? group by all order by num_checkpoints desc, a.architecture_id""",
        [zoo_id],
    )
    metrics = _rows(
        catalog,
        """select x.dataset, x.split, x.name, x.origin, count(*) as num_checkpoints,
            min(x.value) as min, avg(x.value) as mean, max(x.value) as max
        from metrics x join checkpoints c on c.checkpoint_id = x.checkpoint_id
        join models m on m.model_id = c.model_id
        where m.zoo_id = ? group by all order by x.dataset, x.split, x.name, x.origin""",
        [zoo_id],
    )
    hyperparameters = _rows(
        catalog,
        """select h.key, count(*) as num_models, count(distinct h.value) as num_values,
            list(distinct h.value order by try_cast(h.value as double), h.value)[:8] as values
        from hyperparameters h join models m on m.model_id = h.model_id
        where m.zoo_id = ? group by h.key order by h.key""",
        [zoo_id],
    )
    return {
        "zoo": zoo,
        "architectures": architectures,
        "metrics": metrics,
        "hyperparameters": hyperparameters,
    }


def _model(catalog: Catalog, model_id: str) -> dict[str, Part]:
    model = _one(catalog, "select * from models where model_id = ?", [model_id])
    config = _parsed(model.pop("config", None))
    metadata = _parsed(model.pop("metadata", None))
    model.pop("build_config", None)
    checkpoints = _rows(
        catalog,
        """select checkpoint_id, step, epoch, dtype, num_parameters, size_bytes, state
        from checkpoints where model_id = ? order by step, epoch, checkpoint_id""",
        [model_id],
    )
    metrics = _rows(
        catalog,
        """select c.step, c.epoch, x.dataset, x.split, x.name, x.value, x.origin, c.checkpoint_id
        from metrics x join checkpoints c on c.checkpoint_id = x.checkpoint_id
        where c.model_id = ? order by c.step, c.epoch, x.dataset, x.split, x.name, x.origin""",
        [model_id],
    )
    return {
        "model": model,
        "architecture": _architecture(catalog, model["architecture_id"]),
        "hyperparameters": config,
        "metadata": metadata,
        "checkpoints": checkpoints,
        "metrics": metrics,
        "lineage": _lineage(catalog, [model_id, *(row["checkpoint_id"] for row in checkpoints)]),
    }


def _checkpoint(catalog: Catalog, checkpoint_id: str) -> dict[str, Part]:
    checkpoint = _one(catalog, "select * from checkpoints where checkpoint_id = ?", [checkpoint_id])
    model = _one(
        catalog,
        """select model_id, name, zoo_id as zoo, source, revision, license, base_model, seed
        from models where model_id = ?""",
        [checkpoint["model_id"]],
    )
    tensors = _rows(
        catalog,
        """select t.tensor_index, t.name, t.dtype, t.shape, t.size_bytes,
            l.layer_index, l.layer_type, s.mean, s.std, s.min, s.max, s.l2, s.num_zero, s.num_nan,
            s.num_inf, t.tied_to
        from tensors t
        left join tensor_stats s
            on s.checkpoint_id = t.checkpoint_id and s.tensor_index = t.tensor_index
        left join (
            select unnest(layout, recursive := true) from architectures where architecture_id = ?
        ) l on l.name = t.name
        where t.checkpoint_id = ? order by t.tensor_index""",
        [checkpoint["architecture_id"], checkpoint_id],
    )
    metrics = _rows(
        catalog,
        """select dataset, split, name, value, origin from metrics where checkpoint_id = ?
        order by dataset, split, name, origin""",
        [checkpoint_id],
    )
    return {
        "checkpoint": checkpoint,
        "model": model,
        "architecture": _architecture(catalog, checkpoint["architecture_id"]),
        "metrics": metrics,
        "tensors": tensors,
        "lineage": _lineage(catalog, [checkpoint_id, checkpoint["model_id"]]),
    }


def _architecture(catalog: Catalog, architecture_id: str) -> dict[str, Any]:
    return _one(
        catalog,
        """select architecture_id, family, name, num_tensors, num_parameters, dtype
        from architectures where architecture_id = ?""",
        [architecture_id],
    )


def _lineage(catalog: Catalog, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Edges up and down from any of `ids`."""
    rows = _rows(
        catalog,
        """select child_id, relation, parent_id, detail from lineage
        where list_contains(?, child_id) or list_contains(?, parent_id)
        order by child_id, relation, parent_id""",
        [list(ids), list(ids)],
    )
    return [{**row, "detail": _parsed(row["detail"])} for row in rows]


def _parsed(text: str | None) -> dict[str, Any]:
    """A JSON object that a table holds as text."""
    parsed: dict[str, Any] = json.loads(text) if text else {}
    return parsed


def _rows(catalog: Catalog, query: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = catalog.sql(query, parameters).to_pylist()
    for row in rows:
        row.pop("commit_id", None)
    return rows


def _one(catalog: Catalog, query: str, parameters: Sequence[Any]) -> dict[str, Any]:
    """The only row; empty where a table that should know it does not (`zoo check` reports that)."""
    rows = _rows(catalog, query, parameters)
    return rows[0] if rows else {}
