"""torch files that would run code, or that claim what they do not hold: nothing in them is run or believed."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_archives import with_pickle


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
