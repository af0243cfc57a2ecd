"""Checkpoints in several files, through an index (`*.safetensors.index.json`, `*.bin.index.json`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats.files import OpenFile, allowed_root, inside
from zooplatform.formats.limits import load_json, shown
from zooplatform.formats.reader import Reader, ReaderBase
from zooplatform.interfaces import CheckpointHeader, SourceFile, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "MAX_INDEX_BYTES",
    "ShardIndex",
    "ShardedReader",
    "assemble",
    "parse_index",
    "read_index",
    "shard_paths",
]

MAX_INDEX_BYTES = 100_000_000
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_COMPLETE = "Get the whole set of files again, index included."


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """A parsed index: tensor name -> shard file name, in state-dict order, and what it claims in all."""

    weight_map: dict[str, str]
    total_size: int | None

    @property
    def shards(self) -> tuple[str, ...]:
        """File names, in the order in which they are first named."""
        return tuple(dict.fromkeys(self.weight_map.values()))


def parse_index(data: bytes, subject: object) -> ShardIndex:
    """Parse and check an index.

    Raises:
        SourceError: it is malformed, names a tensor twice, or names a file by more than a plain name.
    """
    if len(data) > MAX_INDEX_BYTES:
        raise SourceError(
            subject,
            f"The index has {len(data):,} bytes; at most {MAX_INDEX_BYTES:,} are taken.",
            _COMPLETE,
        )
    table = load_json(data, subject, "The index")
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(subject, "The index has no weight_map.", _COMPLETE)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise SourceError(
                subject,
                f"The index puts tensor {shown(name)} into {shown(str(shard))}, which is not a plain file name.",
                "Shards must lie beside their index.",
            )
    metadata = table.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return ShardIndex(weight_map, total if type(total) is int else None)


def read_index(path: Path) -> ShardIndex:
    """The index at `path`, whether or not its shards are there."""
    with OpenFile(path) as file:
        return parse_index(file.read_at(0, min(file.size, MAX_INDEX_BYTES + 1)), path)


def shard_paths(path: Path) -> tuple[ShardIndex, tuple[Path, ...]]:
    """The index at `path` and its shard files, which must be there and inside the folder, links followed."""
    index = read_index(path)
    root = allowed_root(path.parent)
    paths = tuple(inside(path.parent, shard, root, path) for shard in index.shards)
    for shard in paths:
        if not shard.is_file():
            raise SourceError(path, f"The shard {shard.name} is missing.", _COMPLETE)
    return index, paths


def assemble(
    index: ShardIndex, headers: dict[str, CheckpointHeader], subject: object
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    """All tensors in the order of the index, and notes; `headers` by shard file name.

    Raises:
        SourceError: a shard holds a tensor that the index does not put there, or lacks one that it does.
    """
    specs: dict[str, TensorSpec] = {}
    for shard, header in headers.items():
        for spec in header.tensors:
            home = index.weight_map.get(spec.name)
            if home != shard:
                where = "does not name it" if home is None else f"puts it into {home}"
                raise SourceError(
                    subject,
                    f"Tensor {shown(spec.name)} is in {shard}, but the index {where}.",
                    _COMPLETE,
                )
            specs[spec.name] = spec
    missing = [name for name in index.weight_map if name not in specs]
    if missing:
        raise SourceError(
            subject,
            f"{len(missing)} tensor(s) are not in the shard that the index names, first {shown(missing[0])}"
            f" in {index.weight_map[missing[0]]}.",
            _COMPLETE,
        )
    held = sum(spec.size_bytes for spec in specs.values())
    notes: tuple[str, ...] = ()
    if index.total_size is not None and index.total_size != held:
        notes = (f"the index claims {index.total_size:,} bytes, the shards hold {held:,}",)
    return tuple(specs[name] for name in index.weight_map), notes


class ShardedReader(ReaderBase):
    """An index and its shards, each read by the reader of its own format.

    Args:
        path: the index.
        open_shard: opens one shard; given by `open_reader`, which knows the formats.
    """

    def __init__(self, path: Path, open_shard: Callable[[Path], Reader]) -> None:
        super().__init__()
        index, paths = shard_paths(path)
        index_file = self._own(OpenFile(path))
        self._readers: dict[str, Reader] = {}
        self._reading: Reader | None = None
        try:
            for shard in paths:
                self._readers[shard.name] = open_shard(shard)
            headers = {name: reader.header for name, reader in self._readers.items()}
            tensors, notes = assemble(index, headers, path)
        except BaseException:
            self.close()
            raise
        self._home = index.weight_map
        first = next(iter(headers.values()))
        self.header = CheckpointHeader(
            tensors=tensors,
            format=first.format,
            metadata=first.metadata,
            tied={a: b for header in headers.values() for a, b in header.tied.items()},
            notes=(
                *notes,
                *dict.fromkeys(note for header in headers.values() for note in header.notes),
            ),
        )
        self.files = (
            SourceFile(
                path=path.name,
                format="shard-index",
                size_bytes=index_file.size,
                header=index_file.read_at(0, index_file.size),
            ),
            *(file for reader in self._readers.values() for file in reader.files),
        )

    @property
    def opened(self) -> tuple[OpenFile, ...]:
        return (*self._opened, *(f for reader in self._readers.values() for f in reader.opened))

    def buffer(self, name: str) -> memoryview:
        self.spec(name)
        reader = self._readers[self._home[name]]
        if self._reading is not None and self._reading is not reader:
            # Shards are read one after another: one buffer at a time, not one for each.
            self._reading.release()
        self._reading = reader
        return reader.buffer(name)

    def verify(self) -> None:
        super().verify()
        for reader in self._readers.values():
            reader.verify()

    def close(self) -> None:
        super().close()
        for reader in self._readers.values():
            reader.close()
