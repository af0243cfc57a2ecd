"""HDF5 weights: only numbers that the file itself holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

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
