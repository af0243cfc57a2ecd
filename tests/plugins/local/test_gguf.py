"""GGUF files, against what the gguf library writes and reads."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

if TYPE_CHECKING:
    from pathlib import Path

TYPES = sorted(gguf.GGML_QUANT_SIZES, key=lambda kind: kind.name)
PLAIN = {"F32", "F16", "F64", "BF16", "I8", "I16", "I32", "I64"}


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_type(kind: gguf.GGMLQuantizationType, tmp_path: Path, read) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(4).integers(0, 256, (3, 2 * size)).astype(np.uint8)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("some.number", 7)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("some.floats", [1.0, 2.0])
    writer.add_bool("some.flag", True)
    writer.add_tensor("blk.0.w", raw, raw_dtype=kind)
    writer.add_tensor("norm", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint, values = read(path)
    spec = checkpoint.header.tensors[0]
    assert spec.shape == (3, 2 * block)
    assert spec.dtype.startswith("gguf.") == (kind.name not in PLAIN)
    assert spec.dtype.removeprefix("gguf.")[:2] == kind.name.lower()[:2] or kind.name in PLAIN
    assert values["blk.0.w"] == raw.tobytes()
    assert values["norm"] == np.ones(5, "<f4").tobytes()
    metadata = checkpoint.header.metadata
    assert metadata["general.architecture"] == "llama"
    assert (metadata["some.number"], metadata["some.flag"]) == ("7", "true")
    assert (metadata["tokenizer.ggml.tokens"], metadata["some.floats"]) == (
        "array of 3",
        "array of 2",
    )
    library = {
        tensor.name: bytes(tensor.data.tobytes()) for tensor in gguf.GGUFReader(path).tensors
    }
    assert values == library


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def tensor(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def padded(data: bytes, more: bytes) -> bytes:
    return data + bytes(-len(data) % 32) + more


def test_the_crafted_file_is_right_when_it_is_honest(tmp_path: Path, read) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(padded(head(1, 0) + tensor(b"w", (2, 1), 0, 0), bytes(range(8))))
    checkpoint, values = read(path)
    assert values == {"w": bytes(range(8))}
    assert checkpoint.header.tensors[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (head(2**60, 0), "claims 1,152,921,504,606,846,976 entries"),
        (head(0, 2**60), "claims 1,152,921,504,606,846,976 entries"),
        (
            head(0, 1) + struct.pack("<Q", 2**60) + bytes(40),
            "claims 1,152,921,504,606,846,976 entries",
        ),
        (head(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 4, 2**60) + bytes(40), "more than its"),
        (head(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(40), "more than its"),
        (
            head(0, 1)
            + text(b"k")
            + struct.pack("<I", 9)
            + struct.pack("<IQ", 9, 1) * 9
            + bytes(40),
            "unknown type 9",
        ),
        (head(0, 1) + text(b"k") + struct.pack("<I", 99) + bytes(40), "unknown type 99"),
        (head(0, 2) + (text(b"k") + struct.pack("<II", 4, 1)) * 2, "names 'k' twice"),
        (head(0, 1) + text(b"\xff") + bytes(40), "not UTF-8"),
        (head(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 0), "alignment '0'"),
        (
            head(1, 0) + text(b"w") + struct.pack("<I", 2**31),
            "17 dimensions|2147483648 dimensions|dimensions",
        ),
        (padded(head(1, 0) + tensor(b"w", (2**62,), 0, 0), bytes(8)), "beyond 2^48"),
        (padded(head(1, 0) + tensor(b"w", (2**40,), 0, 0), bytes(8)), "truncated"),
        (padded(head(1, 0) + tensor(b"w", (3,), 0, 0), bytes(8)), "truncated"),
        (padded(head(1, 0) + tensor(b"w", (2,), 0, 2**62), bytes(8)), "truncated"),
        (padded(head(1, 0) + tensor(b"w", (2,), 0, 3), bytes(80)), "not aligned"),
        (
            padded(head(2, 0) + tensor(b"w", (16,), 0, 0) + tensor(b"v", (2,), 0, 32), bytes(80)),
            "overlaps",
        ),
        (
            padded(head(2, 0) + tensor(b"w", (2,), 0, 0) * 2, bytes(80)),
            "names the tensor 'w' twice",
        ),
        (padded(head(1, 0) + tensor(b"w", (33,), 2, 0), bytes(80)), "not whole blocks of 32"),
        (padded(head(1, 0) + tensor(b"w", (2,), 999, 0), bytes(80)), "unknown type 999"),
        (head(0, 0, version=1), "GGUF version 1"),
        (b"FUGG" + bytes(20), "big-endian"),
        (b"GGUF", "truncated or damaged"),
    ],
)
def test_refused(content: bytes, reason: str, tmp_path: Path, refusal) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    found = refusal(tmp_path / "m.gguf")
    assert any(part in found for part in reason.split("|")), found
