"""The table of embeddings: what is stored, catalogs that are older than it, and nearest neighbours."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

import deltalake
import numpy as np
import pytest
from fitted_linear import PLUGIN, fit_linear, learnable_population

from zooplatform.catalog import open_catalog
from zooplatform.catalog.predicting import store_embeddings
from zooplatform.errors import CatalogError, IntegrityError, UnknownIdError
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.testing import PluginInstaller


@pytest.fixture
def zoo(tmp_path: Path, zoo_site: PluginInstaller) -> Iterator[Catalog]:
    zoo_site.install("linear", PLUGIN)
    path = tmp_path / "catalog"
    with open_catalog(path, create=True, registry=load_plugins()) as catalog:
        ids = catalog.append(learnable_population(60), zoo="linear")
        fit_linear(catalog, list(ids))
        yield catalog


def rows(catalog: Catalog) -> list[dict[str, Any]]:
    return catalog.sql("SELECT * FROM embeddings ORDER BY ALL").to_pylist()


def embedding(name: str = "c", artifact: str = "a") -> dict[str, Any]:
    return {"checkpoint_id": name, "artifact_id": artifact, "values": [0.5, -2.0]}


def test_embeddings_are_what_the_predictor_gives_each_once(zoo: Catalog) -> None:
    some = "SELECT checkpoint_id FROM checkpoints WHERE checkpoint_id < '8'"
    first = store_embeddings(zoo, "line", some)
    assert 0 < first < 60
    assert store_embeddings(zoo, "linear:test_accuracy") == 60 - first
    assert store_embeddings(zoo, "line") == 0
    stored = rows(zoo)
    assert len(stored) == len({row["checkpoint_id"] for row in stored}) == 60
    (folder,) = (zoo.path / "artifacts").iterdir()
    assert {row["artifact_id"] for row in stored} == {folder.name}
    predictor = zoo.registry.predictors.create("linear")
    predictor.load(folder)
    population = zoo.population([row["checkpoint_id"] for row in stored])
    weights = population.read(range(60))[:, :5]
    expected = weights * predictor.coefficients[:5].float().numpy()
    assert np.array_equal(np.array([row["values"] for row in stored], np.float32), expected)
    assert zoo.check(deep=True) == []


def test_other_engines_read_them(zoo: Catalog) -> None:
    store_embeddings(zoo, "line")
    table = deltalake.DeltaTable(str(zoo.path / "tables" / "embeddings")).to_pyarrow_table()
    assert sorted(table["values"].to_pylist()) == sorted(row["values"] for row in rows(zoo))


def test_what_cannot_be_embedded_is_named(zoo: Catalog) -> None:
    with pytest.raises(UnknownIdError, match=r"'lime'.*line \(linear\)"):
        store_embeddings(zoo, "lime")
    with pytest.raises(UnknownIdError, match="'nothing'"):
        store_embeddings(zoo, "line", ["nothing"])
    assert rows(zoo) == []


# --- nearest neighbours ----------------------------------------------------------------------------------------------


def test_the_nearest_are_those_of_the_largest_cosine(zoo: Catalog) -> None:
    store_embeddings(zoo, "line")
    stored = {row["checkpoint_id"]: np.array(row["values"]) for row in rows(zoo)}
    of, vector = next(iter(stored.items()))
    distances = {
        name: 1 - vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
        for name, other in stored.items()
        if name != of
    }
    expected = sorted(distances, key=lambda name: distances[name])[:7]
    (artifact,) = zoo.sql("SELECT artifact_id FROM artifacts")["artifact_id"].to_pylist()
    for given in ("line", "linear:test_accuracy", artifact, artifact[:20]):
        found = zoo.sql("FROM nearest(?, ?, 7)", [of, given])
        assert found["checkpoint_id"].to_pylist() == expected
        assert found["distance"].to_pylist() == pytest.approx(
            [distances[name] for name in expected], abs=1e-6
        )
    each = zoo.sql(
        "SELECT c.checkpoint_id, n.checkpoint_id AS other "
        "FROM checkpoints AS c, nearest(c.checkpoint_id, 'line', 2) AS n"
    )
    assert each.num_rows == 120
    assert (
        of
        not in each.filter(np.array(each["checkpoint_id"].to_pylist()) == of)["other"].to_pylist()
    )


def test_the_newest_artifact_of_a_name_is_meant(zoo: Catalog) -> None:
    store_embeddings(zoo, "line")
    ids = [row["checkpoint_id"] for row in rows(zoo)]
    fit_linear(zoo, ids[:40])
    assert zoo.sql("FROM nearest(?, 'line', 3)", [ids[0]]).num_rows == 0
    store_embeddings(zoo, "line", ids[:4])
    found = zoo.sql("FROM nearest(?, 'line', 9)", [ids[0]])["checkpoint_id"].to_pylist()
    assert sorted(found) == sorted(ids[1:4])
    assert zoo.sql("FROM nearest(NULL, 'line', 3)").num_rows == 0


# --- catalogs that are older than the table --------------------------------------------------------------------------


@pytest.fixture
def old(checkout: Path, tmp_path: Path) -> Path:
    """A catalog that was written before the table was thought of."""
    path = tmp_path / "old"
    shutil.copytree(checkout / "tests" / "data" / "compat" / "v1" / "catalog", path)
    assert not (path / "tables" / "embeddings").exists()
    return path


def test_an_older_catalog_reads_as_empty_and_is_left_as_it_is(old: Path) -> None:
    with open_catalog(old) as catalog:
        assert rows(catalog) == []
        assert catalog.check(deep=True) == []
        assert catalog.gc(grace_seconds=0, dry_run=True) == []
        catalog.compact()
    assert not (old / "tables" / "embeddings").exists()


def test_it_gains_the_table_with_the_first_row(old: Path) -> None:
    with open_catalog(old) as catalog, open_catalog(old) as reader:
        assert rows(reader) == []
        catalog.commit("first", {"embeddings": [embedding()]})
        assert [row["values"] for row in rows(reader)] == [[0.5, -2.0]]
        catalog.commit("second", {"embeddings": [embedding("d")]})
        assert len(rows(catalog)) == 2
        assert catalog.compact()["embeddings"] == 2
        catalog.gc(grace_seconds=0)
        assert len(rows(catalog)) == len(rows(reader)) == 2
    assert len(deltalake.DeltaTable(str(old / "tables" / "embeddings")).to_pyarrow_table()) == 2


def test_first_writers_at_once_lose_nothing(old: Path) -> None:
    catalogs = [open_catalog(old) for _ in range(8)]
    for catalog in catalogs:
        catalog.snapshot()
    ready = threading.Barrier(len(catalogs))

    def work(number: int) -> None:
        ready.wait()
        catalogs[number].commit(f"{number}", {"embeddings": [embedding(str(number))]})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(catalogs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_catalog(old) as catalog:
        assert {row["checkpoint_id"] for row in rows(catalog)} == {str(n) for n in range(8)}
    assert len(list((old / "tables" / "embeddings" / "_delta_log").glob("*.json"))) == 9


def test_a_creation_that_was_cut_off_is_begun_again(old: Path) -> None:
    (old / "tables" / "embeddings" / "_delta_log").mkdir(parents=True)
    with open_catalog(old) as catalog:
        assert rows(catalog) == []
        assert catalog.check() == []
        catalog.commit("first", {"embeddings": [embedding()]})
        assert len(rows(catalog)) == 1


def test_a_remote_older_catalog_reads_as_empty(old: Path) -> None:
    import fsspec

    remote = fsspec.filesystem("memory")
    remote.put(str(old), "/older", recursive=True)
    try:
        with open_catalog("memory://older") as catalog:
            assert rows(catalog) == []
            assert catalog.sql("FROM checkpoints").num_rows == 12
        remote.cp("/older", "/damaged", recursive=True)
        remote.rm("/damaged/tables/metrics", recursive=True)
        with pytest.raises(CatalogError, match="tables/metrics/_delta_log is missing"):
            open_catalog("memory://damaged").sql("FROM metrics")
    finally:
        remote.rm("/older", recursive=True)
        remote.rm("/damaged", recursive=True)


def test_a_table_that_was_written_and_is_gone_is_damage(zoo: Catalog, tmp_path: Path) -> None:
    store_embeddings(zoo, "line")
    shutil.rmtree(zoo.path / "tables" / "embeddings")
    with open_catalog(zoo.path) as fresh:
        (problem,) = fresh.check()
        assert (problem.kind, problem.subject) == ("log", "tables/embeddings/_delta_log")
        assert "Restore" in problem.message


def test_rows_of_unknown_checkpoints_and_artifacts_are_reported(old: Path) -> None:
    with open_catalog(old) as catalog:
        catalog.commit("dangling", {"embeddings": [embedding()]})
        found = {problem.subject for problem in catalog.check()}
    assert found == {"embeddings.checkpoint_id", "embeddings.artifact_id"}


def test_a_missing_file_of_it_is_named(zoo: Catalog) -> None:
    store_embeddings(zoo, "line")
    (file,) = (zoo.path / "tables" / "embeddings").glob("*.parquet")
    file.unlink()
    with open_catalog(zoo.path) as fresh, pytest.raises(IntegrityError, match=file.name):
        fresh.sql("FROM embeddings")
