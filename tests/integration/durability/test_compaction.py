"""`zoo compact` and `zoo gc` change no answer: not of queries, not of tensors, not for those who read meanwhile."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from catalog_invariants import answers, assert_tidy, leftovers
from catalog_processes import digest, population, tensor_file, tensors
from safetensors.numpy import save_file

from zooplatform.catalog import merging as merging_module
from zooplatform.catalog import open_catalog
from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.interfaces import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog

pytestmark = pytest.mark.integration

# Where weights lie, and which commit wrote a row, are not answers.
QUERIES = {
    "zoos": "SELECT * EXCLUDE (commit_id) FROM zoos ORDER BY ALL",
    "architectures": "SELECT * EXCLUDE (commit_id) FROM architectures ORDER BY ALL",
    "models": "SELECT * EXCLUDE (commit_id) FROM models ORDER BY ALL",
    "checkpoints": "SELECT * EXCLUDE (commit_id, shard_id, shard_row) FROM checkpoints ORDER BY ALL",
    "tensors": """
        SELECT * EXCLUDE (commit_id, shard_id, shard_row, shard_offset) FROM tensors ORDER BY ALL""",
    "tensor_stats": "SELECT * EXCLUDE (commit_id) FROM tensor_stats ORDER BY ALL",
    "metrics": "SELECT * EXCLUDE (commit_id) FROM metrics ORDER BY ALL",
    "files": "SELECT * EXCLUDE (commit_id) FROM files ORDER BY ALL",
    "wide": "SELECT * FROM wide ORDER BY checkpoint_id",
    "hyperparameters": "SELECT * FROM hyperparameters ORDER BY ALL",
    "population_weights": "SELECT * FROM population_weights ORDER BY checkpoint_id",
    "tensor_values": "SELECT * FROM tensor_values ORDER BY checkpoint_id, name, part",
    "norms": """
        SELECT checkpoint_id, sqrt(list_sum(list_transform(weights, lambda x: x * x))) AS norm
        FROM population_weights ORDER BY checkpoint_id""",
    "per_zoo": """
        SELECT zoo_id, count(*) AS n, round(avg(value), 9) AS mean
        FROM metrics JOIN checkpoints USING (checkpoint_id) JOIN models USING (model_id)
        GROUP BY ALL ORDER BY ALL""",
}


def everything(catalog: Catalog) -> dict[str, Any]:
    """All that a user can ask."""
    found = answers(catalog, QUERIES)
    rows = catalog.sql("SELECT checkpoint_id, state FROM checkpoints ORDER BY ALL").to_pylist()
    for row in rows:
        if row["state"] == "stored":
            state = catalog.state_dict(row["checkpoint_id"], verify=True)
            found[row["checkpoint_id"]] = [(k, digest({k: v.numpy()})) for k, v in state.items()]
    for row in catalog.sql(
        "SELECT DISTINCT architecture_id AS a FROM checkpoints WHERE shard_id IS NOT NULL ORDER BY ALL"
    ).to_pylist():
        of_one = catalog.sql(
            "SELECT checkpoint_id FROM checkpoints WHERE architecture_id = ? ORDER BY ALL",
            [row["a"]],
        )
        found[row["a"]] = digest(
            {"w": catalog.population(of_one.column("checkpoint_id").to_pylist()).weights.numpy()}
        )
    return found


def other_architecture(number: int) -> Any:
    """A batch with weights of two dtypes."""
    batch = population(9, number)
    draw = np.random.default_rng(number)
    return replace(
        batch,
        layout=(*batch.layout, TensorSpec("steps", "int64", (2,), 16)),
        aside=draw.integers(0, 200, (len(batch.rows), 16), dtype=np.uint8),
        family="",
        config={},
    )


@pytest.fixture
def varied(tmp_path: Path) -> Catalog:
    """Populations of two architectures, single checkpoints that share tensors, a header, changed and half facts."""
    catalog = open_catalog(tmp_path / "catalog", create=True)
    for number in range(4):
        catalog.append(population(0, number), zoo=f"zoo-{number % 2}")
        catalog.append(other_architecture(number), zoo="other")
        catalog.ingest(tensor_file(tmp_path, 0, number), zoo="single")
    save_file(
        {"steps": np.arange(4), "empty": np.zeros((0, 3)), "one": np.float16([1])},
        tmp_path / "odd.safetensors",
    )
    catalog.ingest(tmp_path / "odd.safetensors")
    catalog.ingest(tensor_file(tmp_path, 0, 50), header_only=True)
    catalog.ingest(tensor_file(tmp_path, 0, 51), header_only=True)
    catalog.ingest(tensor_file(tmp_path, 0, 51))
    metric = {"dataset": "", "split": "test", "name": "test_accuracy", "origin": "reported"}
    (first,) = catalog.sql("SELECT min(checkpoint_id) AS c FROM metrics").to_pylist()
    catalog.commit(
        "correct",
        {"metrics": [metric | {"checkpoint_id": first["c"], "value": 0.75}]},
        replaces=["metrics"],
    )
    return catalog


def shard_files(catalog: Catalog) -> list[str]:
    return sorted(p.name for p in (catalog.path / "weights").rglob("*.arrow"))


def test_every_answer_stays(varied: Catalog) -> None:
    before = everything(varied)
    in_order = varied.population(
        varied.sql("SELECT checkpoint_id FROM models JOIN checkpoints USING (model_id) WHERE zoo_id = 'other' "
                   "ORDER BY shard_id, shard_row").column(0).to_pylist()
    )  # fmt: skip
    assert len(shard_files(varied)) == 14
    merged = varied.compact()
    assert merged["weights"] == 14
    assert merged["checkpoints"] > 1
    assert varied.sql("SELECT count(*) AS n FROM shards").to_pylist() == [{"n": 3}]
    for reader in (varied, open_catalog(varied.path)):
        assert everything(reader) == before
    assert len(shard_files(varied)) == 17  # nothing is removed before its grace period is over
    assert varied.gc() == []
    assert everything(varied) == before
    assert_tidy(varied)
    assert (
        len(shard_files(varied)) == 3
    )  # one for each architecture, one for the single checkpoints
    for reader in (varied, open_catalog(varied.path)):
        assert everything(reader) == before
    assert varied.compact() == {}
    # Side by side in one shard now: the matrix is a view of the file.
    again = varied.population(in_order.ids)
    np.testing.assert_array_equal(again.weights.numpy(), in_order.weights.numpy())
    assert again.weights.numpy().base is not None


def test_the_whole_catalog_reads_in_the_same_order(tmp_path: Path) -> None:
    catalog = open_catalog(tmp_path / "catalog", create=True)
    for number in range(5):
        catalog.append(population(0, number), zoo="z")
    before = catalog.population()
    catalog.compact()
    catalog.append(population(0, 99), zoo="z")
    after = catalog.population()
    assert after.ids[: len(before)] == before.ids
    np.testing.assert_array_equal(after.weights.numpy()[: len(before)], before.weights.numpy())


def test_export_gives_the_same_file_after_merging(tmp_path: Path) -> None:
    catalog = open_catalog(tmp_path / "catalog", create=True)
    files = [tensor_file(tmp_path, 0, number) for number in range(3)]
    ids = [catalog.ingest(file).checkpoint_ids[0] for file in files]
    assert catalog.compact()["weights"] == 3
    catalog.gc(grace_seconds=0)
    for number, (checkpoint, file) in enumerate(zip(ids, files, strict=True)):
        out = catalog.export(checkpoint, tmp_path / f"out-{number}.safetensors")
        assert out.read_bytes() == file.read_bytes()


def test_shared_tensors_stay_shared(tmp_path: Path) -> None:
    catalog = open_catalog(tmp_path / "catalog", create=True)
    for number in range(4):
        catalog.ingest(tensor_file(tmp_path, 0, number))
    catalog.compact()
    places = catalog.sql(
        "SELECT count(*) AS n, count(DISTINCT (shard_id, shard_row)) AS places FROM tensors"
    ).to_pylist()
    assert places == [{"n": 12, "places": 9}]
    # What is ingested next finds them where they are now.
    report = catalog.ingest(tensor_file(tmp_path, 0, 4))
    state = catalog.state_dict(report.checkpoint_ids[0], verify=True)
    assert digest({k: v.numpy() for k, v in state.items()}) == digest(tensors(0, 4))
    places = catalog.sql(
        "SELECT count(DISTINCT (shard_id, shard_row)) AS places FROM tensors WHERE name = 'shared'"
    ).to_pylist()
    assert places == [{"places": 1}]


def test_readers_of_an_older_state_go_on(varied: Catalog) -> None:
    """With a snapshot from before, and with one taken between the parts of a compaction."""
    other = open_catalog(varied.path)
    before = everything(other)
    snapshot, reader = other.snapshot(), other.reader
    varied.compact()
    varied.gc()
    for name in ("checkpoints", "metrics", "tensors"):
        assert snapshot.table(name).num_rows > 0
    ids = snapshot.table("checkpoints").filter(
        snapshot.table("checkpoints").column("shard_id").is_valid()
    ).column("checkpoint_id").to_pylist()  # fmt: skip
    assert reader.state_dict(ids[0], verify=True)
    # After the grace period the old files go, and the reader looks again by itself.
    varied.gc(grace_seconds=0)
    assert everything(other) == before


def test_files_that_go_out_of_use_are_young_again(tmp_path: Path) -> None:
    """The grace period of `zoo gc` runs from the compaction, however old the files are."""
    catalog = open_catalog(tmp_path / "catalog", create=True)
    for number in range(3):
        catalog.append(population(0, number), zoo="z")
        catalog.ingest(tensor_file(tmp_path, 0, number))
    old = [*catalog.path.rglob("*.arrow"), *catalog.path.rglob("*.parquet")]
    time.sleep(2)
    began = time.time()
    catalog.compact()
    out_of_use = [catalog.path / name for name in leftovers(catalog)]
    assert len(set(out_of_use) & set(old)) > 10
    assert catalog.gc(grace_seconds=time.time() - began + 1) == []
    assert all(p.exists() for p in out_of_use)
    assert {catalog.path / r.path for r in catalog.gc(grace_seconds=0)} == set(out_of_use)


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_catalog_opened_before_a_compaction_collects_nothing_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_off: bool
) -> None:
    """Compaction changes files without a commit, even one that is cut off; the collector of another must see that."""
    catalog = open_catalog(tmp_path / "catalog", create=True)
    for number in range(3):
        catalog.append(population(0, number), zoo="z")
    catalog.compact()
    catalog.append(population(0, 3), zoo="z")
    early = open_catalog(catalog.path)
    before = everything(early)

    class Stopped(BaseException):
        pass

    def stop(step: str) -> None:
        if step == "compacted-models" and cut_off:
            raise Stopped

    monkeypatch.setattr("zooplatform.catalog.compaction.merge_shards", lambda *_: 0)
    monkeypatch.setattr("zooplatform.catalog.compaction.reached", stop)
    with pytest.raises(Stopped) if cut_off else nullcontext():
        catalog.compact()
    monkeypatch.undo()
    early.gc(grace_seconds=0)
    assert everything(open_catalog(catalog.path)) == before
    assert_tidy(catalog)


def test_tensors_that_move_while_a_checkpoint_is_ingested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ingest finds a tensor stored; before it commits, that tensor's shard is merged into another and removed."""
    catalog = open_catalog(tmp_path / "catalog", create=True)
    for number in range(3):
        catalog.ingest(tensor_file(tmp_path, 0, number))
    other = open_catalog(catalog.path)
    done = []

    def move(step: str) -> None:
        if step == "rows-durable" and not done:
            done.append(step)
            other.compact()
            # The writer holds a lease, but what was retired is not of its making.
            for shard in other.sql("SELECT path FROM shards WHERE kind = 'retired'").to_pylist():
                os.utime(catalog.path / shard["path"], (0, 0))

    monkeypatch.setattr("zooplatform.catalog.commits.reached", move)
    report = catalog.ingest(tensor_file(tmp_path, 0, 7))
    assert done
    monkeypatch.undo()
    assert_tidy(catalog)
    state = catalog.state_dict(report.checkpoint_ids[0], verify=True)
    assert digest({k: v.numpy() for k, v in state.items()}) == digest(tensors(0, 7))
    assert len(list((catalog.path / "weights" / "tensors").iterdir())) == 2


def test_a_checkpoint_that_arrives_while_its_tensors_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round: a merge notices that somebody came to refer to what it retires, and begins again."""
    catalog = open_catalog(tmp_path / "catalog", create=True)
    for number in range(3):
        catalog.ingest(tensor_file(tmp_path, 0, number))
    other = open_catalog(catalog.path)
    ids: list[str] = []

    def arrive(step: str) -> None:
        if step == "shards-merged" and not ids:
            ids.extend(other.ingest(tensor_file(tmp_path, 0, 7)).checkpoint_ids)

    monkeypatch.setattr(merging_module, "reached", arrive)
    catalog.compact()
    assert ids
    monkeypatch.undo()
    assert_tidy(catalog)
    for reader in (catalog, open_catalog(catalog.path)):
        state = reader.state_dict(ids[0], verify=True)
        assert digest({k: v.numpy() for k, v in state.items()}) == digest(tensors(0, 7))


def test_large_shards_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only neighbours that are small are merged, up to the limit."""
    catalog = open_catalog(tmp_path / "catalog", create=True)
    sizes = []
    for number, rows in enumerate([2, 2, 60, 2, 2, 2]):
        catalog.append(population(0, number, rows), zoo="z")
    sizes = catalog.snapshot().shard_rows.column("size_bytes").to_pylist()
    monkeypatch.setattr(merging_module, "_SMALL_POPULATION", sizes[2])
    monkeypatch.setattr(merging_module, "MAX_POPULATION_BYTES", 2 * max(sizes[0], sizes[-1]) + 64)
    before = catalog.population()
    assert catalog.compact()["weights"] == 4
    rows = catalog.snapshot().shard_rows.sort_by("shard_id").column("num_rows").to_pylist()
    assert sorted(rows) == [2, 4, 4, 60]
    assert catalog.population().ids == before.ids
    assert_tidy(catalog)


def test_merging_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_catalog(tmp_path / "catalog", create=True)
    for number in range(3):
        catalog.append(population(0, number), zoo="z")
    before, files = everything(catalog), shard_files(catalog)

    def full(step: str) -> None:
        if step == "rows-staged":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("zooplatform.catalog.commits.reached", full)
    with pytest.raises(CatalogError, match="No space left on device"):
        catalog.compact()
    monkeypatch.undo()
    assert shard_files(catalog) == files
    assert everything(catalog) == before
    with pytest.raises(IntegrityError):
        catalog.reader.shard("0" * 32)
