"""Mutate valid files of one format for some seconds and read each: `python fuzz_readers.py FORMAT SECONDS FOLDER`.

A process of its own, so that a crash, a hang or memory without bound shows in its exit, whatever library it comes from.
Every mutant must be read or refused with a `ZooError`; reading may take at most 64 MB and 256 times the file's size.
"""

from __future__ import annotations

import faulthandler
import io
import json
import random
import resource
import signal
import struct
import sys
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zooplatform.errors import ZooError
from zooplatform_local.source import LocalSource

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS_PER_FILE = 20
FREE_BYTES, FACTOR = 64 << 20, 256
INTERESTING = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    1 << 62,
    (1 << 64) - 1,
)


def torch_bytes(legacy: bool) -> bytes:
    import torch

    base = torch.randn(6, 5)
    content = {
        "model": {
            "module.w": base,
            "module.t": base.t(),
            "module.h": base.half(),
            "module.n": torch.tensor(3),
        },
        "optimizer": {"state": {0: {"m": base}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 3,
        "name": "text",
        "raw": b"\xff\x00",
    }
    target = io.BytesIO()
    torch.save(content, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


def safetensors_bytes() -> bytes:
    import torch
    from safetensors.torch import save

    return save(
        {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.tensor(1)}
    )


def numpy_bytes(compressed: bool) -> bytes:
    import numpy as np

    target = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(
        target, a=np.ones((3, 4)), b=np.arange(5, dtype=">i2")
    )
    return target.getvalue()


def npy_bytes() -> bytes:
    import numpy as np

    target = io.BytesIO()
    np.save(target, np.ones((3, 4), "<f4"))
    return target.getvalue()


def onnx_bytes() -> bytes:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = [
        numpy_helper.from_array(np.ones((3, 4), "<f4"), "w"),
        helper.make_tensor("v", TensorProto.BFLOAT16, (2,), [1.0, 2.0]),
        helper.make_tensor("i", TensorProto.INT4, (4,), [1, 2, 3, 4]),
    ]
    inner = helper.make_graph([], "inner", [], [], initializer=weights[:1])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return helper.make_model(
        helper.make_graph([node], "g", [], [], initializer=weights)
    ).SerializeToString()


def hdf5_bytes() -> bytes:
    import h5py
    import numpy as np

    target = io.BytesIO()
    with h5py.File(target, "w") as file:
        file.attrs["backend"] = "tensorflow"
        file["model/dense/kernel:0"] = np.ones((3, 4), "<f4")
        file["model/dense/bias:0"] = np.ones(4, "<f8")
        file.create_dataset("packed", data=np.arange(100), compression="gzip", chunks=(10,))
        file["again"] = file["packed"]
    return target.getvalue()


def gguf_bytes() -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def entry(name: bytes, kind: int, value: bytes) -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 3)
    head += entry(b"general.architecture", 8, text(b"llama")) + entry(b"n", 4, struct.pack("<I", 3))
    head += entry(b"tokens", 9, struct.pack("<IQ", 8, 2) + text(b"a") + text(b"b"))
    head += (
        text(b"w")
        + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
        + text(b"v")
        + struct.pack("<IQIQ", 1, 4, 0, 96)
    )
    return head + bytes(-len(head) % 32) + bytes(96) + bytes(16)


def index_bytes() -> bytes:
    return json.dumps(
        {"metadata": {"total_size": 8}, "weight_map": {"a": "s.safetensors"}}
    ).encode()


def repacked(source: bytes, member: str) -> tuple[bytes, Callable[[bytes], bytes]]:
    """One member of an archive, and how to put it back with a right checksum."""
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in held if name.endswith(member))

    def put_back(data: bytes) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for other, old in held.items():
                archive.writestr(other, data if other == name else old)
        return target.getvalue()

    return held[name], put_back


def with_length(source: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The header of a safetensors file, and how to put it back with its right length."""
    length = int.from_bytes(source[:8], "little")
    return source[
        8 : 8 + length
    ], lambda data: struct.pack("<Q", len(data)) + data + source[8 + length :]


def heap_alone(source: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The beginning of the heap of texts in an HDF5 file, and how to put as many bytes back."""
    at = source.index(b"GCOL")
    return source[
        at : at + 128
    ], lambda data: source[:at] + (data + bytes(128))[:128] + source[at + 128 :]


def same(source: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    return source, lambda data: data


# Format -> file name, then what is mutated and how a file is made of it.
FORMATS: dict[str, tuple[str, Callable[[], tuple[bytes, Callable[[bytes], bytes]]]]] = {
    "safetensors": ("m.safetensors", lambda: same(safetensors_bytes())),
    "safetensors-header": ("m.safetensors", lambda: with_length(safetensors_bytes())),
    "index": ("m.safetensors.index.json", lambda: same(index_bytes())),
    "torch-zip": ("m.pt", lambda: same(torch_bytes(False))),
    "torch-pickle": ("m.pt", lambda: repacked(torch_bytes(False), "data.pkl")),
    "torch-legacy": ("m.pt", lambda: same(torch_bytes(True))),
    "npz": ("m.npz", lambda: same(numpy_bytes(True))),
    "npz-member": ("m.npz", lambda: repacked(numpy_bytes(False), "a.npy")),
    "npy": ("m.npy", lambda: same(npy_bytes())),
    "onnx": ("m.onnx", lambda: same(onnx_bytes())),
    "hdf5": ("m.h5", lambda: same(hdf5_bytes())),
    "hdf5-heap": ("m.h5", lambda: heap_alone(hdf5_bytes())),
    "gguf": ("m.gguf", lambda: same(gguf_bytes())),
}

CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(0, 7)),
        st.tuples(st.just("set"), st.integers(0, 1 << 20), st.integers(0, 255)),
        st.tuples(st.just("number"), st.integers(0, 1 << 20), st.sampled_from(INTERESTING)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.integers(1, 64)),
        st.tuples(st.just("insert"), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("repeat"), st.integers(0, 1 << 20), st.integers(1, 64)),
        st.tuples(st.just("end"), st.integers(0, 1 << 20), st.just(0)),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data: bytes, changes: list[tuple[str, int, int | bytes]]) -> bytes:
    out = bytearray(data)
    for kind, place, value in changes:
        at = place % (len(out) + 1)
        if isinstance(value, bytes):
            out[at:at] = value
        elif kind == "number":
            width = random.Random(place).choice((1, 2, 4, 8))
            out[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif kind == "cut":
            del out[at : at + value]
        elif kind == "repeat":
            out[at:at] = out[at : at + value] * 3
        elif kind == "end":
            del out[at:]
        elif at < len(out):
            out[at] = out[at] ^ (1 << value) if kind == "flip" else value
    return bytes(out)


def read(path: Path) -> None:
    source = LocalSource()
    for ref in source.list(str(path)):
        with source.open(ref) as checkpoint:
            for spec in checkpoint.header.tensors:
                if len(checkpoint.buffer(spec.name)) != spec.size_bytes:
                    raise AssertionError(f"{spec} gave another number of bytes")
            checkpoint.verify()


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main(name: str, seconds: float, folder: Path) -> None:
    faulthandler.enable()
    warnings.simplefilter("error")
    # Far above what a file may take; a reader that asks for more gets MemoryError instead of the machine.
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    file_name, make = FORMATS[name]
    seed, put_back = make()
    path = folder / file_name
    if name == "index":
        (folder / "s.safetensors").write_bytes(safetensors_bytes())
    path.write_bytes(put_back(seed))
    if name != "index":
        read(path)
    outcomes: Counter[str] = Counter()

    def too_slow(*_: object) -> None:
        raise AssertionError(f"reading took more than {SECONDS_PER_FILE} s")

    signal.signal(signal.SIGALRM, too_slow)
    end = time.monotonic() + seconds

    @settings(
        max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(CHANGES)
    def check(changes: list[tuple[str, int, int | bytes]]) -> None:
        if time.monotonic() > end:
            return
        data = put_back(mutate(seed, changes))
        path.write_bytes(data)
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_bytes()
        signal.alarm(SECONDS_PER_FILE)
        try:
            read(path)
            outcomes["read"] += 1
        except ZooError as exc:
            if not str(exc):
                raise AssertionError("a refusal without a text") from exc
            outcomes["refused"] += 1
        finally:
            signal.alarm(0)
        grown = peak_bytes() - before
        if grown > FREE_BYTES + FACTOR * len(data):
            raise AssertionError(f"{grown:,} bytes of memory for a file of {len(data):,}")

    while time.monotonic() < end:
        check()
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
