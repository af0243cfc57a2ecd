"""Weight files: what is sealed is what was given, aligned, and Arrow reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from zooplatform.catalog.shards import (
    ALIGNMENT,
    BATCH_BYTES,
    TensorShardWriter,
    seal_population,
    tensor_batches,
)
from zooplatform.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("aside_bytes", [0, 13])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (257, 33)])
def test_a_population_shard_is_aligned_and_is_what_was_given(
    tmp_path: Path, dtype: str, aside_bytes: int, rows: int, width: int
) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((rows, width)).astype(dtype)
    aside = rng.integers(0, 256, (rows, aside_bytes), dtype=np.uint8) if aside_bytes else None
    ids = [f"ü{'x' * (i % 5)}{i}" for i in range(rows)]
    sealed = seal_population(
        tmp_path / "tmp" / "a", tmp_path / "w" / "a.arrow", ids, weights, aside
    )
    assert sealed.value_offset is not None
    assert sealed.value_offset % ALIGNMENT == 0
    mapped = np.memmap(
        sealed.path, mode="r", dtype=dtype, offset=sealed.value_offset, shape=(rows, width)
    )
    assert mapped.tobytes() == weights.tobytes()
    batch = pa.ipc.open_file(sealed.path).get_batch(0)
    assert batch.column("checkpoint_id").to_pylist() == ids
    assert batch.schema.field("weights").type == pa.list_(
        pa.field("item", pa.from_numpy_dtype(dtype), nullable=False), width
    )
    if aside is not None:
        assert sealed.aside_offset is not None
        kept = np.memmap(
            sealed.path, mode="r", dtype=np.uint8, offset=sealed.aside_offset, shape=aside.shape
        )
        assert kept.tobytes() == aside.tobytes()
    assert xxhash.xxh3_128_hexdigest(sealed.path.read_bytes()) == sealed.checksum
    assert not list((tmp_path / "tmp").iterdir())


def test_population_weights_must_be_a_plain_float_matrix(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="C-contiguous float16"):
        seal_population(tmp_path / "a", tmp_path / "b", ["i"], np.zeros((1, 3), dtype=np.int64))
    with pytest.raises(CatalogError, match="C-contiguous float16"):
        seal_population(
            tmp_path / "a", tmp_path / "b", ["i"] * 3, np.zeros((2, 3), dtype=np.float32).T
        )


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 200_000), max_size=40), seed=st.integers(0, 9))
def test_tensors_of_any_size_lie_where_the_writer_says(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    _check(folder, sizes, seed)


def test_tensors_larger_than_a_batch_are_batches_of_their_own(tmp_path: Path) -> None:
    _check(tmp_path, [10, BATCH_BYTES + 1, 64, BATCH_BYTES - 1, 5, 2 * BATCH_BYTES], 0)


def _check(folder: Path, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    writer = TensorShardWriter(folder / "tmp" / "t")
    places = []
    for number, value in enumerate(values):
        places += writer.add(number.to_bytes(16, "big"), "uint8", (len(value),), memoryview(value))
    sealed, last = writer.seal(folder / "t.arrow")
    places += last
    if not values:
        assert sealed is None
        assert not (folder / "t.arrow").exists()
        return
    assert sealed is not None
    raw = np.memmap(sealed.path, mode="r", dtype=np.uint8)
    assert [p.row for p in places] == list(range(len(values)))
    for value, place in zip(values, places, strict=True):
        assert place.offset % ALIGNMENT == 0
        assert raw[place.offset : place.offset + len(value)].tobytes() == value.tobytes()
    number = 0
    for batch in tensor_batches(sealed.path):
        for row in batch.to_pylist():
            assert row["tensor_hash"] == number.to_bytes(16, "big")
            assert row["size_bytes"] == len(values[number])
            assert row["data"][: row["size_bytes"]] == values[number].tobytes()
            number += 1
    assert number == len(values)


def test_giving_up_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = TensorShardWriter(tmp_path / "t")
    data = memoryview(bytearray(BATCH_BYTES))
    writer.add(bytes(16), "uint8", (BATCH_BYTES,), data)
    assert (tmp_path / "t").exists()
    writer.discard()
    assert not list(tmp_path.iterdir())
