"""Pairs of the SQL suite: questions about weights, statistics and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from measuring import Pair, Row, compare
from workloads import NUM_NETWORKS, batch, metrics_catalog, spans, zoo_weights

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.registry import Registry

__all__ = ["run"]

COSINE = """
    SELECT checkpoint_id, list_cosine_similarity(weights, ?::FLOAT[]) AS cosine
    FROM population_weights ORDER BY cosine DESC LIMIT 10
"""
NORM = "SELECT checkpoint_id, sqrt(list_inner_product(weights, weights)) AS norm FROM population_weights"
LAYERS = """
    SELECT name, avg(mean) AS mean, avg(std) AS std, avg(l2) AS norm
    FROM tensor_stats GROUP BY name
"""
TOP = """
    WITH best AS (
        SELECT checkpoint_id, value FROM metrics
        WHERE dataset = 'mnist-c-7' AND split = 'test' AND name = 'accuracy'
        ORDER BY value DESC LIMIT 10
    )
    SELECT checkpoint_id, best.value, h.value AS learning_rate
    FROM best
    JOIN checkpoints USING (checkpoint_id)
    JOIN hyperparameters AS h USING (model_id)
    WHERE h.key = 'learning_rate' ORDER BY best.value DESC
"""


def run(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    """Measure every pair; rows are shown as they are ready."""
    weights = zoo_weights(NUM_NETWORKS)
    with open_catalog(work / "sql", create=True, registry=registry) as catalog:
        ids = np.array(catalog.append(batch(weights, "zoo"), zoo="zoo"))
        _weights(catalog, weights, ids, show)
    _top(work, registry, show)


def _weights(catalog: Any, weights: Any, ids: Any, show: Callable[[Row], None]) -> None:
    query = weights[4711]
    asked = query.tolist()

    def cosine(_: object) -> Any:
        similarity = (weights @ query) / (np.linalg.norm(weights, axis=1) * np.linalg.norm(query))
        return ids[np.argsort(-similarity)[:10]]

    found = catalog.sql(COSINE, [asked]).column("checkpoint_id").to_pylist()
    assert found == cosine(None).tolist()
    show(
        compare(
            Pair(
                suite="sql",
                name="SQL cosine top-10 over 10,000 networks / numpy",
                ours=lambda _: catalog.sql(COSINE, [asked]),
                baseline=cosine,
                bound=5,
            )
        )
    )
    norms = catalog.sql(NORM)
    order = {checkpoint: row for row, checkpoint in enumerate(ids.tolist())}
    rows = [order[c] for c in norms.column("checkpoint_id").to_pylist()]
    assert np.allclose(norms.column("norm"), np.linalg.norm(weights, axis=1)[rows], rtol=1e-4)
    show(
        compare(
            Pair(
                suite="sql",
                name="SQL norm per network / numpy",
                ours=lambda _: catalog.sql(NORM),
                baseline=lambda _: np.sqrt(np.einsum("ij,ij->i", weights, weights)),
                bound=10,
                note="over the stored weights, not the statistics",
            )
        )
    )

    def layers(_: object) -> dict[str, tuple[float, float, float]]:
        result = {}
        for name, start, stop in spans():
            block = weights[:, start:stop]
            norm = np.sqrt(np.einsum("ij,ij->i", block, block))
            result[name] = (
                float(block.mean(axis=1).mean()),
                float(block.std(axis=1).mean()),
                float(norm.mean()),
            )
        return result

    expected = layers(None)
    for row in catalog.sql(LAYERS).to_pylist():
        given = (row["mean"], row["std"], row["norm"])
        assert np.allclose(given, expected[row["name"]], rtol=1e-3, atol=1e-6)
    show(
        compare(
            Pair(
                suite="sql",
                name="SQL per-layer mean, std, norm from `tensor_stats` / numpy from the raw weights",
                ours=lambda _: catalog.sql(LAYERS),
                baseline=layers,
                bound=0.1,
                note="averages over the networks; 100,000 rows of statistics",
            )
        )
    )


def _top(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    import pandas as pd

    folder = work / "metrics"
    folder.mkdir()
    catalog, files = metrics_catalog(folder, registry)

    def load() -> list[pd.DataFrame]:
        return [
            pd.read_parquet(files["metrics"]),
            pd.read_parquet(files["checkpoints"]),
            pd.read_parquet(files["hyperparameters"]),
        ]

    def top(metrics: pd.DataFrame, checkpoints: pd.DataFrame, hyper: pd.DataFrame) -> Any:
        chosen = metrics[
            (metrics["dataset"] == "mnist-c-7")
            & (metrics["split"] == "test")
            & (metrics["name"] == "accuracy")
        ]
        best = chosen.nlargest(10, "value")
        rates = hyper[hyper["key"] == "learning_rate"]
        return best.merge(checkpoints, on="checkpoint_id").merge(rates, on="model_id")

    frames = load()
    with catalog:
        found = catalog.sql(TOP).column("checkpoint_id").to_pylist()
        assert found == top(*frames)["checkpoint_id"].tolist()
        show(
            compare(
                Pair(
                    suite="sql",
                    name="SQL top-10 by metric joined with hyper-parameters, 1 M metric rows / pandas",
                    ours=lambda _: catalog.sql(TOP),
                    baseline=lambda _: top(*load()),
                    bound=0.15,
                    note="both take the top 10 first and read Parquet files in every round",
                )
            )
        )
        show(
            compare(
                Pair(
                    suite="sql",
                    name="the same / pandas on frames that are in memory already",
                    ours=lambda _: catalog.sql(TOP),
                    baseline=lambda _: top(*frames),
                    note="information",
                )
            )
        )
