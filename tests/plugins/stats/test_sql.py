"""SQL functions and views against numpy and torch."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch

import zooplatform as zoo
from zooplatform.catalog.plugin_sql import create_statement
from zooplatform.testing import SqlContract, SqlExample, sample_population
from zooplatform_stats.sql import FUNCTIONS


class TestContract(SqlContract):
    plugin = "stats"
    examples = (
        SqlExample("cosine", "[1.0, 2.0], [2.0, 1.0]", 0.8),
        SqlExample("cosine", "[1, 2]::FLOAT[2], [2, 1]::FLOAT[2]", 0.8),
        SqlExample("cosine", "[0.0, 0.0], [2.0, 1.0]", None),
        SqlExample("cosine", "[], []", None),
        SqlExample("cosine", "[1.0], NULL", None),
        SqlExample("l2_norm", "[3.0, 4.0]::FLOAT[]", 5.0),
        SqlExample("l2_norm", "[3, 4]", 5.0),
        SqlExample("l2_norm", "[]", 0.0),
        SqlExample("l2_distance", "[1.0, 2.0], [4.0, 6.0]", 5.0),
        SqlExample("l2_distance", "[1.0, 2.0], NULL", None),
        SqlExample("bf16", "16256", 1.0),
        SqlExample("f16", "15360::USMALLINT", 1.0),
        SqlExample("f16", "NULL", None),
        SqlExample("ggap", "0.75, 0.5", 0.25),
        SqlExample("ggap", "NULL, 0.5", None),
        SqlExample("human_bytes", "90900000", "90.9 MB"),
        SqlExample("human_bytes", "999", "999 bytes"),
    )


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        for item in FUNCTIONS:
            connection.execute(create_statement(item, taken=()))
        yield connection


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_every_sixteen_bit_pattern_is_decoded(connection, name, dtype):
    rows = connection.execute(
        f"SELECT {name}(i::USMALLINT) AS v FROM range(65536) AS r(i) ORDER BY i"
    ).fetchnumpy()["v"]
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    expected = bits.view(dtype).float().numpy()
    assert rows.dtype == np.float32
    assert np.array_equal(np.asarray(rows), expected, equal_nan=True)
    is_number = ~np.isnan(expected)
    assert np.array_equal(np.signbit(rows)[is_number], np.signbit(expected)[is_number])


def test_long_lists_keep_their_digits(connection):
    draw = np.random.default_rng(0)
    a = draw.normal(size=5_000_000).astype(np.float32)
    b = (a + draw.normal(size=a.size) * 3).astype(np.float32)
    pair = pa.table({"a": pa.array([a]), "b": pa.array([b])})
    connection.register("pair", pair)
    query = "SELECT cosine(a, b), l2_norm(a), l2_distance(a, b), sqrt(list_inner_product(a, a)) FROM pair"
    *got, plain = connection.execute(query).fetchall()[0]
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(wide_a), np.linalg.norm(wide_b)
    assert got == pytest.approx(
        [wide_a @ wide_b / norm_a / norm_b, norm_a, np.linalg.norm(wide_a - wide_b)], rel=1e-10
    )
    assert abs(plain / norm_a - 1) > 1e-6  # what the function is there to avoid


def test_lists_of_different_lengths_are_an_error(connection):
    with pytest.raises(duckdb.InvalidInputException, match="dimensions"):
        connection.execute("SELECT cosine([1.0], [1.0, 2.0])")


@pytest.fixture
def catalog(tmp_path):
    """Two related checkpoints with one tensor in common, and one of another architecture."""
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(20, 30, generator=draw)
    for name, head in (("parent", 5), ("child", 5), ("other", 6)):
        torch.save(
            {
                "body.weight": shared if name != "other" else shared + 1,
                "body.bias": torch.randn(20, generator=draw),
                "head.weight": torch.randn(head, 20, generator=draw),
            },
            tmp_path / f"{name}.pt",
        )
    catalog = zoo.open_catalog(tmp_path / "zoo", create=True)
    for name in ("parent", "child", "other"):
        assert not catalog.ingest(str(tmp_path / f"{name}.pt"), zoo="nets").failed
    return catalog


def test_duplicate_tensors(catalog):
    (row,) = catalog.sql("SELECT * FROM duplicate_tensors").to_pylist()
    assert row["names"] == ["body.weight"]
    assert (row["dtype"], row["shape"], row["size_bytes"]) == ("float32", [20, 30], 2400)
    assert row["num_checkpoints"] == 2
    names = catalog.sql(
        "SELECT m.name FROM checkpoints c JOIN models m USING (model_id) "
        "WHERE list_contains(?, c.checkpoint_id) ORDER BY ALL",
        [row["checkpoint_ids"]],
    )
    assert [name.split("/")[-1].removesuffix(".pt") for name in names["name"].to_pylist()] == [
        "child",
        "parent",
    ]


def test_layer_sizes(catalog):
    rows = catalog.sql("SELECT * FROM layer_sizes ORDER BY num_parameters DESC").to_pylist()
    assert [row["num_parameters"] for row in rows] == [620, 620, 120, 100]
    assert [row["size_bytes"] for row in rows] == [2480, 2480, 480, 400]
    assert rows[0]["tensors"] == ["body.weight", "body.bias"]
    assert {row["layer_type"] for row in rows} == {"linear"}
    assert [row["layer_index"] for row in rows[2:]] == [1, 1]
    assert sorted(row["num_models"] for row in rows) == [1, 1, 2, 2]
    total = catalog.sql("SELECT sum(num_parameters) AS n FROM layer_sizes").to_pylist()
    stored = catalog.sql("SELECT sum(num_parameters) AS n FROM architectures").to_pylist()
    assert total == stored


def test_network_stats_equal_numpy_for_files_and_populations(zoo_catalog, tmp_path):
    draw = torch.Generator().manual_seed(1)
    state = {
        "a.weight": torch.randn(300, 500, generator=draw).relu(),
        "b.weight": torch.randn(7, generator=draw).to(torch.bfloat16),
        "c.weight": torch.tensor([1.0, torch.nan, torch.inf]),
        "steps": torch.tensor(0),
    }
    torch.save(state, tmp_path / "x.pt")
    (single,) = zoo_catalog.ingest(tmp_path / "x.pt").checkpoint_ids
    ids = zoo_catalog.append(sample_population(), zoo="z")
    rows = {
        r["checkpoint_id"]: r for r in zoo_catalog.sql("SELECT * FROM network_stats").to_pylist()
    }
    assert set(rows) == {single, *ids}
    values = np.concatenate([t.double().numpy().ravel() for n, t in state.items() if n != "steps"])
    finite = values[np.isfinite(values)]
    assert rows[single]["weight_norm"] == pytest.approx(np.linalg.norm(finite), rel=1e-12)
    assert rows[single]["sparsity"] == pytest.approx(np.mean(values == 0))
    assert (rows[single]["num_nan"], rows[single]["num_inf"]) == (1, 1)
    for checkpoint in ids:
        weights = zoo_catalog.population([checkpoint]).weights[0].double().numpy()
        assert rows[checkpoint]["weight_norm"] == pytest.approx(np.linalg.norm(weights), rel=1e-12)


def test_properties_are_stored_as_measured_metrics(zoo_catalog):
    zoo_catalog.append(sample_population("cnn"), zoo="z")
    rows = zoo_catalog.sql(
        "SELECT name, origin, value, count(*) AS n FROM metrics WHERE name = 'dead_units' GROUP BY ALL"
    ).to_pylist()
    assert rows == [{"name": "dead_units", "origin": "measured", "value": 0.0, "n": 8}]
