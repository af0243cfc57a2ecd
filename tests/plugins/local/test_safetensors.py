"""safetensors files: what is refused, what is kept with a note, and sharded sets."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from zooplatform.errors import SourceError
from zooplatform.formats import open_reader
from zooplatform.formats.safetensors import MAX_HEADER_BYTES, header_length, parse_header

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def pack(
    header: str | bytes | dict[str, Any], data: bytes = b"", length: int | None = None
) -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def two(a: object, b: object, data: int = 16) -> bytes:
    return pack(
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": a},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": b},
        },
        bytes(data),
    )


def one(**changes: object) -> bytes:
    return pack({"w": {**F32, **changes}}, bytes(8))


WHOLE = pack({"w": F32}, bytes(8))
BAD = {
    "no-header": (b"\x00\x01", "in no known format|truncated"),
    "header-longer-than-file": (
        pack({"w": F32}, bytes(8), 10_000),
        "truncated: the header needs 10,008 bytes",
    ),
    "header-over-the-limit": (
        pack({"w": F32}, bytes(8), MAX_HEADER_BYTES + 1),
        "claims 100,000,001 bytes",
    ),
    "truncated-data": (WHOLE[:-1], "truncated"),
    "trailing-bytes": (WHOLE + b"PK\x05\x06" + bytes(18), "belong to no tensor"),
    "not-utf8": (pack(b'{"\xff": 1}'), "not valid JSON"),
    "not-json": (pack("{'w': 1}"), "not valid JSON"),
    "deep-nesting": (pack('{"w":' + "[" * 200_000), "not valid JSON"),
    "same-name-twice": (
        pack(f'{{"w":{json.dumps(F32)},"w":{json.dumps(F32)}}}', bytes(8)),
        "names 'w' twice",
    ),
    "same-key-twice": (
        pack('{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "names 'dtype' twice",
    ),
    "4096-dims": (one(shape=[1] * 4095 + [2]), "has 4096 dimensions; at most 16"),
    "huge-dim": (one(shape=[0, 2**62], data_offsets=[0, 0]), "beyond 2\\^48 elements"),
    "huge-number": (
        pack('{"w":{"dtype":"F32","shape":[1' + "0" * 5000 + '],"data_offsets":[0,8]}}'),
        "not valid JSON",
    ),
    "negative-dim": (one(shape=[-2]), "not a whole number >= 0"),
    "float-dim": (one(shape=[2.0]), "not a whole number >= 0"),
    "bool-dim": (one(shape=[True, 2]), "not a whole number >= 0"),
    "overlap": (two([0, 8], [4, 12], 12), "overlaps another tensor"),
    "shared-range": (two([0, 8], [0, 8], 8), "overlaps another tensor"),
    "hole": (two([0, 8], [12, 20], 20), "leaves a hole of 4 bytes"),
    "hole-at-start": (one(data_offsets=[8, 16]) + bytes(8), "leaves a hole of 8 bytes"),
    "reversed-offsets": (one(data_offsets=[8, 0]), "two rising whole numbers"),
    "negative-offset": (one(data_offsets=[-8, 0]), "two rising whole numbers"),
    "float-offset": (one(data_offsets=[0, 8.0]), "two rising whole numbers"),
    "three-offsets": (one(data_offsets=[0, 4, 8]), "two rising whole numbers"),
    "shape-mismatch": (one(shape=[3]), "has 8 bytes, but shape \\[3\\] of F32 needs 12"),
    "unknown-dtype": (one(dtype="I4"), "unknown dtype 'I4'"),
    "dtype-no-text": (one(dtype=["F32"]), "unknown dtype"),
    "missing-field": (
        pack({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        "not described by exactly",
    ),
    "extra-field": (one(stride=[1]), "not described by exactly"),
    "metadata-no-strings": (
        pack({"__metadata__": {"a": 1}, "w": F32}, bytes(8)),
        "not a table of strings",
    ),
    "lone-surrogate": (pack(f'{{"\\ud800":{json.dumps(F32)}}}', bytes(8)), "not valid Unicode"),
    "half-a-byte": (
        pack({"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, bytes(2)),
        "needs 1.5",
    ),
    "empty": (b"", "It is empty"),
    "lfs-pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
        "git lfs pull",
    ),
    "html": (b"<!DOCTYPE html><html>Sign in</html>", "HTML or XML page"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str, tmp_path: Path, refusal) -> None:
    content, text = BAD[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    found = refusal(path)
    assert re.search(text, found), found


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("../../etc/passwd", "path parts"),
        ("a\0b", "control characters"),
        ("\x1b[31mred", "control characters"),
        ("", "no character"),
        ("n" * 100_000, "more than 1,024 characters"),
        ("'; DROP TABLE models; --", ""),
    ],
)
def test_odd_names_are_kept_with_a_note(name: str, note: str, tmp_path: Path, read) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack({name: F32}, bytes(8)))
    checkpoint, values = read(path)
    assert list(values) == [name]
    assert note in " ".join(checkpoint.header.notes)
    assert bool(checkpoint.header.notes) == bool(note)


def test_names_that_look_the_same_are_both_kept(tmp_path: Path, read) -> None:
    path = tmp_path / "m.safetensors"
    second = {**F32, "data_offsets": [8, 16]}
    path.write_bytes(pack({"\u00e9": F32, "e\u0301": second}, bytes(16)))
    checkpoint, values = read(path)
    assert len(values) == 2
    assert "look the same" in checkpoint.header.notes[0]


def test_header_bytes_order_and_hash_are_kept(tmp_path: Path, read) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.int64)}, path, {"format": "pt"})
    checkpoint, _ = read(path)
    (file,) = checkpoint.files
    assert checkpoint.header.metadata == {"format": "pt"}
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.info.revision == f"sha256:{file.sha256}"
    # safetensors puts wide types first
    assert file.tensors == ("a", "b")


def test_content_decides_and_not_the_suffix(tmp_path: Path, read) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(WHOLE)
    assert read(path)[0].header.format == "safetensors"


def test_50_000_tensors_parse_quickly(tmp_path: Path) -> None:
    header = {
        f"layer.{i}.weight": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i in range(50_000)
    }
    raw = pack(header, bytes(50_000))
    assert len(parse_header(raw, len(raw), "x").tensors) == 50_000


def test_the_parser_works_on_a_prefix() -> None:
    prefix = WHOLE[: header_length(WHOLE[:8], len(WHOLE), "x")]
    parsed = parse_header(prefix, len(WHOLE), "x")
    assert parsed.raw == prefix
    assert parsed.offsets == {"w": len(prefix)}
    with pytest.raises(SourceError, match="bytes are needed"):
        parse_header(prefix[:20], len(WHOLE), "x")


@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 3), max_size=4), max_size=6))
def test_what_the_library_writes_is_read(shapes: dict[str, list[int]]) -> None:
    shapes.pop("__metadata__", None)
    raw = save({name: torch.zeros(shape) for name, shape in shapes.items()})
    parsed = parse_header(raw, len(raw), "x")
    assert {spec.name: list(spec.shape) for spec in parsed.tensors} == shapes


# --- sharded sets ----------------------------------------------------------------------------------------------------


def write_set(folder: Path, **changes: Any) -> Path:
    """Two shards and their index, whose fields `changes` replaces."""
    folder.mkdir(exist_ok=True)
    save_file(
        {"a": torch.ones(2), "b": torch.zeros(2)}, folder / "model-00001-of-00002.safetensors"
    )
    save_file({"c": torch.arange(3)}, folder / "model-00002-of-00002.safetensors")
    index = {
        "metadata": {"total_size": 40},
        "weight_map": {
            "c": "model-00002-of-00002.safetensors",
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
        },
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index | changes))
    return path


def test_sharded(tmp_path: Path, read) -> None:
    path = write_set(tmp_path / "set")
    checkpoint, values = read(path)
    assert list(values) == ["c", "a", "b"]
    assert values["a"] == torch.ones(2).numpy().tobytes()
    assert [f.path for f in checkpoint.files] == [
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
    ]
    assert all(f.sha256 for f in checkpoint.files)
    assert checkpoint.header.notes == ()
    # The folder names the set once.
    assert read(path.parent)[0].info.revision == checkpoint.info.revision


def test_sharded_torch_files(tmp_path: Path, read) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00001.bin")
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}))
    assert read(path)[1] == {"a": torch.ones(2).numpy().tobytes()}


def test_a_wrong_total_is_noted(tmp_path: Path, read) -> None:
    checkpoint, _ = read(write_set(tmp_path, metadata={"total_size": 4}))
    assert checkpoint.header.notes == ("the index claims 4 bytes, the shards hold 40",)


def test_a_missing_shard_is_named(tmp_path: Path, refusal) -> None:
    path = write_set(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "The shard model-00002-of-00002.safetensors is missing" in refusal(path)


def test_what_is_there_of_a_broken_set_is_no_checkpoint(tmp_path: Path, catalog) -> None:
    """The names of shards need not be like that of the index."""
    write_set(tmp_path, weight_map={"a": "first.safetensors", "b": "second.safetensors"})
    (tmp_path / "model-00001-of-00002.safetensors").rename(tmp_path / "first.safetensors")
    with pytest.raises(SourceError, match=r"The shard second\.safetensors is missing"):
        catalog.ingest(tmp_path)
    assert catalog.sql("select * from models").num_rows == 0


@pytest.mark.parametrize(
    "shard",
    [
        "../ok/model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "x\0y",
        "C:\\x",
        3,
        None,
    ],
)
def test_shard_names_are_plain(shard: object, tmp_path: Path, refusal) -> None:
    (tmp_path / "ok").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "ok" / "model.safetensors")
    path = write_set(tmp_path / "set", weight_map={"a": shard})
    assert "not a plain file name" in refusal(path)


def test_a_shard_that_is_a_link_out_of_the_folder(tmp_path: Path, refusal) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    path = write_set(tmp_path / "set", weight_map={"a": "shard.safetensors"})
    (tmp_path / "set" / "shard.safetensors").symlink_to(tmp_path / "secret.safetensors")
    assert "a link out of" in refusal(path)


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path, read) -> None:
    blobs, snapshot = (
        tmp_path / "models--a--b" / "blobs",
        tmp_path / "models--a--b" / "snapshots" / "0123",
    )
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write_set(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert list(read(snapshot / "model.safetensors.index.json")[1]) == ["c", "a", "b"]


def test_one_tensor_in_two_shards(tmp_path: Path, refusal) -> None:
    path = write_set(tmp_path)
    save_file(
        {"c": torch.arange(3), "a": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors"
    )
    assert (
        "Tensor 'a' is in model-00002-of-00002.safetensors, but the index puts it into model-00001"
        in refusal(path)
    )


def test_a_tensor_that_the_index_does_not_name(tmp_path: Path, refusal) -> None:
    path = write_set(tmp_path)
    save_file(
        {"c": torch.arange(3), "new": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors"
    )
    assert "the index does not name it" in refusal(path)


def test_a_tensor_that_no_shard_holds(tmp_path: Path, refusal) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    path = write_set(tmp_path, weight_map=shards | {"z": "model-00001-of-00002.safetensors"})
    assert "first 'z' in model-00001" in refusal(path)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a":"x","a":"y"}}']
)
def test_a_broken_index(text: str, tmp_path: Path, refusal) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    assert "index" in refusal(path)


def test_a_refused_file_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(WHOLE[:-1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(SourceError):
            open_reader(path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
