"""Every element type arrives bit for bit, in every format that can hold it."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from pathlib import Path

TORCH = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]
# torch 2.15 cannot read these back from its own legacy format.
NOT_LEGACY = {"uint64", "uint32", "uint16"} | {
    name for name in TORCH if name.startswith(("float8", "float4"))
}
SAFETENSORS = {
    **{
        "F64": 64,
        "F32": 32,
        "F16": 16,
        "BF16": 16,
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "F4": 4,
    },
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "BOOL": 8},
    **{f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)},
}


def random_tensor(dtype: str, *shape: int) -> torch.Tensor:
    """Random bits, so NaN payloads, infinities and denormals too."""
    kind = getattr(torch, dtype)
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.random.default_rng(len(dtype)).integers(0, 2 if dtype == "bool" else 256, size)
    return torch.from_numpy(raw.astype(np.uint8)).view(kind).reshape(shape)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().contiguous().clone()
    return bytes(plain.untyped_storage()) if plain.numel() else b""


@pytest.mark.parametrize("dtype", TORCH)
def test_torch_zip(dtype: str, tmp_path: Path, read) -> None:
    tensor = random_tensor(dtype, 3, 4)
    torch.save({"w": tensor}, tmp_path / "m.pt")
    checkpoint, values = read(tmp_path / "m.pt")
    assert checkpoint.header.tensors[0].dtype == dtype
    assert checkpoint.header.tensors[0].shape == (3, 4)
    assert values["w"] == raw_bytes(tensor)


@pytest.mark.parametrize("dtype", sorted(set(TORCH) - NOT_LEGACY))
def test_torch_legacy(dtype: str, tmp_path: Path, read) -> None:
    tensor = random_tensor(dtype, 3, 4)
    torch.save({"w": tensor}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    checkpoint, values = read(tmp_path / "m.pt")
    assert checkpoint.header.format == "torch-legacy"
    assert checkpoint.header.tensors[0].dtype == dtype
    assert values["w"] == raw_bytes(tensor)


@pytest.mark.parametrize("dtype", sorted(NOT_LEGACY))
def test_legacy_files_that_torch_cannot_read_say_so(dtype: str, tmp_path: Path, refusal) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": random_tensor(dtype, 4)}, path, _use_new_zipfile_serialization=False)
    text = refusal(path)
    assert "torch cannot read one of its dtypes from the format of before torch 1.6" in text
    assert "Write it again with torch.save as it is" in text


@pytest.mark.parametrize("dtype", sorted(set(TORCH) - {"complex128"}))
def test_safetensors_written_by_the_library(dtype: str, tmp_path: Path, read) -> None:
    tensor = random_tensor(dtype, 3, 4)
    save_file({"w": tensor}, tmp_path / "m.safetensors")
    checkpoint, values = read(tmp_path / "m.safetensors")
    spec = checkpoint.header.tensors[0]
    assert (spec.dtype, spec.shape) == (dtype, (3, 4))
    assert values["w"] == raw_bytes(tensor)


@pytest.mark.parametrize(("code", "bits"), sorted(SAFETENSORS.items()))
def test_every_safetensors_code(code: str, bits: int, tmp_path: Path, read) -> None:
    data = np.random.default_rng(1).integers(0, 2, 8 * bits // 8).astype(np.uint8).tobytes()
    header = json.dumps({"w": {"dtype": code, "shape": [2, 4], "data_offsets": [0, bits]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    checkpoint, values = read(path)
    assert values["w"] == data
    assert checkpoint.files[0].header == path.read_bytes()[: 8 + len(header)]
    assert checkpoint.header.tensors[0].shape == ((2, 2) if code == "F4" else (2, 4))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "code", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "c8", "c16"]
)
def test_numpy(code: str, order: str, compressed: bool, tmp_path: Path, read) -> None:
    size = np.dtype(code).itemsize
    raw = (
        np.random.default_rng(2).integers(0, 2 if code == "b1" else 256, 12 * size).astype(np.uint8)
    )
    array = raw.view(np.dtype(code).newbyteorder(order)).reshape(3, 4)
    save = np.savez_compressed if compressed else np.savez
    save(
        tmp_path / "m.npz",
        c=array,
        fortran=np.asfortranarray(array),
        scalar=array[0, :1].reshape(()),
        empty=array[:0],
    )
    _, values = read(tmp_path / "m.npz")
    # The values in C order and little-endian, moved as bit patterns: casting could quieten a NaN.
    want = array.byteswap() if array.dtype.byteorder == ">" else array
    assert values["c"] == want.tobytes()
    assert values["fortran"] == want.tobytes()
    assert values["scalar"] == want[0, :1].tobytes()
    assert values["empty"] == b""


def test_a_single_npy(tmp_path: Path, read) -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    np.save(tmp_path / "w.npy", array)
    checkpoint, values = read(tmp_path / "w.npy")
    assert checkpoint.header.tensors[0].shape == (2, 3)
    assert values == {"arr_0": array.tobytes()}


@pytest.mark.parametrize("legacy", [False, True])
def test_odd_tensors(legacy: bool, tmp_path: Path, read) -> None:
    base = torch.randn(100, 10)
    state = {
        "scalar": torch.tensor(float("nan")),
        "empty": torch.empty(0, 4),
        "transposed": base[:3].t(),
        "slice": base[3:5],
        "tied": base[3:5],
        "step2": base[::2, 1],
        "conj": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "expanded": torch.randn(1, 3).expand(4, 3),
    }
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint, values = read(tmp_path / "m.pt")
    assert list(values) == list(state)
    for name, tensor in state.items():
        assert values[name] == raw_bytes(tensor), name
    assert checkpoint.header.tied == {"tied": "slice"}
    assert any("views into storages" in note for note in checkpoint.header.notes)


def test_every_dtype_through_the_catalog(tmp_path: Path) -> None:
    state = {
        name: random_tensor(name, 2, 3)
        for name in TORCH
        if name not in ("float32", "float64", "float16")
    }
    state |= {"scalar": torch.tensor(2.5), "tied": state["int8"]}
    torch.save(state, tmp_path / "m.pt")
    catalog = open_catalog(tmp_path / "zoo", create=True)
    (checkpoint_id,) = catalog.ingest(f"local:{tmp_path / 'm.pt'}").checkpoint_ids
    back = catalog.state_dict(checkpoint_id)
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert raw_bytes(back[name]) == raw_bytes(tensor), name
