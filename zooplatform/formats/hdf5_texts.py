"""Texts of varying length beside the arrays of an HDF5 file, read without the HDF5 library.

Such a text is a length, and a place in a heap. The library makes room for whatever length is stated, and follows a heap
without looking whether it gets on: four damaged bytes cost gigabytes, or the process for ever. Here the few structures
on the way (HDF5 File Format Specification, version 3: IV.A object headers, IV.A.2.m attributes, III.E global heaps) are
read with bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["Layout", "read_texts"]

_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10
# Of an object's header, the bytes of each, and objects of heaps that are passed on the way to all texts.
_MOST_BLOCKS, _MOST_BLOCK, _MOST_OBJECTS = 64, 1 << 20, 100_000


class Layout(NamedTuple):
    """Where things are: bytes before the HDF5 part, bytes of an address, and of a length."""

    base: int
    address_bytes: int
    length_bytes: int


class _Damaged(Exception):
    """Something does not fit."""


def read_texts(file: BinaryIO, layout: Layout, header: int, most: int) -> dict[str, str | None]:
    """Single texts of varying length that are attributes of an object, by name; None for those above `most` bytes.

    Attributes that lie elsewhere than in the header of the object, as more than eight may in newer files, and whatever
    is damaged are left out.

    Args:
        file: the file.
        layout: as the superblock says.
        header: address of the object.
        most: bytes of a text.
    """
    reader = _Reader(file, layout)
    found: dict[str, str | None] = {}
    try:
        for kind, data in reader.messages(header):
            if kind == _ATTRIBUTE:
                try:
                    name, value = reader.attribute(data)
                    text = reader.text(value, most)
                except _Damaged:
                    continue
                found.setdefault(name, None if text is None else text.decode("utf-8", "replace"))
    except _Damaged:
        pass
    return found


class _Reader:
    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._file, self._layout = file, layout
        self._objects_left = _MOST_OBJECTS

    def _bytes(self, address: int, number: int) -> bytes:
        """So many bytes at an address, or fewer at the end of the file."""
        if not 0 <= number <= _MOST_BLOCK or address < 0 or address >= 1 << 62:
            raise _Damaged
        self._file.seek(self._layout.base + address)
        return self._file.read(number)

    def messages(self, header: int) -> Iterator[tuple[int, bytes]]:
        """Type and data of the messages of an object, those in blocks that continue its header too."""
        start = self._bytes(header, 32)
        if start[:4] == b"OHDR":
            flags = start[5]
            at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            size = int.from_bytes(self._bytes(header + at, width), "little")
            first = self._bytes(header + at + width, size)
            plain, before = False, 4 + (2 if flags & 0x04 else 0)
        elif start[:1] == b"\x01":
            first = self._bytes(header + 16, int.from_bytes(start[8:12], "little"))
            plain, before = True, 8
        else:
            raise _Damaged
        blocks = [first]
        for number in range(_MOST_BLOCKS):
            if number >= len(blocks):
                return
            for kind, data in _parts(blocks[number], plain, before):
                if kind == _CONTINUATION:
                    blocks.append(self._continued(data, plain))
                else:
                    yield kind, data

    def _continued(self, data: bytes, plain: bool) -> bytes:
        wide = self._layout.address_bytes
        address = int.from_bytes(data[:wide], "little")
        size = int.from_bytes(data[wide : wide + self._layout.length_bytes], "little")
        block = self._bytes(address, size)
        if plain:
            return block
        if block[:4] != b"OCHK":
            raise _Damaged
        return block[4:-4]  # a signature before, a checksum after

    def attribute(self, data: bytes) -> tuple[str, bytes]:
        """Name and value of an attribute as they are stored."""
        version, sizes = data[:1], data[2:8]
        if version not in (b"\x01", b"\x02", b"\x03") or len(sizes) < 6:
            raise _Damaged
        name, kind, space = (int.from_bytes(sizes[at : at + 2], "little") for at in (0, 2, 4))
        place = 9 if version == b"\x03" else 8
        padded = _aligned if version == b"\x01" else int
        text = data[place : place + name].split(b"\0")[0].decode("utf-8", "replace")
        return text, data[place + padded(name) + padded(kind) + padded(space) :]

    def text(self, value: bytes, most: int) -> bytes | None:
        """The text that a value of length, heap and number of the object stands for; None if it is longer."""
        wide = self._layout.address_bytes
        if len(value) < 8 + wide:
            raise _Damaged
        length = int.from_bytes(value[:4], "little")
        heap = int.from_bytes(value[4 : 4 + wide], "little")
        wanted = int.from_bytes(value[4 + wide : 8 + wide], "little")
        if length > most:
            return None
        if not length:
            return b""
        width = self._layout.length_bytes
        before = _aligned(
            8 + width
        )  # what stands before a collection, and before each of its objects
        start = self._bytes(heap, before)
        if start[:5] != b"GCOL\x01":
            raise _Damaged
        place, end = heap + before, heap + int.from_bytes(start[8 : 8 + width], "little")
        while place + before <= end:
            self._objects_left -= 1
            if self._objects_left < 0:
                raise _Damaged
            found = self._bytes(place, before)
            number = int.from_bytes(found[:2], "little")
            size = int.from_bytes(found[8 : 8 + width], "little")
            if len(found) < before or not number:  # object 0 is the free space, behind all others
                raise _Damaged
            if number == wanted:
                if size < length:
                    raise _Damaged
                return self._bytes(place + before, length)
            place += before + _aligned(size)
        raise _Damaged


def _parts(block: bytes, plain: bool, before: int) -> Iterator[tuple[int, bytes]]:
    """Type and data of the messages of a block."""
    place = 0
    while place + before <= len(block):
        if plain:
            kind = int.from_bytes(block[place : place + 2], "little")
            size = int.from_bytes(block[place + 2 : place + 4], "little")
        else:
            kind = block[place]
            size = int.from_bytes(block[place + 1 : place + 3], "little")
        place += before
        yield kind, block[place : place + size]
        place += size


def _aligned(number: int) -> int:
    return -(-number // 8) * 8
