"""Single checkpoints: every dtype bit for bit, each distinct tensor once, the same file back."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import save_file

from zooplatform.errors import CatalogError, IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
    "bool", "complex64", "complex128",
]  # fmt: skip


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor of random bits: NaN payloads and all; booleans are 0 or 1."""
    target = getattr(torch, dtype)
    size = torch.empty(0, dtype=target).element_size()
    if 0 in shape:
        return torch.empty(shape, dtype=target)
    high = 2 if dtype == "bool" else 256
    raw = np.random.default_rng(seed).integers(0, high, (*shape, size), dtype=np.uint8)
    return torch.from_numpy(raw).view(target).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def only(catalog: Catalog, ref: Path) -> str:
    report = catalog.ingest(ref)
    assert len(report.checkpoint_ids) == 1
    return report.checkpoint_ids[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(catalog: Catalog, tmp_path: Path, dtype: str) -> None:
    state = {
        "matrix": random_bits(dtype, (5, 7)),
        "scalar": random_bits(dtype, (), 1),
        "empty": random_bits(dtype, (0, 3), 2),
        "vector": random_bits(dtype, (33,), 3),
    }
    torch.save(state, tmp_path / "x.pt")
    got = catalog.state_dict(only(catalog, tmp_path / "x.pt"), verify=True)
    assert list(got) == list(state)
    for name, tensor in state.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert bits(got[name]) == bits(tensor)
    stored = catalog.sql("select name, dtype, shape from tensors order by tensor_index").to_pylist()
    assert [(r["name"], r["dtype"], tuple(r["shape"])) for r in stored] == [
        (n, dtype, tuple(t.shape)) for n, t in state.items()
    ]


def test_views_ties_and_slices_keep_their_values_and_ties(catalog: Catalog, tmp_path: Path) -> None:
    base = torch.arange(1000, dtype=torch.float32)
    shared = torch.randn(4, 4)
    state = {
        "transposed": torch.randn(6, 5).t(),
        "slice": base[10:20],
        "strided": base[::7],
        "tied.a": shared,
        "tied.b": shared,
        "equal": shared.clone(),
    }
    torch.save(state, tmp_path / "x.pt")
    checkpoint = only(catalog, tmp_path / "x.pt")
    got = catalog.state_dict(checkpoint)
    for name, tensor in state.items():
        assert torch.equal(got[name], tensor)
    assert got["tied.b"] is got["tied.a"]
    got["tied.a"].zero_()
    assert torch.equal(got["equal"], shared)
    rows = {
        r["name"]: r
        for r in catalog.sql("select name, tied_to, tensor_hash from tensors").to_pylist()
    }
    assert rows["tied.b"]["tied_to"] == "tied.a"
    assert rows["equal"]["tied_to"] is None
    assert rows["equal"]["tensor_hash"] == rows["tied.a"]["tensor_hash"]


def test_equal_tensors_are_stored_once_across_the_catalog(catalog: Catalog, tmp_path: Path) -> None:
    backbone = {f"layer{i}": torch.randn(100, 100) for i in range(5)}
    save_file(backbone | {"head": torch.randn(10, 100)}, tmp_path / "parent.safetensors")
    save_file(backbone | {"head": torch.randn(10, 100)}, tmp_path / "child.safetensors")
    first = catalog.ingest(tmp_path / "parent.safetensors")
    second = catalog.ingest(tmp_path / "child.safetensors")
    assert first.bytes_stored > 200_000
    assert second.bytes_stored < 10_000
    shared = catalog.sql(
        "select count(*) as n from (select tensor_hash from tensors group by 1"
        " having count(distinct checkpoint_id) = 2)"
    )
    assert shared.column("n").to_pylist() == [5]
    got = catalog.state_dict(second.checkpoint_ids[0], verify=True)
    assert all(torch.equal(got[name], backbone[name]) for name in backbone)


def test_a_hash_alone_does_not_make_tensors_equal(catalog: Catalog, tmp_path: Path) -> None:
    """The stored bytes are compared: where they were damaged, the tensor is stored afresh."""
    save_file({"w": torch.ones(1000)}, tmp_path / "a.safetensors")
    catalog.ingest(tmp_path / "a.safetensors")
    row = catalog.sql("select shard_offset from tensors").to_pylist()[0]
    path = catalog.path / catalog.snapshot().shards("tensors").to_pylist()[0]["path"]
    raw = bytearray(path.read_bytes())
    raw[row["shard_offset"] + 8] ^= 255
    path.write_bytes(raw)
    save_file({"w": torch.ones(1000), "v": torch.zeros(2)}, tmp_path / "b.safetensors")
    checkpoint = only(catalog, tmp_path / "b.safetensors")
    assert torch.equal(catalog.state_dict(checkpoint, verify=True)["w"], torch.ones(1000))


def test_a_safetensors_file_comes_back_as_the_same_file(catalog: Catalog, tmp_path: Path) -> None:
    state = {d: random_bits(d, (3, 4), i) for i, d in enumerate(DTYPES) if d not in ("complex128",)}
    save_file(state, tmp_path / "m.safetensors", metadata={"é": "ü", "format": "pt"})
    before = hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    checkpoint = only(catalog, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").unlink()
    out = catalog.export(checkpoint, tmp_path / "out" / "again.safetensors")
    assert hashlib.sha256(out.read_bytes()).hexdigest() == before


def test_a_torch_file_is_exported_as_safetensors_that_others_read(
    catalog: Catalog, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    shared = torch.randn(3, 3)
    state = {"a": shared, "b": shared, "c": torch.randn(2, 5).t(), "n": torch.tensor(7)}
    torch.save(state, tmp_path / "x.pt")
    out = catalog.export(only(catalog, tmp_path / "x.pt"), tmp_path / "x.safetensors")
    got = load_file(out)
    assert all(torch.equal(got[name], state[name]) for name in state)


def test_what_safetensors_cannot_hold_is_said(catalog: Catalog, tmp_path: Path) -> None:
    torch.save({"z": torch.ones(2, dtype=torch.complex128)}, tmp_path / "x.pt")
    checkpoint = only(catalog, tmp_path / "x.pt")
    with pytest.raises(CatalogError, match="'z' is complex128, which safetensors cannot hold"):
        catalog.export(checkpoint, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_sharded_set_comes_back_file_by_file(catalog: Catalog, tmp_path: Path) -> None:
    """The index too, which is written as its author wrote it, in their order and with their spaces."""
    came = tmp_path / "came"
    came.mkdir()
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, came / "net-1.safetensors")
    save_file({"c": torch.arange(3)}, came / "net-2.safetensors")
    homes = {"c": "net-2.safetensors", "a": "net-1.safetensors", "b": "net-1.safetensors"}
    text = json.dumps({"weight_map": homes, "metadata": {"total_size": 44, "by": "me"}}, indent=1)
    (came / "net.safetensors.index.json").write_text(text)
    (checkpoint,) = catalog.ingest(came).checkpoint_ids
    folder = catalog.export(checkpoint, tmp_path / "back")
    names = sorted(file.name for file in came.iterdir())
    assert sorted(file.name for file in folder.iterdir()) == names
    assert [(folder / n).read_bytes() for n in names] == [(came / n).read_bytes() for n in names]


def test_damage_is_found_on_export_and_leaves_no_file(catalog: Catalog, tmp_path: Path) -> None:
    save_file({"w": torch.randn(1000)}, tmp_path / "a.safetensors")
    checkpoint = only(catalog, tmp_path / "a.safetensors")
    path = catalog.path / catalog.snapshot().shards("tensors").to_pylist()[0]["path"]
    offset = catalog.sql("select shard_offset as o from tensors").column("o")[0].as_py()
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="differ from the file that was ingested"):
        catalog.export(checkpoint, tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "catalog"]
    with pytest.raises(IntegrityError, match="Tensor 'w'"):
        catalog.state_dict(checkpoint, verify=True)
    path.write_bytes(raw[:100])
    with pytest.raises(IntegrityError, match="missing or truncated"):
        catalog.state_dict(checkpoint)


def test_a_header_is_filled_in_by_a_later_ingest(catalog: Catalog, tmp_path: Path) -> None:
    save_file({"w": torch.randn(10, 3), "b": torch.randn(3)}, tmp_path / "a.safetensors")
    report = catalog.ingest(tmp_path / "a.safetensors", header_only=True)
    (checkpoint,) = report.checkpoint_ids
    assert report.bytes_stored == 0
    assert catalog.sql("select state from checkpoints").column("state").to_pylist() == [
        "header-only"
    ]
    assert catalog.sql("select count(*) as n from tensors").column("n").to_pylist() == [2]
    with pytest.raises(CatalogError, match="only its header was ingested"):
        catalog.state_dict(checkpoint)
    assert catalog.ingest(tmp_path / "a.safetensors", header_only=True).skipped
    assert catalog.ingest(tmp_path / "a.safetensors").checkpoint_ids == (checkpoint,)
    assert catalog.sql("select state from checkpoints").column("state").to_pylist() == ["stored"]
    assert catalog.sql("select count(*) as n from tensors where tensor_hash is not null").column(
        "n"
    ).to_pylist() == [2]
    assert catalog.state_dict(checkpoint, verify=True)["w"].shape == (10, 3)
    assert catalog.ingest(tmp_path / "a.safetensors").skipped
    assert catalog.compact()
    assert catalog.sql("select state from checkpoints").column("state").to_pylist() == ["stored"]
    assert catalog.state_dict(checkpoint, verify=True)["w"].shape == (10, 3)


def test_what_is_known_by_its_revision_is_not_opened_again(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"w": torch.randn(10, 3)}, tmp_path / "a.safetensors")
    catalog.ingest(tmp_path / "a.safetensors", header_only=True)
    first = catalog.ingest(tmp_path / "a.safetensors")
    opened = []
    monkeypatch.setattr(type(catalog), "write_checkpoint", lambda *_, **__: opened.append(1))
    again = catalog.ingest(tmp_path / "a.safetensors")
    assert not opened
    assert again.checkpoint_ids == first.checkpoint_ids
    assert again.skipped == ((f"local:{tmp_path / 'a.safetensors'}", "already in the catalog"),)


def test_thousands_of_tensors_need_few_open_files(catalog: Catalog, tmp_path: Path) -> None:
    state = {f"layer.{i}.weight": torch.full((3,), float(i)) for i in range(3000)}
    save_file(state, tmp_path / "many.safetensors")
    got = catalog.state_dict(only(catalog, tmp_path / "many.safetensors"), verify=True)
    assert all(torch.equal(got[name], state[name]) for name in state)


def test_tensors_made_to_collide_inside_one_checkpoint_stay_apart(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash that anybody can make collisions for must not decide alone what is equal."""
    from zooplatform.catalog import tensor_writer

    class Colliding:
        """xxh3 as two tensors see it that were made to collide: the same hash, unless it is seeded."""

        xxh3_128_hexdigest = staticmethod(xxhash.xxh3_128_hexdigest)

        xxh3_128 = staticmethod(lambda *_: xxhash.xxh3_128(b"collision"))

    monkeypatch.setattr(tensor_writer, "xxhash", Colliding)
    save_file({"a": torch.ones(100), "b": torch.zeros(100)}, tmp_path / "m.safetensors")
    checkpoint = only(catalog, tmp_path / "m.safetensors")
    got = catalog.state_dict(checkpoint)
    assert torch.equal(got["a"], torch.ones(100))
    assert torch.equal(got["b"], torch.zeros(100))
