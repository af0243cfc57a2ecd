"""Commits: all of one or none of it, whoever else writes, and other engines read the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from zooplatform.catalog import files, open_catalog
from zooplatform.catalog.commits import Snapshot, Tables
from zooplatform.errors import CatalogError, IntegrityError, SchemaError
from zooplatform.schema import table_names


def metric(value: float, checkpoint: str = "c", name: str = "test_accuracy") -> dict[str, Any]:
    return {
        "checkpoint_id": checkpoint,
        "dataset": "digits",
        "split": "test",
        "name": name,
        "value": value,
        "origin": "measured",
    }


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables.create(tmp_path / "catalog")


def values(tables: Tables) -> list[float]:
    return sorted(tables.snapshot().table("metrics").column("value").to_pylist())


def test_rows_are_visible_after_their_commit_and_to_others(tables: Tables) -> None:
    commit = tables.commit("one", {"metrics": [metric(0.5)]}, base=tables.snapshot())
    assert values(tables) == [0.5]
    other = Tables(tables.path)
    assert other.snapshot().table("metrics").column("commit_id").to_pylist() == [commit]
    assert other.snapshot().table("commits").column("message").to_pylist() == ["one"]


def test_a_snapshot_stays_as_it_was(tables: Tables) -> None:
    tables.commit("one", {"metrics": [metric(0.5)]}, base=tables.snapshot())
    before = tables.snapshot()
    tables.commit("two", {"metrics": [metric(0.7, "d")]}, base=before)
    assert before.table("metrics").num_rows == 1
    assert tables.snapshot().table("metrics").num_rows == 2


def test_an_interrupted_commit_is_invisible(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(step: str) -> None:
        if step == "commit-staged":
            raise Stopped

    monkeypatch.setattr("zooplatform.catalog.commits.reached", stop)
    with pytest.raises(Stopped):
        tables.commit("never", {"metrics": [metric(0.5)]}, base=tables.snapshot())
    monkeypatch.setattr("zooplatform.catalog.commits.reached", files.reached)
    assert values(Tables(tables.path)) == []
    tables.commit("next", {"metrics": [metric(0.6)]}, base=tables.snapshot())
    assert values(Tables(tables.path)) == [0.6]


def test_a_later_commit_supersedes_when_it_says_so(tables: Tables) -> None:
    tables.commit(
        "one", {"metrics": [metric(0.5), metric(0.1, name="loss")]}, base=tables.snapshot()
    )
    tables.commit("two", {"metrics": [metric(0.6)]}, base=tables.snapshot(), replaces=["metrics"])
    assert values(tables) == [0.1, 0.6]


def test_the_same_key_from_two_writers_is_one_row(tables: Tables) -> None:
    """Both start from one snapshot, so neither sees the other's row; the second to commit notices."""
    mine, theirs = tables, Tables(tables.path)
    base, other_base = mine.snapshot(), theirs.snapshot()
    theirs.commit("theirs", {"metrics": [metric(0.5)]}, base=other_base)
    mine.commit("mine", {"metrics": [metric(0.6), metric(0.9, "other")]}, base=base)
    assert values(Tables(tables.path)) == [0.6, 0.9]


def test_a_guard_sees_what_others_committed_meanwhile_and_can_refuse(tables: Tables) -> None:
    mine, theirs = tables, Tables(tables.path)
    base = mine.snapshot()
    theirs.commit("theirs", {"metrics": [metric(0.5)]}, base=theirs.snapshot())

    def refuse_a_second(snapshot: Snapshot) -> None:
        if snapshot.table("metrics").num_rows:
            raise CatalogError("there is one")

    with pytest.raises(CatalogError, match="there is one"):
        mine.commit("mine", {"metrics": [metric(0.6)]}, base=base, guard=refuse_a_second)
    assert values(Tables(tables.path)) == [0.5]


def test_commit_ids_are_ordered_by_time(tables: Tables) -> None:
    ids = [
        tables.commit(str(i), {"metrics": [metric(i, str(i))]}, base=tables.snapshot())
        for i in range(20)
    ]
    assert ids == sorted(ids)
    assert len(set(ids)) == 20


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"colour": "red"}, "no column colour"),
        ({"checkpoint_id": None}, "'checkpoint_id' of table 'metrics' may not be empty"),
        ({"value": "high"}, "'value' of table 'metrics' takes double"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_written(
    tables: Tables, row: dict[str, Any], message: str
) -> None:
    before = sorted(p.name for p in (tables.path / "tables" / "metrics").iterdir())
    with pytest.raises(SchemaError, match=message):
        tables.commit("bad", {"metrics": [metric(0.5) | row]}, base=tables.snapshot())
    assert sorted(p.name for p in (tables.path / "tables" / "metrics").iterdir()) == before


def test_deltalake_reads_every_table_as_we_do(tables: Tables) -> None:
    for number in range(3):
        tables.commit(
            str(number), {"metrics": [metric(number, str(number))]}, base=tables.snapshot()
        )
    for name in table_names():
        table = deltalake.DeltaTable(str(tables.path / "tables" / name))
        ours = tables.snapshot().table(name)
        theirs = pa.table(table.to_pyarrow_table()) if hasattr(table, "to_pyarrow_table") else None
        assert theirs is not None
        assert theirs.num_rows == ours.num_rows
        assert [f.name for f in theirs.schema] == [f.name for f in ours.schema]


def test_rows_that_deltalake_appends_or_rewrites_are_still_ours(tables: Tables) -> None:
    for number in range(5):
        tables.commit(
            str(number), {"metrics": [metric(number, str(number))]}, base=tables.snapshot()
        )
    deltalake.DeltaTable(str(tables.path / "tables" / "metrics")).optimize.compact()
    assert values(Tables(tables.path)) == [0, 1, 2, 3, 4]
    tables.commit("more", {"metrics": [metric(9, "x")]}, base=tables.snapshot())
    assert values(Tables(tables.path)) == [0, 1, 2, 3, 4, 9]


def test_a_log_checkpoint_gives_the_same_files(tables: Tables) -> None:
    for number in range(4):
        tables.commit(
            str(number), {"metrics": [metric(number, str(number))]}, base=tables.snapshot()
        )
    tables["metrics"].write_checkpoint()
    tables.commit("after", {"metrics": [metric(7, "x")]}, base=tables.snapshot())
    fresh = Tables(tables.path)
    assert values(fresh) == values(tables) == [0, 1, 2, 3, 7]
    assert {f.path for f in fresh["metrics"].files()} == {f.path for f in tables["metrics"].files()}


def test_a_missing_log_entry_and_table_file_are_named(tables: Tables) -> None:
    for number in range(3):
        tables.commit(
            str(number), {"metrics": [metric(number, str(number))]}, base=tables.snapshot()
        )
    gone = Path(tables.snapshot().files("metrics").pure[0])
    gone.rename(gone.with_suffix(".away"))
    with pytest.raises(IntegrityError, match=gone.name):
        Tables(tables.path).snapshot().table("metrics")
    (tables.path / "tables" / "metrics" / "_delta_log" / f"{2:020d}.json").unlink()
    with pytest.raises(IntegrityError, match="Log entry 2 of table 'metrics' is missing"):
        Tables(tables.path).snapshot()


def test_opening_what_is_no_catalog(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"is not a catalog\. Make one with `zoo ingest"):
        open_catalog(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(CatalogError, match="not empty and not a catalog"):
        open_catalog(tmp_path / "full", create=True)


def test_a_catalog_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    open_catalog(tmp_path / "c", create=True)
    (tmp_path / "c" / "FORMAT").write_text(json.dumps({"format": 99}))
    with pytest.raises(
        CatalogError,
        match=r"format 99; this version of zooplatform reads format 1\. Run `pip install",
    ):
        open_catalog(tmp_path / "c")
