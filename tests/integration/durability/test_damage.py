"""Files that are missing, cut off or changed: `zoo check` names each, and reads that verify raise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from catalog_processes import population, tensor_file

from zooplatform.catalog import open_catalog
from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.schema import table_names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from zooplatform.catalog import Catalog

pytestmark = pytest.mark.integration


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, str, str]:
    """A catalog of several commits, a checkpoint of a population and a single one."""
    path = tmp_path / "catalog"
    with open_catalog(path, create=True) as catalog:
        ids = [catalog.append(population(0, n), zoo="z") for n in range(3)]
        single = catalog.ingest(tensor_file(tmp_path, 0, 0)).checkpoint_ids
    return path, ids[1][0], single[0]


def shard_of(path: Path, checkpoint: str) -> Path:
    with open_catalog(path) as catalog:
        query = """
            SELECT path FROM shards WHERE shard_id IN (
                SELECT shard_id FROM tensors WHERE checkpoint_id = ?)
        """
        (row,) = catalog.sql(query, [checkpoint]).to_pylist()
    return path / str(row["path"])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def named(path: Path, *, deep: bool = False) -> list[tuple[str, str]]:
    """Kind and subject of every problem."""
    with open_catalog(path) as catalog:
        return [(p.kind, p.subject) for p in catalog.check(deep=deep)]


def read(catalog: Catalog, checkpoint: str, *, population: bool) -> list[Callable[[], object]]:
    """Ways to read a checkpoint with verification."""
    ways: list[Callable[[], object]] = [lambda: catalog.state_dict(checkpoint, verify=True)]
    if population:
        ways.append(lambda: catalog.population([checkpoint], verify=True))
    return ways


@pytest.mark.parametrize("which", [1, 2], ids=["population", "tensors"])
def test_a_shard_that_is_gone_or_cut_off(stored: tuple[Path, str, str], which: int) -> None:
    path, checkpoint = stored[0], str(stored[which])
    shard = shard_of(path, checkpoint)
    whole = shard.read_bytes()
    subject = shard.relative_to(path).as_posix()
    for size in (0, 100, len(whole) - 1, None):
        if size is None:
            shard.unlink()
        else:
            shard.write_bytes(whole[:size])
        assert named(path) == [("shard", subject)], size
        with open_catalog(path) as catalog:
            if size == len(whole) - 1:
                continue  # the byte at the very end belongs to no weight
            for way in read(catalog, checkpoint, population=which == 1):
                with pytest.raises(IntegrityError, match=shard.stem):
                    way()
    shard.write_bytes(whole)
    assert named(path, deep=True) == []


@pytest.mark.parametrize("which", [1, 2], ids=["population", "tensors"])
def test_every_byte_of_a_shard_that_flips_is_found(
    stored: tuple[Path, str, str], which: int
) -> None:
    """By the deep check wherever it is; by verified reads where it is a weight that they read."""
    path, checkpoint = stored[0], str(stored[which])
    shard = shard_of(path, checkpoint)
    whole = shard.read_bytes()
    catalog = open_catalog(path)
    sound = {k: v.clone() for k, v in catalog.state_dict(checkpoint, verify=True).items()}
    messages: list[str] = []
    for at in range(0, len(whole), 37):
        flip(shard, at)
        assert [p.subject for p in catalog.check(deep=True)] == [shard.relative_to(path).as_posix()]
        try:
            state = open_catalog(path).state_dict(checkpoint, verify=True)
        except IntegrityError as exc:
            messages.append(str(exc))
        else:
            assert all(bool((state[name] == sound[name]).all()) for name in sound), at
        shard.write_bytes(whole)
    assert len(messages) > 2
    assert all("Restore" in message for message in messages)
    assert catalog.check(deep=True) == []


def test_damaged_weights_are_not_merged(stored: tuple[Path, str, str]) -> None:
    """Merging seals shards anew; damage must not be sealed with them."""
    path, checkpoint, single = stored
    with open_catalog(path) as catalog:
        (row,) = catalog.sql(
            "SELECT s.path, value_offset FROM shards AS s JOIN checkpoints USING (shard_id) WHERE checkpoint_id = ?",
            [checkpoint],
        ).to_pylist()
        flip(path / str(row["path"]), row["value_offset"] + 5)
        files = sorted((path / "weights").rglob("*.arrow"))
        with pytest.raises(
            IntegrityError, match=f"Checkpoint {checkpoint} is not what was committed"
        ):
            catalog.compact()
        assert sorted((path / "weights").rglob("*.arrow")) == files
        catalog.state_dict(single, verify=True)
    assert named(path, deep=True) == [("shard", row["path"])]


@pytest.mark.parametrize(
    "table", sorted({*table_names()} - {"artifacts", "embeddings", "lineage", "splits"})
)
def test_a_table_file_that_is_missing_cut_off_or_changed(
    stored: tuple[Path, str, str], table: str
) -> None:
    path = stored[0]
    files = sorted((path / "tables" / table).glob("*.parquet"))
    whole = files[0].read_bytes()
    expected = [("table", f"tables/{table}/{files[0].name}")]
    files[0].unlink()
    assert named(path) == expected
    with pytest.raises(CatalogError, match=files[0].name):
        open_catalog(path).sql(f"select * from {table}")
    files[0].write_bytes(whole[:-7])
    assert named(path) == expected
    for at in range(0, len(whole), max(1, len(whole) // 7)):
        files[0].write_bytes(whole)
        flip(files[0], at)
        assert named(path) == expected, at
    files[0].write_bytes(whole)
    assert named(path, deep=True) == []


def test_tables_and_weights_that_are_damaged_are_all_named(stored: tuple[Path, str, str]) -> None:
    path, checkpoint, single = stored
    shards = [shard_of(path, checkpoint), shard_of(path, single)]
    flip(shards[0], len(shards[0].read_bytes()) // 2)
    shards[1].unlink()
    (table, *_) = sorted((path / "tables" / "models").glob("*.parquet"))
    table.unlink()
    found = [("table", f"tables/models/{table.name}")]
    gone, changed = (("shard", shard.relative_to(path).as_posix()) for shard in reversed(shards))
    assert named(path) == [*found, gone]
    assert sorted(named(path, deep=True)) == sorted([*found, gone, changed])


@pytest.mark.parametrize("table", ["checkpoints", "metrics", "shards"])
def test_log_entries_that_are_missing(stored: tuple[Path, str, str], table: str) -> None:
    """In the middle and at the end, where the log merely looks shorter."""
    path = stored[0]
    entries = sorted((path / "tables" / table / "_delta_log").glob("*.json"))
    for entry in entries:
        whole = entry.read_bytes()
        entry.unlink()
        assert named(path) == [("log", f"tables/{table}/_delta_log")], entry.name
        entry.write_bytes(whole[: len(whole) // 2])
        assert named(path) == [("log", f"tables/{table}/_delta_log")], entry.name
        entry.write_bytes(whole.replace(b'"timestamp":', b'"timestamp"'))
        assert named(path) == [("log", f"tables/{table}/_delta_log")], entry.name
        entry.write_bytes(whole)
    assert named(path) == []


def test_a_log_without_its_folder(
    stored: tuple[Path, str, str], cli: Callable[..., Result]
) -> None:
    path = stored[0]
    (path / "tables" / "metrics" / "_delta_log").rename(path / "away")
    result = cli("check", "-c", path, "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)
    assert problem["subject"] == "tables/metrics/_delta_log"
    assert "Restore" in problem["message"] or "restore" in problem["message"]


def test_a_log_checkpoint_that_is_torn_is_passed_over(tmp_path: Path) -> None:
    """A power cut may leave it empty, since it is not written with the care of the log itself."""
    path = tmp_path / "catalog"
    catalog = open_catalog(path, create=True)
    for number in range(10):
        catalog.append(population(0, number), zoo="z")
    catalog.compact()
    log = path / "tables" / "checkpoints" / "_delta_log"
    (summary,) = log.glob("*.checkpoint.parquet")
    for damaged in (summary, log / "_last_checkpoint"):
        whole = damaged.read_bytes()
        for content in (b"", whole[: len(whole) // 2]):
            damaged.write_bytes(content)
            assert open_catalog(path).sql("select * from checkpoints").num_rows == 30
        damaged.write_bytes(whole)


@pytest.mark.parametrize("row", [10**6, -2])
def test_a_row_that_a_shard_does_not_have(stored: tuple[Path, str, str], row: int) -> None:
    """Tables can be wrong, too: no read may go where the file has nothing."""
    path, checkpoint, _ = stored
    with open_catalog(path) as catalog:
        (facts,) = catalog.sql(
            "SELECT * FROM checkpoints WHERE checkpoint_id = ?", [checkpoint]
        ).to_pylist()
        del facts["commit_id"]
        catalog.commit(
            "moved", {"checkpoints": [{**facts, "shard_row": row}]}, replaces=["checkpoints"]
        )
    assert named(path) == [("reference", "checkpoints.shard_row")]
    with open_catalog(path) as catalog:
        (problem,) = catalog.check()
        assert checkpoint in problem.message
        for way in (
            lambda: catalog.state_dict(checkpoint),
            lambda: catalog.population([checkpoint]).weights,
            lambda: catalog.dataset([checkpoint]).read([0]),
            lambda: catalog.sql("SELECT sum(len(weights)) FROM population_weights"),
        ):
            with pytest.raises(IntegrityError, match=r"row .* of"):
                way()


@pytest.mark.parametrize("offset", [10**9, -64])
def test_bytes_that_a_shard_does_not_have(stored: tuple[Path, str, str], offset: int) -> None:
    path, _, checkpoint = stored
    with open_catalog(path) as catalog:
        (facts, *_) = catalog.sql(
            "SELECT * FROM tensors WHERE checkpoint_id = ? AND tied_to IS NULL AND size_bytes > 0",
            [checkpoint],
        ).to_pylist()
        del facts["commit_id"]
        catalog.commit(
            "moved", {"tensors": [{**facts, "shard_offset": offset}]}, replaces=["tensors"]
        )
    assert named(path) == [("reference", "tensors.shard_offset")]
    with open_catalog(path) as catalog:
        for way in (
            lambda: catalog.reader.tensor_bytes({**facts, "shard_offset": offset}, {}),
            lambda: catalog.population([checkpoint]).weights,
            lambda: catalog.dataset([checkpoint], target=None).read([0]),
        ):
            with pytest.raises(IntegrityError, match="bytes"):
                way()
