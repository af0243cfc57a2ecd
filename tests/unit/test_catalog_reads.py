"""What is read when one thing is asked for, and what a copy costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zooplatform.catalog import open_catalog
from zooplatform.catalog import population as population_module
from zooplatform.catalog import snapshot as snapshot_module
from zooplatform.errors import IntegrityError, UnknownIdError
from zooplatform.interfaces import CheckpointRecord, ModelInfo, PopulationBatch, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog

WIDTH = 12


def append(catalog: Catalog, count: int, prefix: str, width: int = WIDTH) -> tuple[str, ...]:
    weights = np.random.default_rng(len(prefix)).standard_normal((count, width), dtype=np.float32)
    records = [
        CheckpointRecord(model=ModelInfo(key=f"{prefix} {n}", name=prefix, source="test"), step=1)
        for n in range(count)
    ]
    layout = (TensorSpec("weight", "float32", (width,), 4 * width),)
    return catalog.append(PopulationBatch(layout=layout, weights=weights, rows=records), zoo="z")


def test_a_point_lookup_reads_one_file_of_each_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_catalog(tmp_path / "zoo", create=True) as catalog:
        ids = [append(catalog, 5, f"batch {number}") for number in range(12)]
        expected = catalog.state_dict(ids[7][3])["weight"].clone()
    read: list[str] = []
    original = snapshot_module.read_file

    def noting(path: str, columns: list[str] | None) -> object:
        read.append(path.split("/tables/")[1].split("/")[0])
        return original(path, columns)

    monkeypatch.setattr(snapshot_module, "read_file", noting)
    with open_catalog(tmp_path / "zoo") as catalog:
        assert torch.equal(catalog.state_dict(ids[7][3])["weight"], expected)
    # A filter lets three keys of a thousand through, so one more file is a rare chance.
    assert read.count("checkpoints") <= 2
    assert read.count("shards") <= 2
    assert read.count("commits") == 0


def test_the_next_snapshot_reads_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_catalog(tmp_path / "zoo", create=True) as catalog:
        for number in range(4):
            append(catalog, 2, f"batch {number}")
        assert len(catalog.population()) == 8
        read: list[str] = []
        original = snapshot_module.read_file

        def noting(path: str, columns: list[str] | None) -> object:
            read.append(path)
            return original(path, columns)

        append(catalog, 2, "one more")
        monkeypatch.setattr(snapshot_module, "read_file", noting)
        assert len(catalog.population()) == 10
        assert len([path for path in read if "/checkpoints/" in path]) == 1


def test_long_and_short_reads_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population_module, "_READ_BYTES", 1)
    monkeypatch.setattr(population_module, "_WINDOW", 4096)
    with open_catalog(tmp_path / "zoo", create=True) as catalog:
        append(catalog, 40, "first", width=301)
        append(catalog, 30, "second", width=301)
        population = catalog.population()
        everything = population.weights.numpy()
        for rows in (np.arange(70), np.arange(3, 38), np.array([69, 0, 41, 40]), np.arange(39, 42)):
            assert np.array_equal(population.read(rows), everything[rows])
        assert population.read(np.array([], dtype=np.int64)).shape == (0, 301)


def test_a_long_read_of_a_cut_shard_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population_module, "_READ_BYTES", 1)
    with open_catalog(tmp_path / "zoo", create=True) as catalog:
        append(catalog, 40, "first", width=301)
        population = catalog.population()
        (shard,) = (tmp_path / "zoo/weights/population").rglob("*.arrow")
        with shard.open("r+b") as handle:
            handle.truncate(9000)
        with pytest.raises(IntegrityError, match=r"truncated .*Restore it from a copy"):
            population.read(np.arange(40))


def test_one_tensor_of_both_kinds_of_checkpoint(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file(state, tmp_path / "model.safetensors")
    with open_catalog(tmp_path / "zoo", create=True) as catalog:
        (single,) = catalog.ingest(tmp_path / "model.safetensors").checkpoint_ids
        row = append(catalog, 3, "rows")[1]
        for name, tensor in state.items():
            assert torch.equal(catalog.tensor(single, name), tensor)
            assert torch.equal(catalog.tensor(single, name, verify=True), tensor)
        assert torch.equal(catalog.tensor(row, "weight"), catalog.state_dict(row)["weight"])
        for checkpoint in (single, row):
            with pytest.raises(UnknownIdError, match=r"'c'.*Checkpoint"):
                catalog.tensor(checkpoint, "c")
