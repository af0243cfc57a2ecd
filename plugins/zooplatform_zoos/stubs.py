"""Pickles of classes that nobody has any more, read without running anything.

`torch.load(weights_only=True)` refuses files whose pickles name unknown classes. Here every unknown name becomes a
class of stubs that only keep what the file gives them; the few names that rebuild tensors, numbers and containers are
answered by functions of this module. Tensors are not read but located, so a file of any size opens in small memory.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.errors import SourceError
from zooplatform_zoos.pickles import next_pickle
from zooplatform_zoos.torchfile import check_zip

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LazyTensor", "Stub", "read_with_stubs"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Containers whose constructors only copy what they are given.
_PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "tuple"): tuple,
}


class Stub:
    """An object of an unknown class: `name` of the class, constructor arguments and state as the file has them."""

    name = ""
    given: tuple[Any, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        made = object.__new__(cls)
        made.__dict__["given"] = args
        made.__dict__["items"] = []
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    # What pickle calls on subclasses of list, set and dict.
    def append(self, item: Any) -> None:
        self.__dict__["items"].append(item)

    def extend(self, items: Any) -> None:
        self.__dict__["items"].extend(items)

    def add(self, item: Any) -> None:
        self.__dict__["items"].append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["items"].append((key, value))

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that the file gives the object."""
        state = self.__dict__.get("state")
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict | None):
            state = {**(state[0] or {}), **(state[1] if isinstance(state[1], dict) else {})}
        return {str(key): value for key, value in state.items()} if isinstance(state, dict) else {}

    def __repr__(self) -> str:
        return f"<{self.name} as a stub>"


class _Fixed:
    """Objects of ours that lie on the unpickler's stack: a pickle must not set their state."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("refused: it sets the state of a tensor or storage")


@dataclass(slots=True)
class _Storage(_Fixed):
    """Where the elements of a storage lie; the offset is known when the file has been read."""

    path: Path
    dtype: torch.dtype
    numel: int
    offset: int = -1


@dataclass(frozen=True)
class LazyTensor(_Fixed):
    """A tensor that has been located and not read."""

    storage: _Storage
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def __getitem__(self, index: int) -> LazyTensor:
        """Element `index` of the first axis, still unread."""
        at = range(self.shape[0])[index]
        return LazyTensor(
            self.storage, self.start + at * self.stride[0], self.shape[1:], self.stride[1:]
        )

    def read(self) -> torch.Tensor:
        """The values, contiguous and in fresh memory."""
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=self.storage.dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        size = self.storage.dtype.itemsize
        with self.storage.path.open("rb") as file:
            file.seek(self.storage.offset + self.start * size)
            data = bytearray(file.read(span * size))
        if len(data) != span * size:
            raise SourceError(self.storage.path, "a tensor reaches beyond the end of the file.")
        flat = torch.frombuffer(data, dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


def read_with_stubs(path: Path) -> Any:
    """The object of a torch file (zip or legacy); unknown classes are `Stub`, tensors `LazyTensor`.

    Raises:
        SourceError: the file is missing, damaged, of the tar format of torch before 0.1.10, or not a torch file.
    """
    if not path.is_file():
        raise SourceError(path, "there is no such file.")
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except SourceError:
        raise
    except (
        pickle.UnpicklingError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        EOFError,
        OSError,
        OverflowError,
        MemoryError,
        RecursionError,
        ImportError,
        AssertionError,
    ) as error:
        # What the unpickler raises on damaged or hostile input; nothing of the file has been called.
        raise SourceError(
            path, f"not a readable torch file: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _read_zip(path: Path) -> Any:
    check_zip(path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        found = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(found) != 1:
            raise SourceError(path, "no torch file: it has no data.pkl.")
        root = found[0].removesuffix("data.pkl")
        order = members.get(f"{root}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise SourceError(path, "its numbers are not little-endian.")
        data = archive.read(found[0])
        storages: dict[str, _Storage] = {}
        content = _load(io.BytesIO(data), len(data), path, storages)
        for key, storage in storages.items():
            info = members.get(f"{root}data/{key}")
            if info is None or info.file_size < storage.numel * storage.dtype.itemsize:
                raise SourceError(path, f"storage {key} is missing or too short.")
            storage.offset = _data_offset(path, info)
    return content


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: behind its local header, whose lengths may differ from the index."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return (
        info.header_offset
        + 30
        + int.from_bytes(lengths[:2], "little")
        + int.from_bytes(lengths[2:], "little")
    )


def _read_legacy(path: Path) -> Any:
    size = path.stat().st_size
    storages: dict[str, _Storage] = {}
    with path.open("rb") as file:
        if _load(file, size, path, {}) != _MAGIC:
            raise SourceError(path, "no torch file: the magic number is missing.")
        if _load(file, size, path, {}) != _PROTOCOL:
            raise SourceError(path, "its version of the legacy format is unknown.")
        system = _load(file, size, path, {})
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise SourceError(path, "its numbers are not little-endian.")
        content = _load(file, size, path, storages)
        keys = _load(file, size, path, {})
        if not isinstance(keys, list) or set(map(str, keys)) != set(storages):
            raise SourceError(path, "its list of storages does not fit its tensors.")
        for key in map(str, keys):
            storage = storages[key]
            count = int.from_bytes(file.read(8), "little", signed=True)
            storage.offset = file.tell()
            end = storage.offset + count * storage.dtype.itemsize
            if count != storage.numel or end > size:
                raise SourceError(
                    path, f"storage {key} is missing or too short.", "Fetch it again."
                )
            file.seek(end)
    return content


def _load(file: IO[bytes], size: int, path: Path, storages: dict[str, _Storage]) -> Any:
    """Unpickle one object that starts at the file's position and leave the position behind it."""
    start = file.tell()
    data = next_pickle(file, size, path)
    unpickler = _Unpickler(io.BytesIO(data), path, storages)
    content = unpickler.load()
    file.seek(start + len(data))
    return content


class _Call:
    """A function that a pickle may call. Without `__dict__`, so that BUILD cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("refused: a pickle may not change functions")

    def __call__(self, *args: Any) -> Any:
        return object.__getattribute__(self, "_function")(*args)


class _Unpickler(pickle.Unpickler):
    """Knows containers, tensors and arrays; answers every other name with a new class of stubs."""

    def __init__(self, file: IO[bytes], path: Path, storages: dict[str, _Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self._path, self._storages = path, storages
        self._classes: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        where = (module.replace("__builtin__", "builtins"), name)
        if where in _PLAIN:
            return _PLAIN[where]
        if where not in self._classes:
            self._classes[where] = self._answer(*where)
        return self._classes[where]

    def _answer(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageKind(_STORAGES[name])
        if module.startswith("torch"):
            known = {
                "_rebuild_tensor": _rebuild,
                "_rebuild_tensor_v2": _rebuild,
                "_rebuild_parameter": _first,
                "Size": _as_tuple,
            }.get(name)
            if known is not None:
                return _Call(known)
        if module.startswith("numpy") and name in ("scalar", "dtype"):
            return _Call(_numpy_scalar if name == "scalar" else _NumpyType)
        if (module, name) == ("_codecs", "encode"):
            return _Call(_encode)
        if (module, name) == ("copyreg", "_reconstructor") or module == "copy_reg":
            return _Call(_reconstruct)
        return type("Stub", (Stub,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("unknown persistent id")
        kind, key, numel = pid[1], str(pid[2]), pid[4]
        if not isinstance(kind, _StorageKind) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError(f"storage {key} has an unknown type or size")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("storages that are views are not supported")
        storage = self._storages.setdefault(key, _Storage(self._path, kind.dtype, numel))
        if (storage.dtype, storage.numel) != (kind.dtype, numel):
            raise pickle.UnpicklingError(f"storage {key} is described in two ways")
        return storage


@dataclass(frozen=True)
class _StorageKind(_Fixed):
    dtype: torch.dtype


@dataclass(slots=True)
class _NumpyType:
    """`numpy.dtype(code, align, copy)`; its later state only repeats the byte order."""

    code: str = ""
    align: Any = None
    copy: Any = None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            raise pickle.UnpicklingError("big-endian numpy values")


def _rebuild(storage: Any, start: Any, shape: Any, stride: Any, *rest: Any) -> LazyTensor:
    """A located tensor, refused where it reaches beyond its storage or claims more elements than that has."""
    numbers = (start, *shape, *stride)
    if (
        not isinstance(storage, _Storage)
        or any(type(number) is not int or number < 0 for number in numbers)
        or len(shape) != len(stride)
    ):
        raise pickle.UnpicklingError("a tensor is malformed")
    shape, stride = tuple(shape), tuple(stride)
    if prod(shape):
        span = start + 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if span > storage.numel or prod(shape) > storage.numel:
            raise pickle.UnpicklingError("a tensor claims more elements than its storage holds")
    return LazyTensor(storage, start, shape, stride)


def _first(data: Any, *rest: Any) -> Any:
    return data


def _as_tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "utf-8"):
        raise pickle.UnpicklingError("unknown encoding")
    return text.encode(encoding)


def _reconstruct(kind: Any, base: Any = None, state: Any = None) -> Any:
    """How protocols 0 and 1 write objects."""
    if not (isinstance(kind, type) and issubclass(kind, Stub)):
        raise pickle.UnpicklingError("only unknown classes are made this way")
    return kind()


def _numpy_scalar(kind: Any, data: Any = b"") -> float | int | bool:
    """A numpy number as Python's."""
    if isinstance(data, str):
        data = data.encode("latin1")
    if (
        not isinstance(kind, _NumpyType)
        or kind.code not in _NUMBER_CODES
        or not isinstance(data, bytes)
    ):
        raise pickle.UnpicklingError("a numpy scalar that is no number")
    value: float | int | bool = np.frombuffer(data, np.dtype(f"<{kind.code}"), 1)[0].item()
    return value


_NUMBER_CODES = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}
