"""`zoo tokenizer` and `zoo predictor`: fitted, stored, evaluated and asked, from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.artifacts import find_artifact, load_artifact
from zooplatform.catalog import open_catalog
from zooplatform.evaluation.predictions import predict, queried_ids, store_predictions
from zooplatform.evaluation.stored_fits import fit_predictor
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    Cli = Callable[..., Result]

ALL = "select checkpoint_id from wide"


@pytest.fixture
def zoo(tmp_path: Path) -> str:
    """Forty models of two checkpoints, four to a stack; one checkpoint of each stack has no accuracy."""
    batch = sample_population("mlp", num_models=40)
    rows = [
        replace(row, model=replace(row.model, config={"stack": f"s{at // 8}"}))
        for at, row in enumerate(batch.rows)
    ]
    rows[::8] = [replace(row, metrics=()) for row in rows[::8]]
    path = tmp_path / "zoo"
    with open_catalog(path, create=True) as catalog:
        catalog.append(replace(batch, rows=rows), zoo="mlps")
    return str(path)


@pytest.fixture
def fitted(zoo: str, cli: Cli) -> dict[str, Any]:
    asked = ("--query", ALL, "--target", "test_accuracy", "--seed", "3", "-c", zoo)
    done = cli("predictor", "fit", "flat-linear", "--name", "lin", *asked, "--json")
    assert done.exit_code == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def test_a_fit_says_on_what(zoo: str, cli: Cli, fitted: dict[str, Any]) -> None:
    data = fitted["data"]
    assert (fitted["name"], fitted["backend"], data["target"]) == (
        "lin",
        "flat-linear",
        "test_accuracy",
    )
    assert data["train"]["checkpoints"] == 7 * (4 * 2 - 1)  # seven of ten stacks
    assert data["train"]["models"] == 28
    assert fitted["metrics"]["validation_mae"] > 0
    with open_catalog(zoo) as catalog:
        roles = catalog.sql(
            "select h.value as stack, count(distinct s.role) as roles from splits s "
            "join hyperparameters h on h.model_id = s.model_id and h.key = 'stack' "
            "where s.split_id = ? group by all",
            [data["split_id"]],
        ).to_pylist()
    assert len(roles) == 10
    assert all(row["roles"] == 1 for row in roles), "a stack is in several roles"
    listed = json.loads(cli("predictor", "ls", "-c", zoo, "--json").stdout)
    assert [item["artifact_id"] for item in listed] == [fitted["artifact_id"]]
    assert "flat-linear" in cli("predictor", "ls", "-c", zoo).stdout


def test_the_same_fit_is_the_same_predictor(zoo: str, cli: Cli, fitted: dict[str, Any]) -> None:
    asked = ("--query", ALL, "--target", "test_accuracy", "--seed", "3", "-c", zoo)
    again = cli("predictor", "fit", "flat-linear", "--name", "again", *asked)
    assert again.exit_code == 0
    assert f"split {fitted['data']['split']}" in again.stdout
    assert "7 networks left out: no test_accuracy." in again.stderr
    said = [
        json.loads(cli("predictor", "predict", name, "--query", ALL, "-c", zoo, "--json").stdout)
        for name in ("lin", "again")
    ]
    assert said[0] == said[1]


def test_evaluation_has_the_figures_and_warns_of_what_was_seen(
    zoo: str, cli: Cli, fitted: dict[str, Any]
) -> None:
    done = cli("predictor", "evaluate", "lin", "--query", ALL, "-c", zoo, "--json")
    found = json.loads(done.stdout)
    assert list(found)[:10] == [
        *("name", "backend", "n", "num_models", "kendall_tau", "kendall_tau_ci"),
        *("spearman", "r2", "mae", "mse"),
    ]
    assert (found["n"], found["num_models"]) == (70, 40)
    low, high = found["kendall_tau_ci"]
    assert low <= found["kendall_tau"] <= high
    sides = [fitted["data"][side]["checkpoints"] for side in ("train", "validation")]
    assert found["num_seen_in_fit"] == sum(sides)
    assert f"{sum(sides)} of 70 networks are of training runs" in done.stderr
    fair = cli(
        "predictor", "evaluate", "lin", "--split", fitted["data"]["split"], "-c", zoo, "--json"
    )
    assert json.loads(fair.stdout)["num_seen_in_fit"] == 0
    assert json.loads(fair.stdout)["n"] == 70 - sum(sides)
    assert "Warning" not in fair.stderr
    assert "kendall_tau_ci" in cli("predictor", "evaluate", "lin", "--query", ALL, "-c", zoo).stdout


def test_predictions_come_in_the_order_of_the_query_and_are_kept(
    zoo: str, cli: Cli, fitted: dict[str, Any]
) -> None:
    query = f"{ALL} order by checkpoint_id desc limit 5"
    asked = ("predict", "lin", "--query", query, "-c", zoo)
    rows = json.loads(cli("predictor", *asked, "--json").stdout)
    ids = [row["checkpoint_id"] for row in rows]
    assert ids == sorted(ids, reverse=True)
    with open_catalog(zoo) as catalog:
        assert not catalog.sql("from metrics where origin = 'predicted'").num_rows
        predictor = load_artifact(catalog, find_artifact(catalog, "lin"))
        for row in rows:  # each by itself, which cannot be mixed up
            (value,) = predict(catalog, predictor, [row["checkpoint_id"]])
            assert row["prediction"] == pytest.approx(value, abs=1e-9)
    assert "5 new predictions stored" in cli("predictor", *asked, "--store").stderr
    assert "0 new predictions stored" in cli("predictor", *asked, "--store").stderr
    with open_catalog(zoo) as catalog:
        kept = catalog.sql(
            "select checkpoint_id, predicted_test_accuracy as prediction from wide "
            "where predicted_test_accuracy is not null order by 1 desc"
        ).to_pylist()
        in_sql = catalog.sql(
            f"select checkpoint_id, zoo_predict('lin', checkpoint_id) as prediction from ({query})"
        ).to_pylist()
    assert kept == rows
    assert sorted(in_sql, key=lambda r: r["checkpoint_id"], reverse=True) == rows


def test_two_writers_of_the_same_predictions_leave_each_once(
    zoo: str, fitted: dict[str, Any]
) -> None:
    """The second looks, the first commits, the second commits."""

    class Late(list[str]):
        """Ids that the first writer stores predictions for at the moment that the second reads them."""

        def __iter__(self) -> Iterator[str]:
            with open_catalog(zoo) as first:
                assert store_predictions(first, artifact, list(self[:]), values) == 80
            return super().__iter__()

    with open_catalog(zoo) as second:
        artifact = find_artifact(second, "lin")
        ids = queried_ids(second, ALL)
        values = predict(second, load_artifact(second, artifact), ids)
        assert store_predictions(second, artifact, Late(ids), values) == 80
        kept = second.sql("select checkpoint_id, value from metrics where origin = 'predicted'")
        assert dict(zip(*kept.to_pydict().values(), strict=True)) == dict(
            zip(ids, values, strict=True)
        )
        assert kept.num_rows == 80


def test_embeddings_are_stored_once(zoo: str, cli: Cli, fitted: dict[str, Any]) -> None:
    counts = [
        json.loads(cli("predictor", "embed", "lin", "-c", zoo, "--json").stdout)["embedded"]
        for _ in range(2)
    ]
    assert counts == [80, 0]
    with open_catalog(zoo) as catalog:
        assert catalog.sql("from embeddings").num_rows == 80


def test_configurations_by_name_by_file_and_by_value(zoo: str, cli: Cli, tmp_path: Path) -> None:
    fit = ("fit", "sne", "--name", "x", "--query", ALL, "--target", "test_accuracy", "-c", zoo)
    wrong = cli("predictor", *fit, "--config", "debgu")
    assert wrong.exit_code == 1
    assert "no configuration 'debgu'" in wrong.stderr
    assert "Did you mean 'debug'" in wrong.stderr
    unknown = cli("predictor", *fit, "--config", "debug", "--set", "no_such=1")
    assert unknown.exit_code == 1
    assert "no_such" in unknown.stderr
    (tmp_path / "broken.toml").write_text("epochs = ")
    broken = cli("predictor", *fit, "--config", str(tmp_path / "broken.toml"))
    assert "not TOML" in broken.stderr
    # What failed has left nothing behind.
    with open_catalog(zoo) as catalog:
        assert list((catalog.path / "artifacts").iterdir()) == []


def test_what_cannot_be_fitted_is_refused(zoo: str, cli: Cli) -> None:
    fit = ("fit", "flat-linear", "--name", "x", "--query", ALL, "-c", zoo)
    assert "no target 'nothing'" in cli("predictor", *fit, "--target", "nothing").stderr
    good = (*fit, "--target", "test_accuracy")
    assert "Splits: none" in cli("predictor", *good, "--split", "nothing").stderr
    cli("split", "create", "half", "--ratio", "50/50", "-c", zoo)
    assert "has no role val" in cli("predictor", *good, "--split", "half").stderr
    assert "Device 'abacus' cannot be used" in cli("predictor", *good, "--device", "abacus").stderr
    missing = cli("predictor", "evaluate", "x", "--query", ALL, "-c", zoo)
    assert missing.exit_code == 1
    assert "No predictor 'x'" in missing.stderr
    assert cli("predictor", "evaluate", "x", "-c", zoo).exit_code == 2
    assert cli("predictor", "evaluate", "x", "--query", ALL, "--role", "val").exit_code == 2


def test_an_interrupted_fit_keeps_its_state_and_goes_on(zoo: str) -> None:
    calls = 0

    def interrupt(what: str, done: int, total: int | None) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {
        "query": ALL, "target": "test_accuracy", "config": "debug", "settings": ["epochs=3"]
    }  # fmt: skip
    with open_catalog(zoo) as catalog:
        with pytest.raises(KeyboardInterrupt):
            fit_predictor(catalog, "sne", name="x", progress=interrupt, **arguments)
        (state,) = (catalog.path / "artifacts").iterdir()
        assert state.name.startswith("fit-")
        assert any(file.suffix == ".safetensors" for file in state.iterdir())
        made = fit_predictor(catalog, "sne", name="x", **arguments)
        assert not state.exists()
        whole = fit_predictor(catalog, "sne", name="whole", **arguments)
        files = [
            json.loads((catalog.path / item.path / "artifact.json").read_text())["files"]
            for item in (made, whole)
        ]
    assert files[0]["models.safetensors"] == files[1]["models.safetensors"]


def test_a_tokenizer_is_fitted_and_listed(zoo: str, cli: Cli) -> None:
    fit = ("fit", "chunk", "--name", "chunks", "--set", "chunk_size=7", "-c", zoo)
    made = json.loads(
        cli("tokenizer", "fit", "chunk", "--name", "chunks", "-c", zoo, "--json").stdout
    )
    assert made["config"] == {}
    done = cli("tokenizer", *fit)
    assert done.exit_code == 0
    assert "there was nothing to learn" in done.stdout
    listed = json.loads(cli("tokenizer", "ls", "-c", zoo, "--json").stdout)
    assert [item["config"] for item in listed] == [{"chunk_size": 7}, {}]
