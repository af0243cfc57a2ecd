"""HDF5 weights: only numbers that the file itself holds."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from zooplatform.formats.hdf5_file import Hdf5Reader

h5py = pytest.importorskip("h5py")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.h5"


@pytest.mark.parametrize(
    "code",
    ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", ">f8", ">f4", ">i2", "?"],
)
def test_every_type(code: str, path: Path, read) -> None:
    kind = np.dtype(code)
    raw = np.random.default_rng(3).integers(0, 2 if kind.kind == "b" else 256, 12 * kind.itemsize)
    values = raw.astype(np.uint8).view(kind).reshape(3, 4)
    with h5py.File(path, "w") as file:
        file["w"] = values
        file["packed"] = values
        file.create_dataset("gzip", data=values, compression="gzip", shuffle=True, fletcher32=True)
        file["scalar"] = values[0, :1].reshape(())
        file["empty"] = values[:0]
    want = values.byteswap().tobytes() if code[0] == ">" else values.tobytes()
    checkpoint, found = read(path)
    assert found["w"] == found["gzip"] == want
    assert found["scalar"] == want[: kind.itemsize]
    assert found["empty"] == b""
    assert any("big-endian" in note for note in checkpoint.header.notes) == (code[0] == ">")


def test_the_layout_of_keras(path: Path, read) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = b"tensorflow"
        file.attrs["layer_names"] = [b"lstm_1"]
        layer = file.create_group("model_weights/lstm_1/lstm_1")
        layer["kernel:0"] = np.ones((2, 3), "<f4")
        layer["bias:0"] = np.zeros(3, "<f4")
        file["optimizer_weights/Adam/m"] = np.ones(3, "<f4")
    checkpoint, values = read(path)
    assert sorted(values) == [
        "model_weights/lstm_1/lstm_1/bias:0",
        "model_weights/lstm_1/lstm_1/kernel:0",
    ]
    assert checkpoint.header.metadata == {"backend": "tensorflow"}
    assert checkpoint.header.notes == ("left out optimizer_weights: training state",)


def test_hard_links_are_ties(path: Path, read) -> None:
    with h5py.File(path, "w") as file:
        file["a"] = np.ones(3, "<f4")
        file["b"] = file["a"]
    checkpoint, values = read(path)
    assert values["a"] == values["b"]
    assert checkpoint.header.tied == {"b": "a"}


def external_link(file: h5py.File) -> None:
    file["x"] = h5py.ExternalLink("other.h5", "/w")


def soft_link(file: h5py.File) -> None:
    file["x"] = h5py.SoftLink("/x")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("x", (8,), "u1", external=[("/etc/hostname", 0, 8)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "<f4")
    layout[:] = h5py.VirtualSource("other.h5", "w", (3,))
    file.create_virtual_dataset("x", layout)


def huge(file: h5py.File) -> None:
    # Never written, so no chunk is stored.
    file.create_dataset("x", (10**12,), "<f4", chunks=(1024,))


def huge_contiguous(file: h5py.File) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(
        file.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((10**12,)), properties
    )


def bomb(file: h5py.File) -> None:
    file.create_dataset(
        "x", data=np.zeros(10_000_000, "<f4"), compression="gzip", chunks=(1_000_000,)
    )


def references(file: h5py.File) -> None:
    file["w"] = np.ones(1)
    file.create_dataset("x", data=np.array([file["w"].ref], dtype=h5py.ref_dtype))


def ragged(file: h5py.File) -> None:
    file.create_dataset("x", (2,), h5py.vlen_dtype(np.float32))


def group_cycle(file: h5py.File) -> None:
    file.create_group("a")["x"] = file["/"]


def deep(file: h5py.File) -> None:
    file.create_group("/".join(["g"] * 70))["x"] = np.ones(1)


def many_dims(file: h5py.File) -> None:
    file["x"] = np.ones((1,) * 20)


def only_text(file: h5py.File) -> None:
    file["x"] = "text"


def long_double(file: h5py.File) -> None:
    file["x"] = np.ones(2, np.longdouble)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (external_link, "a link into another file ('other.h5')"),
        (soft_link, "is a soft link ('/x')"),
        (external_storage, "takes its values from another file ('/etc/hostname')"),
        (virtual, "is virtual"),
        (huge, "claims 4,000,000,000,000 bytes where the file holds 0"),
        (huge_contiguous, "claims 4,000,000,000,000 bytes where the file holds 0"),
        (bomb, "claims 40,000,000 bytes"),
        (references, "holds references"),
        (ragged, "rows of varying length"),
        (group_cycle, "contains itself"),
        (deep, "nested deeper than 64"),
        (many_dims, "20 dimensions"),
        (only_text, "no arrays of numbers"),
        (long_double, "torch does not know"),
    ],
)
def test_refused(make: Callable[[h5py.File], None], text: str, path: Path, refusal) -> None:
    with h5py.File(path, "w") as file:
        make(file)
    assert text in refusal(path)


def test_truncated(path: Path, refusal) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(1000)
    data = path.read_bytes()
    for size in (8, 100, 2000, len(data) - 1):
        path.write_bytes(data[:size])
        assert "HDF5 cannot" in refusal(path)


@pytest.mark.parametrize(
    "more",
    [{}, {"userblock_size": 512}, {"libver": "latest"}, {"libver": "v110"}],
    ids=lambda more: "-".join(map(str, more.values())) or "usual",
)
def test_texts_beside_the_arrays(more: dict, path: Path) -> None:
    texts = {"backend": "tensorflow", "version": "3.1 \u00e4", "nothing": ""}
    with h5py.File(path, "w", **more) as file:
        file["w"] = np.ones(3, "<f4")
        file.attrs.update(texts)
        file.attrs["long"] = "x" * 5000
        file.attrs["several"] = ["a", "b"]
        file.attrs["fixed"] = np.bytes_(b"abc")
        kind = h5py.h5t.py_create(h5py.vlen_dtype("<i4"), logical=True)
        h5py.h5a.create(file.id, b"rows", kind, h5py.h5s.create(h5py.h5s.SCALAR))
        pair = np.dtype([("text", h5py.string_dtype()), ("number", "<i4")])
        file.attrs.create("pair", np.array(("text", 1), dtype=pair), dtype=pair)
    reader = Hdf5Reader(path)
    assert reader.header.metadata == {**texts, "fixed": "abc"}
    assert reader.header.notes == ()
    reader.close()


def test_texts_that_lie_elsewhere_are_named(path: Path, read) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file["w"] = np.ones(3, "<f4")
        for number in range(9):  # more than eight are kept in a tree
            file.attrs[f"key{number}"] = "text"
    checkpoint, values = read(path)
    assert list(values) == ["w"]
    assert checkpoint.header.metadata == {}
    assert checkpoint.header.notes[0].startswith("left out texts beside the arrays: 'key0, key1")


# What is put where in a file with one text: the library would follow the first heap for ever and make room for 4 GB.
DAMAGE = {
    "an object of no size": (lambda data: data.index(b"GCOL") + 16, bytes(16)),
    "free space of no size": (lambda data: data.index(b"tensorflow") + 16, bytes(16)),
    "a length of 4 GB": (lambda data: _length(data), b"\xff\xff\xff\xff"),
    "a heap beyond the file": (lambda data: _length(data) + 4, b"\x00\x00\x00\x7f"),
    "a heap that is none": (lambda data: data.index(b"GCOL"), b"GONE"),
    "an object of another number": (lambda data: data.index(b"GCOL") + 16, b"\x07\x00"),
}


def _length(data: bytes) -> int:
    """Where the length of the text stands, before the address of its heap."""
    return data.index((10).to_bytes(4, "little") + data.index(b"GCOL").to_bytes(8, "little"))


_READ = """
import json, resource, sys
from pathlib import Path
from zooplatform.formats.hdf5_file import Hdf5Reader

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reader = Hdf5Reader(Path(sys.argv[1]))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([reader.header.metadata, list(reader.header.notes), bytes(reader.buffer("w")).hex(), grown]))
"""


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_text_costs_nothing_but_itself(damage: str, path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(3, "<f4")
        file.attrs["backend"] = "tensorflow"
    place, put = DAMAGE[damage]
    data = bytearray(path.read_bytes())
    at = place(bytes(data))
    data[at : at + len(put)] = put
    path.write_bytes(data)
    # In a process of its own, as the library would not come back.
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metadata, notes, values, grown = json.loads(done.stdout)
    assert values == np.ones(3, "<f4").tobytes().hex()
    assert grown < 64 << 10  # in KB, mostly the library itself
    if damage == "free space of no size":  # it lies behind the text, which is found before it
        assert (metadata, notes) == ({"backend": "tensorflow"}, [])
    elif damage == "a length of 4 GB":  # as a text too long to be metadata
        assert (metadata, notes) == ({}, [])
    else:
        assert (metadata, notes) == ({}, ["left out texts beside the arrays: 'backend'"])
