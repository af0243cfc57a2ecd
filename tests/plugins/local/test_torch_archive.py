"""torch files whose archive is damaged, or no archive of torch."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from torch_archives import rewrite

if TYPE_CHECKING:
    from pathlib import Path


def test_two_pickles(plain: Path, refusal) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(plain, "a") as archive:
        archive.writestr("plain/data.pkl", b"\x80\x02}.")
    assert "holds 'plain/data.pkl' twice" in refusal(plain)


def test_two_pickles_in_two_folders(plain: Path, refusal) -> None:
    with zipfile.ZipFile(plain, "a") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    assert "2 pickles named data.pkl" in refusal(plain)


def test_a_flipped_bit(plain: Path, refusal) -> None:
    data = bytearray(plain.read_bytes())
    at = data.index(struct.pack("<f", 3.0))
    data[at] ^= 1
    plain.write_bytes(data)
    assert "checksum of its member 'plain/data/0' is wrong" in refusal(plain)


def test_compressed_members(plain: Path, refusal) -> None:
    path = rewrite(
        plain, plain.parent / "d.pt", lambda name, data: data, compression=zipfile.ZIP_DEFLATED
    )
    assert "compressed, which torch never does" in refusal(path)


def test_a_zip_bomb(plain: Path, refusal) -> None:
    path = rewrite(
        plain,
        plain.parent / "bomb.pt",
        lambda name, data: bytes(200 << 20) if name == "data/0" else data,
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refusal(path)


def test_a_missing_storage(plain: Path, refusal) -> None:
    path = rewrite(
        plain, plain.parent / "m.pt", lambda name, data: None if name == "data/0" else data
    )
    assert "data/0 is missing" in refusal(path)


def test_big_endian(plain: Path, refusal) -> None:
    path = rewrite(
        plain, plain.parent / "b.pt", lambda name, data: b"big" if name == "byteorder" else data
    )
    assert "byte order 'big'" in refusal(path)


@pytest.mark.parametrize("cut", [10, 100, 500, -1, -30])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated(legacy: bool, cut: int, tmp_path: Path, refusal) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(100)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:cut])
    assert refusal(path)


def test_bytes_behind_a_legacy_file(tmp_path: Path, refusal) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + b"more")
    assert "followed by bytes that belong to no tensor" in refusal(path)


def test_a_wrong_count_in_a_legacy_file(tmp_path: Path, refusal) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[:-20] + struct.pack("<q", 2**40) + data[-12:])
    assert "does not have its 3 elements" in refusal(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\x1f\x8b\x08" + bytes(50), "It is compressed"),
        (b"<?xml version='1.0'?><Error/>", "HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(257) + b"ustar\0" + bytes(300), "tar archive"),
        (b"PK\x03\x04" + bytes(100), "broken zip archive"),
        (b"hello, world", "no known format"),
        (b"", "It is empty"),
    ],
)
def test_other_things_named_bin(content: bytes, text: str, tmp_path: Path, refusal) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    assert text in refusal(path)
