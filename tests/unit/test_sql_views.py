"""The views over a committed snapshot, and how queries get their parameters and give their results."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import deltalake
import numpy as np
import pyarrow as pa
import pytest

from zooplatform.catalog import open_catalog
from zooplatform.catalog.connection import VIEW_NAMES, Engine
from zooplatform.catalog.views import MetricKey, metric_columns
from zooplatform.errors import IntegrityError, QueryError
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    SqlView,
    TensorSpec,
)
from zooplatform.schema import table_names, table_schema

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.registry import Registry

LAYOUT = (TensorSpec("w", "float32", (2, 3), 24), TensorSpec("b", "float32", (2,), 8))


def _fill(catalog: Catalog, models: Mapping[str, Any], zoo: str = "first") -> dict[str, str]:
    """One checkpoint per model, `models` giving (config, metrics); checkpoint ids by name."""
    rows = [
        CheckpointRecord(
            model=ModelInfo(key=name, name=name, source=f"test:{name}", config=config),
            step=7,
            epoch=1.5,
            metrics=metrics,
        )
        for name, (config, metrics) in models.items()
    ]
    weights = np.random.default_rng(len(rows)).standard_normal((len(rows), 8)).astype(np.float32)
    ids = catalog.append(PopulationBatch(layout=LAYOUT, weights=weights, rows=rows), zoo=zoo)
    return dict(zip(models, ids, strict=True))


def test_an_empty_catalog_has_every_view(catalog: Catalog) -> None:
    shown = catalog.sql("SHOW TABLES")["name"].to_pylist()
    added = {spec.name for _, spec in catalog.registry.sql if isinstance(spec, SqlView)}
    assert shown == sorted({*VIEW_NAMES, *added})
    for name in VIEW_NAMES:
        assert catalog.sql(f"SELECT * FROM {name}").num_rows == 0
    for name in table_names():
        table = catalog.sql(f"SELECT * FROM {name}")
        assert table.schema.names == table_schema(name).arrow.names


def test_views_have_the_columns_of_the_schemas_when_filled(catalog: Catalog) -> None:
    _fill(catalog, {"a": ({"lr": 0.1}, (MetricRecord(name="accuracy", value=0.5),))})
    for name in table_names():
        assert catalog.sql(f"FROM {name}").schema.names == table_schema(name).arrow.names


def test_tensors_of_populations_are_derived(catalog: Catalog) -> None:
    ids = _fill(catalog, {"a": ({}, ()), "b": ({}, ())})
    rows = catalog.sql(
        "SELECT name, dtype, shape, num_elements, size_bytes, tensor_index, tensor_hash "
        "FROM tensors WHERE checkpoint_id = ? ORDER BY tensor_index",
        [ids["b"]],
    ).to_pylist()
    assert rows == [
        {"name": "w", "dtype": "float32", "shape": [2, 3], "num_elements": 6, "size_bytes": 24,
         "tensor_index": 0, "tensor_hash": None},
        {"name": "b", "dtype": "float32", "shape": [2], "num_elements": 2, "size_bytes": 8,
         "tensor_index": 1, "tensor_hash": None},
    ]  # fmt: skip
    joined = catalog.sql(
        "SELECT count(*) AS n FROM tensors JOIN tensor_stats USING (checkpoint_id, tensor_index, name)"
    )
    assert joined["n"].to_pylist() == [4]


def test_hyperparameters_are_rows(catalog: Catalog) -> None:
    config = {
        "lr": 1e-5, "name": "a 'quoted' \"one\"", "deep": {"x": [1, 2]}, "none": None, "flag": True,
        "a/b~c.d": 3, "": "empty",
    }  # fmt: skip
    _fill(catalog, {"a": (config, ()), "b": ({}, ())})
    rows = catalog.sql(
        "SELECT key, value FROM hyperparameters JOIN models USING (model_id) WHERE name = 'a'"
    ).to_pylist()
    found = {row["key"]: row["value"] for row in rows}
    assert float(found.pop("lr")) == 1e-5
    assert found == {
        "name": config["name"], "deep": '{"x":[1,2]}', "none": None, "flag": "true",
        "a/b~c.d": "3", "": "empty",
    }  # fmt: skip
    one = catalog.sql(
        "SELECT count(*) AS n FROM hyperparameters WHERE key = 'lr' AND value::DOUBLE < 1"
    )
    assert one["n"].to_pylist() == [1]


def test_wide_has_a_row_per_checkpoint_and_a_column_per_metric(catalog: Catalog) -> None:
    measured = MetricRecord(
        name="accuracy", split="test", dataset="d", value=0.9, origin="measured"
    )
    reported = MetricRecord(name="accuracy", split="test", dataset="d", value=0.8)
    predicted = MetricRecord(
        name="accuracy", split="test", dataset="d", value=0.7, origin="predicted"
    )
    named = MetricRecord(name="test_accuracy", split="test", dataset="other", value=0.25)
    clash = MetricRecord(name="epoch", value=3.0)
    ids = _fill(
        catalog,
        {"a": ({}, (reported, measured, predicted)), "b": ({}, (named, clash)), "c": ({}, ())},
    )
    rows = {row["checkpoint_id"]: row for row in catalog.sql("FROM wide").to_pylist()}
    assert set(rows) == set(ids.values())
    a, b, c = (rows[ids[name]] for name in "abc")
    assert (a["model"], a["zoo"], a["step"], a["epoch"], a["state"]) == (
        "a",
        "first",
        7,
        1.5,
        "stored",
    )
    assert (a["test_accuracy"], a["predicted_test_accuracy"], a["metric_epoch"]) == (0.9, 0.7, None)
    assert (b["test_accuracy"], b["metric_epoch"], b["epoch"]) == (0.25, 3.0, 1.5)
    assert (c["test_accuracy"], c["metric_epoch"]) == (None, None)


def test_wide_tells_data_sets_apart_where_a_checkpoint_has_several(catalog: Catalog) -> None:
    def accuracy(dataset: str, value: float) -> MetricRecord:
        return MetricRecord(name="accuracy", split="test", dataset=dataset, value=value)

    ids = _fill(
        catalog,
        {"a": ({}, (accuracy("it's", 0.1), accuracy("B", 0.2))), "b": ({}, (accuracy("B", 0.3),))},
    )
    rows = {row["checkpoint_id"]: row for row in catalog.sql("FROM wide").to_pylist()}
    assert rows[ids["a"]]["it's_test_accuracy"] == 0.1
    assert rows[ids["a"]]["B_test_accuracy"] == 0.2
    assert rows[ids["b"]]["B_test_accuracy"] == 0.3
    assert "test_accuracy" not in rows[ids["a"]]


def test_columns_of_wide_do_not_differ_by_case() -> None:
    keys = [
        MetricKey("", "", "Loss", "reported", False),
        MetricKey("", "", "loss", "measured", False),
    ]
    assert metric_columns(keys) == {"loss": [keys[1], keys[0]]}


def test_the_latest_of_rows_with_one_key_counts(catalog: Catalog) -> None:
    _fill(catalog, {"a": ({}, ()), "b": ({}, ())})
    row = next(r for r in catalog.snapshot().table("models").to_pylist() if r["name"] == "a")
    row.pop("commit_id")
    for license_ in ("mit", "apache-2.0"):
        catalog.commit("license", {"models": [{**row, "license": license_}]}, replaces=["models"])
    rows = catalog.sql("SELECT name, license FROM models ORDER BY name").to_pylist()
    assert rows == [{"name": "a", "license": "apache-2.0"}, {"name": "b", "license": None}]


def test_rows_of_unknown_commits_are_not_seen(catalog: Catalog) -> None:
    """Files with one commit are left out whole, merged files row by row."""
    _fill(catalog, {"a": ({}, ())})
    rows = catalog.snapshot().table("zoos")
    lost = rows.set_column(0, "commit_id", pa.array(["f" * 32])).set_column(
        1, "zoo_id", pa.array(["lost"])
    )
    zoos = catalog._tables["zoos"]
    zoos.append([zoos.stage(lost)])
    other = open_catalog(catalog.path, registry=catalog.registry)
    assert other.sql("SELECT zoo_id FROM zoos")["zoo_id"].to_pylist() == ["first"]
    # Another engine knows nothing of commits and merges all files into one.
    deltalake.DeltaTable(str(catalog.path / "tables" / "zoos")).optimize.compact()
    other = open_catalog(catalog.path, registry=catalog.registry)
    assert other.snapshot().files("zoos").mixed
    assert other.sql("SELECT zoo_id FROM zoos")["zoo_id"].to_pylist() == ["first"]
    other.close()


def test_times_are_utc(catalog: Catalog) -> None:
    _fill(catalog, {"a": ({}, ())})
    table = catalog.sql("SELECT created_at, created_at::VARCHAR AS text FROM models")
    assert table.schema.field("created_at").type == pa.timestamp("us", tz="UTC")
    stored = table["created_at"].to_pylist()[0]
    assert abs((datetime.now(UTC) - stored).total_seconds()) < 300
    assert table["text"].to_pylist()[0].endswith("+00")


def test_parameters_are_bound_by_position_and_by_name(catalog: Catalog) -> None:
    ids = _fill(catalog, {"a": ({}, ()), "it's": ({}, ())})
    query = "SELECT model FROM wide WHERE checkpoint_id = {} AND step < {}"
    assert catalog.sql(query.format("?", "?"), [ids["it's"], 8])["model"].to_pylist() == ["it's"]
    engine = catalog.engine()
    named = engine.sql(query.format("$id", "$step"), {"id": ids["a"], "step": 8})
    assert named["model"].to_pylist() == ["a"]
    many = catalog.sql(
        "SELECT count(*) AS n FROM models WHERE name IN (SELECT unnest(?))", [["a", "z"]]
    )
    assert many["n"].to_pylist() == [1]
    with pytest.raises(QueryError, match=r"(?i)parameter"):
        catalog.sql("SELECT ?")
    with pytest.raises(QueryError, match=r"(?i)parameter"):
        catalog.sql("SELECT 1", [1])


def test_sums_of_integers_are_integers(catalog: Catalog) -> None:
    _fill(catalog, {"a": ({}, ()), "b": ({}, ())})
    query = "SELECT sum(num_parameters) AS n, 1.5 AS d FROM checkpoints"
    for table in (catalog.sql(query), catalog.engine().reader(query).read_all()):
        assert table.schema.field("n").type == pa.int64()
        assert table["n"].to_pylist() == [16]
    with pytest.raises(QueryError, match="beyond 64 bits"):
        catalog.sql("SELECT sum(x) AS n FROM (VALUES (9223372036854775807), (1)) AS t(x)")


def test_a_reader_streams_beside_other_queries(catalog: Catalog) -> None:
    _fill(catalog, {"a": ({}, ())})
    reader = catalog.engine().reader("SELECT * FROM range(300000) AS t(n)", batch_rows=2048)
    first = reader.read_next_batch()
    assert 0 < first.num_rows <= 4096
    assert catalog.sql("SELECT count(*) AS n FROM models")["n"].to_pylist() == [1]
    catalog.close()
    assert first.num_rows + reader.read_all().num_rows == 300_000


def test_an_error_while_streaming_is_a_query_error(catalog: Catalog) -> None:
    query = "SELECT CASE WHEN n = 250000 THEN error('too far') ELSE n::VARCHAR END FROM range(300000) AS t(n)"
    reader = catalog.engine().reader(query, batch_rows=2048)
    with pytest.raises(QueryError, match="too far"):
        reader.read_all()


def test_an_engine_keeps_to_its_snapshot(catalog: Catalog) -> None:
    _fill(catalog, {"a": ({}, ())})
    with Engine(catalog.snapshot(), catalog.registry) as engine:
        _fill(catalog, {"b": ({}, ())})
        assert engine.sql("SELECT name FROM models")["name"].to_pylist() == ["a"]
        engine.close()
        assert engine.sql("SELECT name FROM models")["name"].to_pylist() == ["a"]
    assert catalog.sql("SELECT name FROM models ORDER BY 1")["name"].to_pylist() == ["a", "b"]


def test_threads_share_an_engine(catalog: Catalog) -> None:
    _fill(catalog, {name: ({"k": name}, ()) for name in "abcdefgh"})
    engine, found = catalog.engine(), {}

    def ask(name: str) -> None:
        table = engine.sql(
            "SELECT value, len(weights) AS n FROM hyperparameters JOIN models USING (model_id) "
            "JOIN checkpoints USING (model_id) JOIN population_weights USING (checkpoint_id) "
            "WHERE name = ?",
            [name],
        )
        found[name] = table.to_pylist()

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [{"value": name, "n": 8}] for name in "abcdefgh"}


def test_a_catalog_may_lie_anywhere(tmp_path: Path, zoo_registry: Registry) -> None:
    folder = tmp_path / 'it\'s [a] "zoo"*? é'
    with open_catalog(folder, create=True, registry=zoo_registry) as catalog:
        _fill(catalog, {"a": ({}, ())})
        _fill(catalog, {"b": ({}, ())})
        assert catalog.sql("SELECT count(*) AS n FROM wide")["n"].to_pylist() == [2]
        assert catalog.sql("FROM population_weights").num_rows == 2


def test_a_missing_table_file_is_named_each_time(catalog: Catalog) -> None:
    from pathlib import Path

    _fill(catalog, {"a": ({}, ())})
    lost = Path(catalog.snapshot().files("models").pure[0])
    lost.unlink()
    for query in ("FROM models", "FROM models", "FROM wide"):
        with pytest.raises(IntegrityError, match=lost.name):
            catalog.sql(query)
    assert catalog.sql("FROM zoos").num_rows == 1


def test_nothing_is_printed_when_a_connection_is_left_open(catalog: Catalog) -> None:
    import subprocess
    import sys

    _fill(catalog, {"a": ({}, ())})
    code = (
        "import sys, zooplatform as zoo\n"
        "c = zoo.open_catalog(sys.argv[1])\n"
        "r = c.engine().reader('FROM range(100000)'); r.read_next_batch(); del r\n"
        "r = c.engine().reader('FROM range(100000)'); r.read_all()\n"
        "print(c.sql('SELECT count(*) AS n FROM models')['n'].to_pylist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(catalog.path)], capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[1]", "")


def test_nan_is_found_in_tables(catalog: Catalog) -> None:
    """Smallest and largest values in the files leave NaN out; skipping by them would lose these rows."""
    values = (0.25, float("nan"), 0.75)
    _fill(catalog, {str(v): ({}, (MetricRecord(name="test_loss", value=v),)) for v in values})
    where = "from metrics where name = 'test_loss' and "
    assert catalog.sql(f"select count(*) as n {where} isnan(value)").to_pylist() == [{"n": 1}]
    # NaN is the greatest number in SQL.
    assert catalog.sql(f"select count(*) as n {where} value > 0.8").to_pylist() == [{"n": 1}]
