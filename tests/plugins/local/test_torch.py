"""torch files: nothing in them is run or believed, and weights are found where training left them."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable


def rewrite(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], bytes | None],
    *,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Copy a torch archive, giving every member (its name behind the prefix, its bytes) to `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = change(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.pt"
    torch.save({"w": torch.arange(4, dtype=torch.float32)}, path)
    return path


def with_pickle(plain: Path, data: bytes) -> Path:
    """The archive `plain` with another pickle in it."""
    return rewrite(
        plain, plain.parent / "evil.pt", lambda name, old: data if name == "data.pkl" else old
    )


class Payload:
    """Calls `function(*arguments)` when an unrestricted unpickler meets it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def payloads(canary: Path) -> dict[str, Any]:
    touch = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"touch {canary}"),
        "eval": Payload(eval, touch),
        "exec": Payload(exec, touch),
        "open": Payload(open, str(canary), "w"),
        "getattr": Payload(getattr, Payload(__import__, "os"), "system"),
        "shutil": Payload(shutil.copyfile, "/etc/hostname", str(canary)),
        "torch.load": Payload(torch.load, str(canary)),
        "numpy": Payload(np.save, str(canary), [1]),
        "in a key": {"w": torch.zeros(1), "x": [Payload(os.system, f"touch {canary}")]},
    }


NAMES = list(payloads(Path("canary")))
RAW = {
    "posix": b"\x80\x02cposix\nsystem\nX\x05\x00\x00\x00touch\x85R.",
    "nt": b"\x80\x02cnt\nsystem\nX\x05\x00\x00\x00touch\x85R.",
    "builtins": b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
    "memo": b"\x80\x02cos\nsystem\nq\x01h\x01X\x01\x00\x00\x001\x85R.",
    "extension": b"\x80\x02\x82\x01.",
    "inst": b"\x80\x02(X\x05\x00\x00\x00touchios\nsystem\n.",
    "obj": b"\x80\x02(cos\nsystem\nX\x05\x00\x00\x00toucho.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93X\x01\x00\x00\x001\x85R.",
    "newobj": b"\x80\x02csubprocess\nPopen\nX\x01\x00\x00\x001\x85\x81.",
    "hidden in Parameter": b"\x80\x02ctorch._utils\n_rebuild_parameter\ncos\nsystem\n\x89N\x87R.",
    "dotted": b"\x80\x02ctorch\nserialization.os.system\nX\x01\x00\x00\x001\x85R.",
}


@pytest.mark.parametrize(
    ("container", "name"),
    # A bare pickle cannot hold the tensor beside which the last payload lies.
    [
        (kind, name)
        for kind in ("zip", "legacy", "bare")
        for name in NAMES
        if (kind, name) != ("bare", "in a key")
    ],
)
def test_code_is_named_and_not_run(container: str, name: str, plain: Path, refusal) -> None:
    canary = plain.parent / "canary"
    content = payloads(canary)[name]
    if container == "zip" and name != "in a key":
        path = with_pickle(plain, pickle.dumps(content, protocol=2))
    elif container == "bare":
        path = plain.parent / "bare.bin"
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        path = plain.parent / "evil.pt"
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    found = refusal(path)
    assert (
        "nothing was run" in found or "nothing of it was run" in found or "Python object" in found
    )
    assert not canary.exists()


@pytest.mark.parametrize("name", RAW)
def test_crafted_opcodes(name: str, plain: Path, refusal) -> None:
    found = refusal(with_pickle(plain, RAW[name]))
    assert "pickle" in found


def test_a_payload_would_run_without_the_checks(tmp_path: Path) -> None:
    """The payloads are live: unrestricted unpickling runs them."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(payloads(canary)["os.system"]))
    assert canary.exists()


# --- what is common in genuine files and cannot be read --------------------------------------------------------------


def test_a_whole_module(tmp_path: Path, refusal) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    assert "Python object (torch.nn.modules.linear.Linear)" in refusal(tmp_path / "m.pt")


def test_numpy_scalars(tmp_path: Path, refusal) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "best": np.float64(0.9)}, tmp_path / "m.pt")
    found = refusal(tmp_path / "m.pt")
    assert "numpy value" in found
    assert "save_file" in found


def test_a_namespace(tmp_path: Path, refusal) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, tmp_path / "m.pt")
    assert "settings of its training as a Python object (argparse.Namespace)" in refusal(
        tmp_path / "m.pt"
    )


def test_a_dtype_that_no_catalog_stores(tmp_path: Path, refusal) -> None:
    raw = torch.zeros(4, dtype=torch.uint8).view(torch.bits8)
    torch.save({"w": torch.ones(2), "raw": raw}, tmp_path / "m.pt")
    found = refusal(tmp_path / "m.pt")
    assert "tensors of dtype torch.bits8, which a catalog does not store" in found
    assert "Convert them" in found


def test_torchscript(tmp_path: Path, refusal) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/constants.pkl", b"\x80\x02).")
        archive.writestr("m/code/__torch__.py", "")
    assert "TorchScript archive" in refusal(tmp_path / "m.pt")


def test_optimizer_state_alone(tmp_path: Path, refusal) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    assert "the state of an optimizer" in refusal(tmp_path / "o.pt")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.empty(3, device="meta"), "on the device meta"),
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain(
    make: Callable[[], torch.Tensor], text: str, tmp_path: Path, refusal
) -> None:
    torch.save({"w": make()}, tmp_path / "m.pt")
    assert text in refusal(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [{}, [], "text", 3, {"epoch": 3}, {"a": {"b": []}}])
def test_no_tensors(content: object, tmp_path: Path, refusal) -> None:
    torch.save(content, tmp_path / "m.pt")
    assert "It holds no tensors" in refusal(tmp_path / "m.pt")


# --- lies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_an_expanded_view_of_four_bytes(legacy: bool, tmp_path: Path, refusal) -> None:
    tensor = torch.ones(1).expand(10_000_000, 1_000_000)
    torch.save({"w": tensor}, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    assert "shows 40,000,000,000,000 bytes of a storage of 4" in refusal(tmp_path / "m.pt")


def test_many_views_of_one_storage(tmp_path: Path, refusal) -> None:
    base = torch.ones(100_000)
    torch.save({f"w{i}": base[i:] for i in range(200)}, tmp_path / "m.pt")
    assert "more than 64 times the bytes of the file" in refusal(tmp_path / "m.pt")


def tensor_pickle(
    count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> bytes:
    """A pickle of {"w": tensor} over the storage "0" of `count` floats."""

    def number(value: int) -> bytes:
        raw = value.to_bytes(16, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw

    def ints(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + number(count)
        + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + ints(size)
        + ints(stride)
    )
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"\x89ccollections\nOrderedDict\n)RtRs."


def test_the_crafted_tensor_is_right_when_it_is_honest(plain: Path, read) -> None:
    _, values = read(with_pickle(plain, tensor_pickle(4, (2, 2), (2, 1))))
    assert values["w"] == torch.arange(4, dtype=torch.float32).numpy().tobytes()


@pytest.mark.parametrize(
    ("count", "size", "stride", "offset", "text"),
    [
        (4, (5,), (1,), 0, "beyond its storage"),
        (4, (2,), (1,), 3, "beyond its storage"),
        (4, (2,), (4,), 0, "beyond its storage"),
        (4, (2,), (-1,), 1, "not a whole number"),
        (4, (-2,), (1,), 0, "not a whole number"),
        (4, (2,), (1,), -1, "without a storage"),
        (4, (2, 2), (1,), 0, "do not go together"),
        (4, (2**62,), (0,), 0, "beyond 2^48 elements"),
        (4, (1,) * 17, (1,) * 17, 0, "17 dimensions"),
        (-1, (1,), (1,), 0, "negative size"),
        (2**61, (1,), (1,), 0, "has 16 bytes; the pickle needs"),
        (5, (4,), (1,), 0, "has 16 bytes; the pickle needs 20"),
    ],
)
def test_crafted_tensors(
    count: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    text: str,
    plain: Path,
    refusal,
) -> None:
    assert text in refusal(with_pickle(plain, tensor_pickle(count, size, stride, offset)))


def with_tensor(extra: bytes) -> bytes:
    """A pickle of {"w": tensor, "x": what `extra` leaves on the stack}."""
    return tensor_pickle(4, (4,), (1,))[:-1] + b"X\x01\x00\x00\x00x" + extra + b"s."


# Forty pairs, each of the pair before it, twice.
LAUGHS = b"]" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(40))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (with_tensor(b"]q\x01h\x01a"), "contains itself"),
        (with_tensor(LAUGHS), "unfold to more than"),
        (with_tensor(b"]" * 500 + b"a" * 499), "nested deeper than 64"),
        (with_tensor(b"cbuiltins\nbytearray\n\x8a\x06" + b"\xff" * 5 + b"\x7f\x85R"), "bytearray"),
        (
            with_tensor(b"c_codecs\nencode\nX\x02\x00\x00\x00abX\x03\x00\x00\x00hex\x86R"),
            "another codec than latin1",
        ),
        (with_tensor(b"X\xff\xff\xff\x7f"), "ends in the middle"),
        (with_tensor(b"}\x8a\x10" + b"\xff" * 15 + b"\x7fK\x01s"), "dict key"),
        (with_tensor(b"h\x63"), "damaged"),
        (b"", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02}}s.", "damaged"),
    ],
)
def test_containers_that_never_end(data: bytes, text: str, plain: Path, refusal) -> None:
    assert text in refusal(with_pickle(plain, data))


def test_copies_that_grow_with_the_square(plain: Path, refusal) -> None:
    """A list of 20,000 entries, copied 20,000 times by a call that torch allows."""
    many = (
        b"]("
        + b"K\x01" * 20_000
        + b"eq\x01"
        + b"]("
        + b"ctorch\nSize\nh\x01\x85R" * 20_000
        + b"e\x86"
    )
    assert "unfolds to far more" in refusal(with_pickle(plain, with_tensor(many)))


# --- the archive -----------------------------------------------------------------------------------------------------


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


# --- training checkpoints --------------------------------------------------------------------------------------------

NET = {"w": torch.ones(2), "b": torch.zeros(1)}
ADAM = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: OrderedDict(net),
        lambda net: {"model": net, "optimizer": ADAM, "epoch": 3},
        lambda net: {"state_dict": net, "optimizer": ADAM},
        lambda net: {"model_state_dict": net, "optimizer_state_dict": ADAM, "loss": 0.1},
        lambda net: {"step": 5, "model_state": net, "optimizer_state": ADAM},
        lambda net: {
            "model": {"state_dict": net, "model_args": {"a": [1]}},
            "scheduler": {"last_epoch": 1},
        },
        lambda net: {"params": net, "params_ema": net, "rng_state": torch.get_rng_state()},
        lambda net: {f"module.{name}": value for name, value in net.items()},
        lambda net: {"model": {f"_orig_mod.module.{name}": value for name, value in net.items()}},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_unwrapped(wrap: Callable[[Any], Any], legacy: bool, tmp_path: Path, read) -> None:
    torch.save(wrap(NET), tmp_path / "m.ckpt", _use_new_zipfile_serialization=not legacy)
    _, values = read(tmp_path / "m.ckpt")
    assert {name: np.frombuffer(raw, "<f4").tolist() for name, raw in values.items()} == {
        "w": [1, 1],
        "b": [0],
    }


def test_what_is_left_out_is_said(tmp_path: Path, read) -> None:
    content = {
        "model": {**NET, "extra": "text"},
        "optimizer": ADAM,
        "epoch": 7,
        "global_step": 1234,
    }
    torch.save(content, tmp_path / "m.pt")
    checkpoint, _ = read(tmp_path / "m.pt")
    assert (checkpoint.step, checkpoint.epoch) == (1234, 7.0)
    assert checkpoint.header.notes == (
        "the weights were found in model",
        "left out 'optimizer': 1 tensor(s) of training state",
        "left out what is no tensor of the model: 'extra' (str)",
    )


def test_parts_of_one_model_are_all_kept(tmp_path: Path, read) -> None:
    torch.save({"net": NET, "head": {"w": torch.ones(3)}, "optimizer": ADAM}, tmp_path / "m.pt")
    checkpoint, values = read(tmp_path / "m.pt")
    assert list(values) == ["net.w", "net.b", "head.w"]
    assert any(
        "'optimizer' (1 tensors of training state)" in note for note in checkpoint.header.notes
    )


def test_a_parameter_may_have_the_name_of_a_wrapper(tmp_path: Path, read) -> None:
    torch.save({"model": torch.ones(1), "optimizer": torch.ones(1)}, tmp_path / "m.pt")
    assert list(read(tmp_path / "m.pt")[1]) == ["model", "optimizer"]


def test_numbered_and_listed_tensors(tmp_path: Path, read) -> None:
    torch.save(
        {0: torch.ones(1), "layers": [torch.ones(1), {"w": torch.ones(1)}]}, tmp_path / "m.pt"
    )
    assert list(read(tmp_path / "m.pt")[1]) == ["0", "layers.0", "layers.1.w"]


def test_two_names_that_become_one(tmp_path: Path, refusal) -> None:
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, tmp_path / "m.pt")
    assert "Two tensors have the name 'a.b'" in refusal(tmp_path / "m.pt")


def test_a_tensor_alone(tmp_path: Path, read) -> None:
    torch.save(torch.ones(2), tmp_path / "m.pt")
    assert list(read(tmp_path / "m.pt")[1]) == ["tensor"]


def test_every_kind_of_training_value_is_passed_over(tmp_path: Path, read) -> None:
    """What torch's restricted unpickler takes beside tensors must not stop the reader."""
    content = {
        "model": nn.BatchNorm1d(2).state_dict(),
        "bytes": b"\x00\xff" * 10,
        "set": {1, 2},
        "complex": 1j,
        "dtype": torch.float16,
        "device": torch.device("cuda:0"),
        "size": torch.Size([1, 2]),
        "none": None,
        "long": 2**100,
        "nested": [(1, {"a": (2.5, True)})],
    }
    torch.save(content, tmp_path / "m.pt")
    torch.load(tmp_path / "m.pt", weights_only=True)
    checkpoint, values = read(tmp_path / "m.pt")
    assert len(values) == 5
    assert checkpoint.header.tensors[-1].shape == ()


def test_cuda_storages(tmp_path: Path, read) -> None:
    """CUDA storages load on a machine without CUDA: the location in the pickle is not followed."""
    path = tmp_path / "m.pt"
    torch.save({"w": torch.arange(3.0)}, path)
    cuda = rewrite(
        path,
        tmp_path / "cuda.pt",
        lambda name, data: (
            data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            if name == "data.pkl"
            else data
        ),
    )
    assert read(cuda)[1] == {"w": torch.arange(3.0).numpy().tobytes()}
