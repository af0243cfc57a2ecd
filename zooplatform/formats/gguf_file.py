"""GGUF files: parsed here with every count bounded by the file's size, types and block sizes from the `gguf` library.

Quantised tensors stay bytes: their dtype is `gguf.` with the block type (`gguf.q4_k`), their shape the logical one.
GGUF writes the fastest dimension first; shapes are turned into torch's order.
"""

from __future__ import annotations

import struct
from math import prod
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats.extras import need
from zooplatform.formats.files import OpenFile
from zooplatform.formats.limits import MAX_RANK, check_shape, name_notes, shown
from zooplatform.formats.reader import ReaderBase, RegionBuffer
from zooplatform.interfaces import CheckpointHeader, SourceFile, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GgufReader"]

_AGAIN = "Copy or download it again."
# Type codes of metadata values: struct format, or the two that are composed.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4
_MAX_HEADER_BYTES = 1 << 30
_WINDOW = 1 << 20
_PLAIN = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}


class GgufReader(ReaderBase):
    """One `.gguf` file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        gguf = need("gguf", "gguf", "Reading GGUF files")
        self._file = self._own(OpenFile(path))
        cursor = _Cursor(self._file)
        if cursor.take(4) != b"GGUF":
            raise SourceError(path, "It is a big-endian GGUF file.", "Convert it to little-endian.")
        version = cursor.number("I")
        if version not in (2, 3):
            raise SourceError(
                path,
                f"It is GGUF version {version}; 2 and 3 are known.",
                "Convert it to version 3.",
            )
        # A tensor takes at least 24 bytes of the header, a metadata entry at least 13.
        num_tensors, num_entries = cursor.count(24), cursor.count(13)
        metadata: dict[str, str] = {}
        for _ in range(num_entries):
            key = cursor.text()
            if key in metadata:
                raise SourceError(path, f"Its metadata names {shown(key)} twice.", _AGAIN)
            metadata[key] = cursor.value(cursor.number("I"), 0)
        alignment = metadata.get("general.alignment", "32")
        if not alignment.isdigit() or not 1 <= int(alignment) <= 1 << 20:
            raise SourceError(path, f"Its alignment {shown(alignment)} is not possible.", _AGAIN)

        specs: list[TensorSpec] = []
        starts: dict[str, int] = {}
        for _ in range(num_tensors):
            name = cursor.text()
            if name in starts:
                raise SourceError(path, f"It names the tensor {shown(name)} twice.", _AGAIN)
            rank = cursor.number("I")
            if rank > MAX_RANK:
                raise SourceError(
                    path,
                    f"Tensor {shown(name)} has {rank} dimensions; at most {MAX_RANK} are taken.",
                    _AGAIN,
                )
            shape = check_shape(cursor.numbers("Q", rank), name, path)[::-1]
            specs.append(_spec(gguf, name, shape, cursor.number("I"), path))
            starts[name] = cursor.number("Q")
        data_start = -(-cursor.position // int(alignment)) * int(alignment)
        self._offsets = {name: data_start + start for name, start in starts.items()}
        self._check_ranges(specs, int(alignment))
        self.header = CheckpointHeader(
            tensors=tuple(specs), format="gguf", metadata=metadata, notes=name_notes(starts, path)
        )
        self.files = (
            SourceFile(
                path=path.name,
                format="gguf",
                size_bytes=self._file.size,
                tensors=tuple(sorted(starts, key=lambda name: starts[name])),
            ),
        )
        self._buffer = RegionBuffer(specs)

    def buffer(self, name: str) -> memoryview:
        size = self.spec(name).size_bytes
        return self._buffer.fill(self._file, self._offsets[name], size)

    def _check_ranges(self, specs: list[TensorSpec], alignment: int) -> None:
        """Tensors must lie inside the file, one after the other, each on a multiple of the alignment."""
        end = 0
        for spec in sorted(specs, key=lambda spec: (self._offsets[spec.name], spec.size_bytes)):
            start = self._offsets[spec.name]
            if start % alignment or start < end:
                raise SourceError(
                    self._file.path,
                    f"Tensor {shown(spec.name)} overlaps another or is not aligned.",
                    _AGAIN,
                )
            end = start + spec.size_bytes
            if end > self._file.size:
                raise SourceError(
                    self._file.path,
                    f"It is truncated: tensor {shown(spec.name)} ends at byte {end:,},"
                    f" the file has {self._file.size:,}.",
                    _AGAIN,
                )


def _spec(gguf: object, name: str, shape: tuple[int, ...], code: int, path: Path) -> TensorSpec:
    try:
        kind = gguf.GGMLQuantizationType(code)  # type: ignore[attr-defined]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]  # type: ignore[attr-defined]
    except (ValueError, KeyError) as exc:
        raise SourceError(
            path,
            f"Tensor {shown(name)} has the unknown type {code}.",
            "Update the library: pip install -U gguf",
        ) from exc
    row = shape[-1] if shape else 1
    if row % block:
        raise SourceError(
            path,
            f"Tensor {shown(name)} has rows of {row} elements, not whole blocks of {block} ({kind.name}).",
            _AGAIN,
        )
    dtype = _PLAIN.get(kind.name) or f"gguf.{kind.name.lower()}"
    return TensorSpec(name, dtype, shape, prod(shape) // block * block_bytes)


class _Cursor:
    """Reads forward through the head of a file; whatever is claimed must be there."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self.position = 0
        self._window = b""
        self._window_start = 0

    def take(self, size: int) -> bytes:
        if size > min(self._file.size, _MAX_HEADER_BYTES) - self.position:
            raise SourceError(
                self._file.path,
                f"It is truncated or damaged: {size:,} bytes are claimed at byte {self.position:,},"
                f" the file has {self._file.size:,}.",
                _AGAIN,
            )
        begin = self.position - self._window_start
        if begin < 0 or begin + size > len(self._window):
            length = min(max(size, _WINDOW), self._file.size - self.position)
            self._window, self._window_start = (
                self._file.read_at(self.position, length),
                self.position,
            )
            begin = 0
        self.position += size
        return self._window[begin : begin + size]

    def number(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def numbers(self, code: str, count: int) -> list[int]:
        return [self.number(code) for _ in range(count)]

    def count(self, least: int) -> int:
        """A count of things that take at least `least` bytes each."""
        value = self.number("Q")
        if value * least > self._file.size:
            raise SourceError(
                self._file.path,
                f"It claims {value:,} entries, more than its {self._file.size:,} bytes can hold.",
                _AGAIN,
            )
        return value

    def text(self) -> str:
        raw = self.take(self.count(1))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise SourceError(
                self._file.path, f"A text at byte {self.position:,} is not UTF-8.", _AGAIN
            ) from exc

    def value(self, kind: int, depth: int) -> str:
        """A metadata value as text; of an array (a tokenizer's vocabulary) only its length."""
        if kind in _SCALARS:
            found = struct.unpack(
                f"<{_SCALARS[kind]}", self.take(struct.calcsize(f"<{_SCALARS[kind]}"))
            )[0]
            return str(found).lower() if isinstance(found, bool) else str(found)
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth >= _MAX_NESTING:
            raise SourceError(
                self._file.path,
                f"Its metadata at byte {self.position:,} has the unknown type {kind}.",
                _AGAIN,
            )
        element = self.number("I")
        if element in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[element]}")
            count = self.count(size)
            self.skip(count * size)
        else:
            count = self.count(8)
            for _ in range(count):
                if element == _STRING:
                    self.skip(self.count(1))
                else:
                    self.value(element, depth + 1)
        return f"array of {count}"

    def skip(self, size: int) -> None:
        if size > self._file.size - self.position:
            self.take(size)
        self.position += size
