"""numpy files that are refused."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    raw = header.encode("latin1")
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + len(raw).to_bytes(2 if version == 1 else 4, "little")
        + raw
        + data
    )


def fields(descr: object = "<f4", order: object = False, shape: object = (2,)) -> str:
    return repr({"descr": descr, "fortran_order": order, "shape": shape})


def test_the_crafted_header_is_right_when_it_is_honest(tmp_path: Path, read) -> None:
    for version in (1, 2, 3):
        (tmp_path / "w.npy").write_bytes(npy(fields(), b"\1" * 8, version))
        assert read(tmp_path / "w.npy")[1] == {"arr_0": b"\1" * 8}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (npy(fields("|O"), b"\x80\x04N."), "holds Python objects"),
        (npy(fields(shape=(3,)), bytes(8)), "needs"),
        (npy(fields(shape=(1,)), bytes(8)), "needs"),
        (npy(fields(shape=(2**62,)), bytes(8)), "beyond 2^48"),
        (npy(fields(shape=(0, 2**62)), b""), "beyond 2^48"),
        (npy(fields(shape=(-2,)), bytes(8)), "not a whole number"),
        (npy(fields(shape=(True, 2)), bytes(8)), "not a whole number"),
        (npy(fields(shape=[2]), bytes(8)), "no tuple"),
        (npy(fields(shape=(1,) * 20), bytes(4)), "20 dimensions"),
        (npy(fields("<f16"), bytes(32)), "torch does not know"),
        (npy(fields("<U2"), bytes(16)), "torch does not know"),
        (npy(fields("<M8[s]"), bytes(16)), "torch does not know"),
        (npy(fields("|V2"), bytes(4)), "numpy has lost their type"),
        (npy(fields([("a", "<f4")]), bytes(8)), "structured array"),
        (npy(fields("nonsense"), bytes(8)), "unknown dtype"),
        (npy("__import__('os').system('touch /tmp/x')"), "no table of plain values"),
        (npy("(" * 5000), "no table of plain values"),
        (npy("{'descr': '<f4'}"), "without descr, fortran_order and shape"),
        (npy(fields(), bytes(8), version=9), "known version"),
        (b"\x93NUMPY\x01\x00\xff\xff", "header of 65,535 bytes"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", "header of 2,147,483,647 bytes"),
    ],
)
def test_refused(content: bytes, text: str, tmp_path: Path, refusal) -> None:
    (tmp_path / "w.npy").write_bytes(content)
    assert text in refusal(tmp_path / "w.npy")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", content)
    assert text in refusal(tmp_path / "w.npz")


def test_objects_written_by_numpy(tmp_path: Path, refusal) -> None:
    np.save(tmp_path / "w.npy", np.array([{"a": 1}], dtype=object))
    assert "holds Python objects" in refusal(tmp_path / "w.npy")


def test_a_zip_bomb(tmp_path: Path, refusal) -> None:
    np.savez_compressed(tmp_path / "w.npz", w=np.zeros(50_000_000, "<f4"))
    assert (tmp_path / "w.npz").stat().st_size < 1 << 20
    assert "more than 100 times" in refusal(tmp_path / "w.npz")


def test_a_member_that_lies_about_its_size(tmp_path: Path, refusal) -> None:
    path = tmp_path / "w.npz"
    np.savez_compressed(path, w=np.arange(1000, dtype="<f4"))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    stated = int.from_bytes(data[at : at + 4], "little")
    data[at : at + 4] = (stated - 4).to_bytes(4, "little")
    path.write_bytes(data)
    assert refusal(path)


def test_a_flipped_bit(tmp_path: Path, refusal) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, w=np.full(100, 7.0))
    data = bytearray(path.read_bytes())
    data[data.index(np.float64(7).tobytes()) + 6] ^= 1
    path.write_bytes(data)
    assert "Bad CRC" in refusal(path)


def test_a_member_that_is_no_array(tmp_path: Path, refusal) -> None:
    np.savez(tmp_path / "w.npz", w=np.ones(1))
    with zipfile.ZipFile(tmp_path / "w.npz", "a") as archive:
        archive.writestr("run.py", "import os")
    assert "'run.py' is no array" in refusal(tmp_path / "w.npz")


def test_no_arrays(tmp_path: Path, refusal) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w"):
        pass
    assert "neither torch nor numpy" in refusal(tmp_path / "w.npz")


def test_an_encrypted_member(tmp_path: Path, refusal) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, w=np.ones(1))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refusal(path)
