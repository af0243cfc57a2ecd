"""`zoo_predict` in SQL: what it gives, what it keeps, and what goes wrong."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fitted_linear import NOISE, PLUGIN, fit_linear, learnable_population

from zooplatform.catalog import open_catalog
from zooplatform.errors import IntegrityError, QueryError
from zooplatform.plugins import load_plugins
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.testing import PluginInstaller

PREDICTED = "SELECT checkpoint_id, zoo_predict('line', checkpoint_id) AS p FROM checkpoints"
STORED = "SELECT * FROM metrics WHERE origin = 'predicted'"


@pytest.fixture
def zoo(tmp_path: Path, zoo_site: PluginInstaller) -> Iterator[Catalog]:
    """200 networks whose accuracies follow from their weights, and a predictor `line` fitted on 150."""
    zoo_site.install("linear", PLUGIN)
    path = tmp_path / "catalog"
    with open_catalog(path, create=True, registry=load_plugins()) as catalog:
        ids = catalog.append(learnable_population(), zoo="linear")
        fit_linear(catalog, list(ids[:150]))
        yield catalog


def asked() -> list[str]:
    """The checkpoints that the predictor was asked about since the last call."""
    calls = sys.modules["zoo_test_linear"].ASKED
    ids = [checkpoint for what, ids in calls if what == "predict" for checkpoint in ids]
    calls.clear()
    return ids


def values(catalog: Catalog, query: str = PREDICTED) -> dict[str, float | None]:
    table = catalog.sql(query)
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def by_hand(catalog: Catalog, name: str = "line") -> dict[str, float]:
    """What the stored coefficients say, computed without the predictor."""
    from safetensors.torch import load_file

    row = catalog.sql(
        "SELECT path FROM artifacts WHERE name = ? ORDER BY created_at DESC", [name]
    ).to_pylist()[0]
    coefficients = load_file(catalog.path / row["path"] / "model.safetensors")["coefficients"]
    population = catalog.population(
        "SELECT checkpoint_id FROM population_weights JOIN models USING (architecture_id) "
        "WHERE zoo_id = 'linear' GROUP BY ALL"
    )
    weights = torch.from_numpy(population.read(range(len(population)))).double()
    said = weights @ coefficients[:-1] + coefficients[-1]
    return dict(zip(population.ids, said.tolist(), strict=True))


# --- values ----------------------------------------------------------------------------------------------------------


def test_it_is_what_the_predictor_says_and_near_the_truth(zoo: Catalog) -> None:
    assert values(zoo) == pytest.approx(by_hand(zoo), abs=1e-12)
    error = zoo.sql("SELECT avg(abs(predicted_test_accuracy - test_accuracy)) AS e FROM wide")
    assert error["e"][0].as_py() < 3 * NOISE


def test_it_works_wherever_an_expression_does(zoo: Catalog) -> None:
    best = max(by_hand(zoo).items(), key=lambda item: item[1])
    top = zoo.sql(
        "SELECT checkpoint_id FROM checkpoints ORDER BY ZOO_PREDICT('line', checkpoint_id) DESC LIMIT 1"
    )
    assert top["checkpoint_id"][0].as_py() == best[0]
    count = zoo.sql(
        "SELECT count(*) AS n FROM checkpoints WHERE zoo_predict('line', checkpoint_id) >= ?",
        [best[1]],
    )
    assert count["n"][0].as_py() == 1
    again = zoo.sql("SELECT zoo_predict('line', ?) AS p", [best[0]])
    assert again["p"][0].as_py() == best[1]
    plan = zoo.sql("EXPLAIN SELECT zoo_predict('line', checkpoint_id) FROM checkpoints")
    assert "zoo_predict" in str(plan.to_pylist())


def test_null_gives_null_and_so_does_a_checkpoint_without_weights(zoo: Catalog) -> None:
    row = zoo.sql("SELECT * FROM checkpoints LIMIT 1").to_pylist()[0]
    header = row | {"checkpoint_id": "header", "state": "header-only", "content_hash": None}
    header |= {"shard_id": None, "shard_row": None, "step": 99}
    zoo.commit("header", {"checkpoints": [{k: v for k, v in header.items() if k != "commit_id"}]})
    said = values(zoo)
    assert said.pop("header") is None
    assert None not in said.values()
    assert values(zoo, "SELECT 1, zoo_predict(NULL, checkpoint_id) FROM checkpoints") == {1: None}
    assert values(zoo, "SELECT 1, zoo_predict('line', NULL)") == {1: None}
    assert zoo.sql(STORED).num_rows == 200


def test_more_rows_than_one_vector_and_repeated_ones_are_asked_about_once(
    zoo: Catalog,
) -> None:
    zoo.append(learnable_population(2300, seed=9), zoo="more")
    asked()
    said = values(zoo, f"{PREDICTED}, range(3)")
    assert len(said) == 2500
    assert sorted(asked()) == sorted(said)
    assert zoo.sql(STORED).num_rows == 2500


def test_an_artifact_has_several_names(zoo: Catalog) -> None:
    (artifact,) = zoo.sql("SELECT artifact_id FROM artifacts")["artifact_id"].to_pylist()
    said = values(zoo)
    for given in (artifact, artifact[:20], "linear:test_accuracy"):
        assert values(zoo, PREDICTED.replace("'line'", f"'{given}'")) == said
    names = "(SELECT name FROM artifacts)"
    assert values(zoo, PREDICTED.replace("'line'", names)) == said
    assert len(asked()) == 200


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_second_query_computes_nothing(zoo: Catalog) -> None:
    some = f"{PREDICTED} WHERE checkpoint_id < '8'"
    first = values(zoo, some)
    assert 0 < len(first) < 200
    assert sorted(asked()) == sorted(first)
    assert values(zoo, some) == first
    assert asked() == []
    said = values(zoo)
    assert sorted(asked()) == sorted(said.keys() - first)
    (artifact,) = zoo.sql("SELECT artifact_id FROM artifacts")["artifact_id"].to_pylist()
    rows = zoo.sql(STORED).to_pylist()
    assert {(r["dataset"], r["split"], r["name"]) for r in rows} == {
        (artifact, "", "test_accuracy")
    }
    assert {r["checkpoint_id"]: r["value"] for r in rows} == said
    with open_catalog(zoo.path, registry=zoo.registry) as other:
        assert values(other) == said
    assert asked() == []
    assert zoo.check(deep=True) == []


def test_a_stream_of_results_keeps_them_too(zoo: Catalog) -> None:
    with zoo.engine().reader(PREDICTED) as reader:
        assert sum(batch.num_rows for batch in reader) == 200
    assert zoo.sql(STORED).num_rows == 200
    assert len(asked()) == 200


def test_artifacts_of_one_name_are_not_mixed_up(zoo: Catalog) -> None:
    first = values(zoo)
    ids = sorted(first)
    fit_linear(zoo, ids[:120])
    asked()
    second = values(zoo)
    assert len(asked()) == 200
    assert second == pytest.approx(by_hand(zoo), abs=1e-12)
    assert not set(first.values()) & set(second.values())
    assert zoo.sql(STORED).num_rows == 400
    oldest = "(SELECT min_by(artifact_id, created_at) FROM artifacts)"
    assert values(zoo, PREDICTED.replace("'line'", oldest)) == first
    columns = [c for c in zoo.sql("DESCRIBE wide")["column_name"].to_pylist() if "predicted" in c]
    assert len(columns) == 2


def test_processes_that_predict_the_same_leave_one_row_for_each(zoo: Catalog) -> None:
    others = [open_catalog(zoo.path, registry=zoo.registry) for _ in range(4)]
    ready = threading.Barrier(len(others))

    def work(catalog: Catalog) -> None:
        with catalog:
            catalog.sql("FROM checkpoints")
            ready.wait()
            catalog.sql(PREDICTED)

    threads = [threading.Thread(target=work, args=(catalog,)) for catalog in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert zoo.sql(STORED).num_rows == 200
    assert values(zoo) == pytest.approx(by_hand(zoo), abs=1e-12)
    assert zoo.check(deep=True) == []


def test_what_another_process_stored_meanwhile_is_not_stored_again(zoo: Catalog) -> None:
    with open_catalog(zoo.path, registry=zoo.registry) as other:
        values(other, f"{PREDICTED} WHERE checkpoint_id < '8'")
        said = values(zoo)
        assert values(other) == said
    assert zoo.sql(STORED).num_rows == 200


def test_plain_queries_load_nothing(zoo: Catalog) -> None:
    with open_catalog(zoo.path, registry=zoo.registry) as fresh:
        before = fresh.snapshot().version
        fresh.sql("FROM wide")
        functions = fresh.sql("SELECT function_name FROM duckdb_functions()")
        assert "zoo_predict" in functions["function_name"].to_pylist()
        assert fresh.snapshot().version == before
    assert asked() == []


def test_a_catalog_that_cannot_be_written_gives_them_all_the_same(
    zoo: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = by_hand(zoo)
    (zoo.path / "tmp").rename(tmp_path / "away")
    (zoo.path / "tmp").write_text("no folder")
    for _ in range(2):
        assert values(zoo) == pytest.approx(said, abs=1e-12)
    assert len(asked()) == 200
    assert "could not be kept" in caplog.text
    assert zoo.sql(STORED).num_rows == 0


def test_a_remote_catalog_predicts_and_is_not_written(zoo: Catalog, tmp_path: Path) -> None:
    import fsspec

    remote = fsspec.filesystem("memory")
    remote.put(str(zoo.path), "/predicting", recursive=True)
    try:
        before = sorted(remote.find("/predicting"))
        with open_catalog("memory://predicting", registry=zoo.registry) as away:
            assert values(away) == pytest.approx(by_hand(zoo), abs=1e-12)
            assert values(away) == pytest.approx(by_hand(zoo), abs=1e-12)
        assert len(asked()) == 200
        assert sorted(remote.find("/predicting")) == before
    finally:
        remote.rm("/predicting", recursive=True)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT zoo_predict('lime', checkpoint_id) FROM checkpoints", r"'lime'.*line \(linear\)"),
        ("SELECT zoo_predict('sne:epoch', checkpoint_id) FROM checkpoints",
         r"'sne:epoch'.*linear:test_accuracy.*zoo predictor fit sne --target epoch"),
        ("SELECT zoo_predict('line', model_id) FROM models", "No checkpoint .*whole checkpoint ids"),
        ("SELECT zoo_predict('line')", "zoo_predict"),
        ("SELECT sne_accuracy(checkpoint_id) FROM checkpoints", "zoo predictor fit sne"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(zoo: Catalog, query: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        zoo.sql(query)
    assert zoo.sql("SELECT count(*) AS n FROM checkpoints")["n"].to_pylist() == [200]


def test_an_architecture_that_it_cannot_read_is_named_and_can_be_left_out(zoo: Catalog) -> None:
    (own,) = zoo.sql("SELECT architecture_id FROM architectures")["architecture_id"].to_pylist()
    zoo.append(sample_population("cnn"), zoo="other")
    with pytest.raises(
        QueryError, match=r"'line' cannot predict .*fitted on one other.*where arch"
    ):
        zoo.sql(PREDICTED)
    assert len(values(zoo, f"{PREDICTED} WHERE architecture_id = '{own}'")) == 200


def test_a_damaged_artifact_fails_only_what_needs_it(zoo: Catalog) -> None:
    (folder,) = (zoo.path / "artifacts").iterdir()
    some = f"{PREDICTED} WHERE checkpoint_id < '8'"
    before = values(zoo, some)
    with (folder / "model.safetensors").open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\xff")
    with open_catalog(zoo.path, registry=zoo.registry) as fresh:
        with pytest.raises(
            QueryError, match=r"model\.safetensors is not what was stored.*fit again"
        ):
            fresh.sql(PREDICTED)
        assert values(fresh, some) == before
        assert fresh.sql("FROM wide").num_rows == 200


def test_a_plugin_that_is_gone_is_named(zoo: Catalog) -> None:
    registry = load_plugins(deny=["linear"])
    with (
        open_catalog(zoo.path, registry=registry) as fresh,
        pytest.raises(QueryError, match=r"zoo_predict: .*'linear'.*disabled"),
    ):
        fresh.sql(PREDICTED)


def test_a_missing_weight_file_is_named(zoo: Catalog) -> None:
    (shard,) = (zoo.path / "weights").rglob("*.arrow")
    shard.unlink()
    with pytest.raises(IntegrityError, match=shard.name):
        zoo.sql(PREDICTED)


def test_what_a_predictor_raises_unforeseen_keeps_its_traceback(
    zoo: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError("of the predictor")

    values(zoo, f"{PREDICTED} LIMIT 1")
    monkeypatch.setattr(sys.modules["zoo_test_linear"].Linear, "predict", broken)
    with pytest.raises(QueryError, match=r"'line'.*ZeroDivisionError: of the predictor") as caught:
        zoo.sql(PREDICTED)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT zoo_predict('line', (SELECT content FROM read_text('/etc/hostname')))",
        "CREATE MACRO zoo_predict(a, b) AS 1",
        "FROM zoo_predict('line', 'x')",
    ],
)
def test_untrusted_sql_stays_refused(zoo: Catalog, query: str) -> None:
    with pytest.raises(QueryError, match="refused"):
        zoo.sql(query)


def test_a_plugin_cannot_take_its_name(zoo: Catalog, zoo_site: PluginInstaller) -> None:
    zoo_site.install(
        "taker",
        """
        from zooplatform import hookimpl
        from zooplatform.interfaces import SqlFunction

        @hookimpl
        def zoo_register_sql():
            parameters = ("a", "b")
            return [
                SqlFunction(name=name, parameters=parameters, sql="1", returns="DOUBLE", summary="")
                for name in ("zoo_predict", "nearest")
            ]
        """,
    )
    with open_catalog(zoo.path, registry=load_plugins()) as fresh:
        assert values(fresh) == pytest.approx(by_hand(zoo), abs=1e-12)
        errors = fresh.sql("SELECT error FROM zoo_functions() WHERE plugin = 'taker'")
        for error in errors["error"].to_pylist():
            assert "the catalog has a function" in error


def test_the_macro_of_the_encoder_asks_the_newest_of_its_backend(zoo: Catalog) -> None:
    functions = zoo.sql("SELECT name, plugin, error FROM zoo_functions()").to_pylist()
    by_name = {row["name"]: row for row in functions}
    assert by_name["sne_accuracy"] == {"name": "sne_accuracy", "plugin": "sne", "error": None}
    assert by_name["zoo_predict"]["plugin"] is None
