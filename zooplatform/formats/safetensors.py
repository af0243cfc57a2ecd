"""The safetensors format: a strict parser of its header and a reader in bounded memory.

The parser works on bytes, so that a source can parse a header that came by a range request. It refuses what the
reference implementation refuses and, beyond that, names given twice and absurd shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats.dtypes import SAFETENSORS
from zooplatform.formats.files import OpenFile
from zooplatform.formats.limits import check_shape, load_json, name_notes, shown
from zooplatform.formats.reader import ReaderBase, RegionBuffer
from zooplatform.interfaces import CheckpointHeader, SourceFile, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FORMAT",
    "MAX_HEADER_BYTES",
    "SafetensorsHeader",
    "SafetensorsReader",
    "header_length",
    "looks_like",
    "parse_header",
]

FORMAT = "safetensors"
MAX_HEADER_BYTES = 100_000_000
_AGAIN = "Copy or download it again, or ask its author for a whole file."


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A parsed header.

    Attributes:
        raw: the exact bytes of the file before its first weight, length bytes included.
        tensors: in the order of the header.
        offsets: name -> first byte of the tensor in the file; its length is the spec's `size_bytes`.
        metadata: the file's own string metadata.
        data_end: size that the whole file must have.
    """

    raw: bytes
    tensors: tuple[TensorSpec, ...]
    offsets: dict[str, int]
    metadata: dict[str, str]
    data_end: int

    @property
    def names_by_offset(self) -> tuple[str, ...]:
        """Tensor names in the order of their bytes."""
        return tuple(sorted(self.offsets, key=lambda name: self.offsets[name]))


def looks_like(head: bytes, file_size: int) -> bool:
    """Whether a file that starts with `head` (16 bytes are enough) claims to be safetensors."""
    return (
        len(head) >= 9
        and head[8:9] == b"{"
        and int.from_bytes(head[:8], "little") <= max(file_size, MAX_HEADER_BYTES)
    )


def header_length(prefix: bytes, file_size: int, subject: object) -> int:
    """Bytes of the header including its 8 length bytes, from the first 8 bytes of a file.

    Raises:
        SourceError: no such header can be in a file of `file_size` bytes.
    """
    if len(prefix) < 8 or file_size < 8:
        raise SourceError(
            subject, f"It is truncated: {file_size} bytes hold no safetensors header.", _AGAIN
        )
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise SourceError(
            subject,
            f"Its header claims {length:,} bytes; at most {MAX_HEADER_BYTES:,} are taken.",
            _AGAIN,
        )
    if 8 + length > file_size:
        raise SourceError(
            subject,
            f"It is truncated: the header needs {8 + length:,} bytes, the file has {file_size:,}.",
            _AGAIN,
        )
    return 8 + length


def parse_header(data: bytes, file_size: int, subject: object) -> SafetensorsHeader:
    """Parse and check a header.

    Args:
        data: the first bytes of the file, at least `header_length` of them.
        file_size: size of the whole file in bytes.
        subject: what error texts call the file.

    Raises:
        SourceError: the header is malformed, or does not describe a file of this size without holes and overlaps.
    """
    length = header_length(data, file_size, subject)
    if len(data) < length:
        raise SourceError(
            subject, f"The first {length:,} bytes are needed, {len(data):,} were given.", _AGAIN
        )
    raw = bytes(data[:length])
    if raw[8:9] != b"{":
        raise SourceError(subject, "Its header is not a JSON object.", _AGAIN)
    table = load_json(raw[8:], subject, "The header")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SourceError(
            subject, "Its __metadata__ is not a table of strings.", "Save the file again."
        )

    specs: list[TensorSpec] = []
    offsets: dict[str, int] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in table.items():
        spec, begin, end = _entry(name, entry, subject)
        specs.append(spec)
        offsets[name] = length + begin
        ranges.append((begin, end, name))

    expected = 0
    for begin, end, name in sorted(ranges):
        if begin != expected:
            what = (
                "overlaps another tensor"
                if begin < expected
                else f"leaves a hole of {begin - expected:,} bytes"
            )
            raise SourceError(
                subject,
                f"Tensor {shown(name)} {what} (byte {begin:,}, expected {expected:,}).",
                _AGAIN,
            )
        expected = end
    if length + expected != file_size:
        what = (
            "truncated"
            if length + expected > file_size
            else "followed by bytes that belong to no tensor"
        )
        raise SourceError(
            subject,
            f"It is {what}: the header describes {length + expected:,} bytes, the file has {file_size:,}.",
            _AGAIN,
        )
    return SafetensorsHeader(raw, tuple(specs), offsets, metadata, file_size)


def _entry(name: str, entry: object, subject: object) -> tuple[TensorSpec, int, int]:
    """The spec of one tensor and its byte range behind the header."""
    where = f"Tensor {shown(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SourceError(
            subject, f"{where} is not described by exactly dtype, shape and data_offsets.", _AGAIN
        )
    code, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(code, str) or code not in SAFETENSORS:
        raise SourceError(
            subject,
            f"{where} has the unknown dtype {shown(str(code))}.",
            f"Known: {', '.join(SAFETENSORS)}.",
        )
    if not isinstance(entry["shape"], list):
        raise SourceError(subject, f"{where} has a shape that is not a list.", _AGAIN)
    shape = check_shape(entry["shape"], name, subject)
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(not isinstance(o, int) or isinstance(o, bool) for o in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise SourceError(
            subject,
            f"{where} has the data_offsets {str(offsets)[:80]}; two rising whole numbers are needed.",
            _AGAIN,
        )
    dtype, bits = SAFETENSORS[code]
    total_bits = prod(shape) * bits
    if total_bits % 8 or total_bits // 8 != offsets[1] - offsets[0]:
        raise SourceError(
            subject,
            f"{where} has {offsets[1] - offsets[0]:,} bytes, but shape {list(shape)} of {code} "
            f"needs {total_bits / 8:,.10g}.",
            _AGAIN,
        )
    if code == "F4":
        # Two elements share a byte; torch's type counts the bytes of the last dimension.
        if shape and shape[-1] % 2 == 0:
            shape = (*shape[:-1], shape[-1] // 2)
        else:
            dtype = "f4"
    return TensorSpec(name, dtype, shape, total_bits // 8), offsets[0], offsets[1]


class SafetensorsReader(ReaderBase):
    """One `.safetensors` file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        file = self._file = self._own(OpenFile(path))
        length = header_length(file.read_at(0, min(8, file.size)), file.size, path)
        self.parsed = parse_header(file.read_at(0, length), file.size, path)
        self.header = CheckpointHeader(
            tensors=self.parsed.tensors,
            format=FORMAT,
            metadata=self.parsed.metadata,
            notes=name_notes(self.parsed.offsets, path),
        )
        self.files = (
            SourceFile(
                path=path.name,
                format=FORMAT,
                size_bytes=file.size,
                header=self.parsed.raw,
                tensors=self.parsed.names_by_offset,
            ),
        )
        self._buffer = RegionBuffer(self.parsed.tensors)

    def buffer(self, name: str) -> memoryview:
        return self._buffer.fill(self._file, self.parsed.offsets[name], self.spec(name).size_bytes)

    def release(self) -> None:
        self._buffer.release()
