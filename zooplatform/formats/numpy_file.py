"""numpy files: `.npy` (one array) and `.npz` (an archive of them), never with pickled objects.

The headers are parsed here; big-endian values are swapped, bit patterns kept, and that is noted.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import SourceError
from zooplatform.formats.archives import ARCHIVE_ERRORS, check_archive
from zooplatform.formats.dtypes import numpy_name, stored_bytes
from zooplatform.formats.files import OpenFile
from zooplatform.formats.limits import check_shape, name_notes, shown
from zooplatform.formats.reader import ReaderBase
from zooplatform.interfaces import CheckpointHeader, SourceFile, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["NumpyReader"]

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 65_536
_AGAIN = "Copy or download it again."
_PLAIN = "Save plain arrays: np.savez(path, **{name: np.asarray(values, dtype='float32')})."


@dataclass(frozen=True, slots=True)
class _Array:
    """An array as its header describes it; `start` counts from the first byte of its `.npy`."""

    spec: TensorSpec
    dtype: np.dtype[Any]
    fortran: bool
    start: int


class NumpyReader(ReaderBase):
    """One `.npz` or `.npy` file.

    Args:
        path: the file.
        kind: `npz` or `npy`; the array of a `.npy` is named `arr_0`, as numpy names arrays without a name.
    """

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__()
        self._path, self._kind = path, kind
        file = self._own(OpenFile(path))
        self._file = file
        self._arrays = self._from_npz() if kind == "npz" else self._from_npy()
        if not self._arrays:
            raise SourceError(path, "It holds no arrays.", "Give the file of the weights.")
        notes = name_notes(self._arrays, path)
        swapped = [name for name, array in self._arrays.items() if array.dtype.byteorder == ">"]
        if swapped:
            notes = (
                *notes,
                f"{len(swapped)} big-endian array(s) are stored little-endian, values unchanged",
            )
        self.header = CheckpointHeader(
            tensors=tuple(array.spec for array in self._arrays.values()), format=kind, notes=notes
        )
        self.files = (
            SourceFile(
                path=path.name, format=kind, size_bytes=file.size, tensors=tuple(self._arrays)
            ),
        )

    def buffer(self, name: str) -> memoryview:
        self.spec(name)
        array = self._arrays[name]
        values = np.frombuffer(self._values(array), array.dtype).reshape(
            array.spec.shape, order="F" if array.fortran else "C"
        )
        if array.dtype.byteorder == ">":
            values = values.byteswap()
        plain = np.ascontiguousarray(values).reshape(-1)
        return plain.view(np.uint8).data

    def _values(self, array: _Array) -> bytearray:
        """The bytes of an array in the file's own order."""
        data = bytearray(array.spec.size_bytes)
        if self._kind == "npy":
            self._file.read_into(memoryview(data), array.start)
            return data
        try:
            with (
                check_archive(self._path, stored_only=False) as archive,
                archive.open(f"{array.spec.name}.npy") as member,
            ):
                member.read(array.start)
                done = 0
                while done < len(data):
                    part = member.read(min(1 << 22, len(data) - done))
                    if not part:
                        break
                    data[done : done + len(part)] = part
                    done += len(part)
                # With the last byte zipfile has compared the checksum.
                if done < len(data):
                    raise self._refused(
                        array.spec.name, "does not have the length that its header states", _AGAIN
                    )
        except ARCHIVE_ERRORS as exc:
            if isinstance(exc, SourceError):
                raise
            raise self._refused(array.spec.name, f"is damaged: {exc}", _AGAIN) from exc
        return data

    def _from_npy(self) -> dict[str, _Array]:
        position = 0

        def read(size: int) -> bytes:
            nonlocal position
            data = self._file.read_at(position, min(size, self._file.size - position))
            position += len(data)
            return data

        return {"arr_0": self._parse("arr_0", read, self._file.size)}

    def _from_npz(self) -> dict[str, _Array]:
        arrays: dict[str, _Array] = {}
        with check_archive(self._path, stored_only=False) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name == info.filename:
                    raise SourceError(
                        self._path,
                        f"Its member {shown(info.filename)} is no array.",
                        "Save it again with np.savez.",
                    )
                try:
                    with archive.open(info) as member:
                        arrays[name] = self._parse(name, member.read, info.file_size)
                except ARCHIVE_ERRORS as exc:
                    if isinstance(exc, SourceError):
                        raise
                    raise self._refused(name, f"is damaged: {exc}", _AGAIN) from exc
        return arrays

    def _parse(self, name: str, read: Callable[[int], bytes], size: int) -> _Array:
        """Parse the header of an array that takes `size` bytes, header included."""
        head = read(8)
        if head[:6] != _MAGIC or len(head) < 8 or head[6] not in (1, 2, 3):
            raise self._refused(name, "has no numpy header of a known version", _AGAIN)
        width = 2 if head[6] == 1 else 4
        length = int.from_bytes(read(width), "little")
        start = 8 + width + length
        if length > _MAX_HEADER_BYTES or start > size:
            raise self._refused(
                name, f"has a header of {length:,} bytes, in a file of {size:,}", _AGAIN
            )
        text = read(length)
        try:
            # A crafted literal may hold an invalid escape, which Python only warns of.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fields = ast.literal_eval(text.decode("utf-8" if head[6] == 3 else "latin1"))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as exc:
            raise self._refused(
                name, "has a header that is no table of plain values", _AGAIN
            ) from exc
        if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
            raise self._refused(name, "has a header without descr, fortran_order and shape", _AGAIN)
        dtype = self._dtype(name, fields["descr"])
        if not isinstance(fields["shape"], tuple) or not isinstance(fields["fortran_order"], bool):
            raise self._refused(name, "has a shape that is no tuple", _AGAIN)
        shape = check_shape(fields["shape"], name, self._path)
        torch_name = numpy_name(dtype.kind, dtype.itemsize)
        if torch_name is None:
            raise self._refused(
                name, f"has the dtype {dtype.str}, which torch does not know", _PLAIN
            )
        spec = TensorSpec(name, torch_name, shape, stored_bytes(torch_name, shape))
        if start + spec.size_bytes != size:
            raise self._refused(
                name,
                f"needs {start + spec.size_bytes:,} bytes by its header and has {size:,}",
                _AGAIN,
            )
        return _Array(spec, dtype, fields["fortran_order"], start)

    def _dtype(self, name: str, descr: object) -> np.dtype[Any]:
        if not isinstance(descr, str) or len(descr) > 16:
            raise self._refused(name, "is a structured array", _PLAIN)
        try:
            dtype = np.dtype(descr)
        except (TypeError, ValueError, SyntaxError) as exc:
            raise self._refused(name, f"has the unknown dtype {shown(descr)}", _PLAIN) from exc
        if dtype.kind == "O":
            raise self._refused(
                name,
                "holds Python objects; reading them would run code, and nothing was run",
                _PLAIN,
            )
        if dtype.kind == "V":
            raise self._refused(
                name,
                f"holds raw bytes ({dtype.str}): numpy has lost their type (bfloat16?)",
                _PLAIN,
            )
        return dtype

    def _refused(self, name: str, reason: str, remedy: str) -> SourceError:
        return SourceError(self._path, f"Array {shown(name)} {reason}.", remedy)
