"""What must hold of a catalog at any moment, whatever happened to those who wrote to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from catalog_processes import ROWS, TENSORS, digest, population, tensors

from zooplatform.schema import table_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from zooplatform.catalog import Catalog

# One row per commit of a writer: its checkpoints, and what belongs to them in other tables.
_COMMITS = """
    SELECT m.name AS name, count(*) AS checkpoints, count(h.shard_id) AS in_shards,
        sum(s.tensors) AS stats, count(v.value) AS metrics, count(t.tensors) AS single,
        sum(t.tensors) AS tensors
    FROM checkpoints AS c
    JOIN models AS m USING (model_id)
    JOIN architectures AS a ON a.architecture_id = c.architecture_id
    LEFT JOIN (SELECT checkpoint_id, count(*) AS tensors FROM tensor_stats GROUP BY ALL) AS s
        USING (checkpoint_id)
    LEFT JOIN (
        SELECT checkpoint_id, count(*) AS tensors, any_value(shard_id) AS shard_id
        FROM stored_tensors GROUP BY ALL) AS t USING (checkpoint_id)
    LEFT JOIN metrics AS v ON v.checkpoint_id = c.checkpoint_id AND v.name = 'test_accuracy'
    LEFT JOIN (SELECT * FROM shards WHERE kind <> 'retired') AS h
        ON h.shard_id = coalesce(c.shard_id, t.shard_id)
    GROUP BY ALL
"""


def commits(catalog: Catalog) -> dict[str, dict[str, Any]]:
    """By name, what a reader sees of each commit."""
    # `tensors` derives rows for populations; those that are stored are the ones with a hash.
    query = _COMMITS.replace(
        "stored_tensors", "(SELECT * FROM tensors WHERE tensor_hash IS NOT NULL)"
    )
    return {row.pop("name"): row for row in catalog.sql(query).to_pylist()}


def assert_no_half_commit(catalog: Catalog) -> set[str]:
    """Every commit has all its rows in every table; returns the names of those that are there."""
    seen = commits(catalog)
    for name, row in seen.items():
        population_row = (ROWS, ROWS, 2 * ROWS, ROWS, 0, None)
        expected = (1, 1, TENSORS, 0, 1, TENSORS) if row["single"] else population_row
        assert tuple(row.values()) == expected, f"{name}: {row}"
    return set(seen)


def acknowledged(path: Path) -> list[tuple[str, int, int, tuple[str, ...]]]:
    """(kind, writer, number, checkpoint ids) of the writes that were acknowledged; a line cut off is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [(kind, w, n, tuple(ids)) for kind, w, n, ids in map(json.loads, lines)]


def assert_stored(
    catalog: Catalog, writes: Sequence[tuple[str, int, int, tuple[str, ...]]]
) -> None:
    """Every acknowledged write is there, bit for bit."""
    names = assert_no_half_commit(catalog)
    populations = []
    for kind, writer, number, ids in writes:
        assert f"w{writer}b{number}" in names, f"acknowledged, but gone: {kind} {writer} {number}"
        if kind == "population":
            populations.append((writer, number, ids))
            continue
        (only,) = ids
        state = {k: v.numpy() for k, v in catalog.state_dict(only, verify=True).items()}
        assert digest(state) == digest(tensors(writer, number))
    if populations:
        every = [i for *_, ids in populations for i in ids]
        stored = catalog.population(every, verify=True).weights.numpy()
        given = np.concatenate([population(w, n).weights for w, n, _ in populations])
        np.testing.assert_array_equal(stored, given)


def assert_tidy(catalog: Catalog) -> None:
    """Collect everything; the catalog is whole, and no file is left that nothing names."""
    catalog.gc(grace_seconds=0)
    assert catalog.check(deep=True) == []
    assert list(leftovers(catalog)) == []


def leftovers(catalog: Catalog) -> list[str]:
    """Files that nothing names."""
    root = catalog.path
    snapshot = catalog.snapshot()
    named = {root / path for path in snapshot.shard_rows.column("path").to_pylist()}
    for name in table_names():
        files = snapshot.files(name)
        named.update(map(type(root), (*files.pure, *files.mixed)))
        assert not files.mixed
    kept = (".json", ".checkpoint.parquet", "_last_checkpoint", "FORMAT")
    return [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*"))
        if path.is_file() and path not in named and not path.name.endswith(kept)
    ]


def answers(catalog: Catalog, queries: Mapping[str, str]) -> dict[str, Any]:
    """What queries give, as rows."""
    return {name: catalog.sql(query).to_pylist() for name, query in queries.items()}
