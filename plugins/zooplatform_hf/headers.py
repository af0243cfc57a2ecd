"""Names, shapes and dtypes of remote safetensors files, from range requests alone."""

from __future__ import annotations

from posixpath import basename
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats.limits import name_notes
from zooplatform.formats.safetensors import FORMAT, SafetensorsHeader, header_length, parse_header
from zooplatform.formats.sharded import assemble, parse_index
from zooplatform.interfaces import CheckpointHeader, SourceFile

if TYPE_CHECKING:
    from zooplatform.formats import OpenFile
    from zooplatform_hf.client import HubClient
    from zooplatform_hf.repository import RemoteFile, Repository
    from zooplatform_hf.selection import Weights

__all__ = ["HeaderReader"]

# Most headers fit: one request a file, and little traffic where they do not.
_FIRST_BYTES = 32 << 10


class HeaderReader:
    """The header of a remote checkpoint; its weights stay where they are.

    The hashes of the files cannot be checked this way; each header must describe a file of exactly
    the size that the Hub states.
    """

    step: int | None = None
    epoch: float | None = None
    opened: tuple[OpenFile, ...] = ()
    files: tuple[SourceFile, ...]

    def __init__(self, client: HubClient, repository: Repository, weights: Weights) -> None:
        self._ref = repository.ref(weights.path)
        main = repository.files[weights.path]
        if not weights.path.endswith((".safetensors", ".safetensors.index.json")):
            raise SourceError(
                self._ref,
                "Only safetensors files can be read by their header alone.",
                "Ingest it without --header-only.",
            )
        if not weights.sharded:
            parsed = _remote_header(client, repository, main)
            self.header = _header(parsed, self._ref)
            self.files = (_source_file(main, parsed),)
            return
        index = parse_index(client.content(repository, main), self._ref)
        headers: dict[str, CheckpointHeader] = {}
        files = [SourceFile(path=basename(main.path), format="shard-index", size_bytes=main.size)]
        for file in repository.shards(weights.path, index.shards):
            parsed = _remote_header(client, repository, file)
            headers[basename(file.path)] = _header(parsed, repository.ref(file.path))
            files.append(_source_file(file, parsed))
        tensors, notes = assemble(index, headers, self._ref)
        self.files = tuple(files)
        self.header = CheckpointHeader(
            tensors=tensors,
            format=FORMAT,
            metadata=next(iter(headers.values())).metadata,
            notes=(
                *notes,
                *dict.fromkeys(note for header in headers.values() for note in header.notes),
            ),
        )

    def buffer(self, name: str) -> memoryview:
        raise SourceError(
            self._ref,
            "It was opened for its header alone, so no weights can be read.",
            "Open it without header_only.",
        )

    def release(self) -> None:
        """Nothing is held."""

    def verify(self) -> None:
        """Nothing beyond the sizes, which were compared with the headers."""

    def close(self) -> None:
        """Nothing is held open."""


def _remote_header(
    client: HubClient, repository: Repository, file: RemoteFile
) -> SafetensorsHeader:
    subject = repository.ref(file.path)
    data = client.read(repository, file, 0, min(_FIRST_BYTES, file.size)) if file.size else b""
    length = header_length(data, file.size, subject)
    if length > len(data):
        data += client.read(repository, file, len(data), length)
    return parse_header(data, file.size, subject)


def _header(parsed: SafetensorsHeader, subject: str) -> CheckpointHeader:
    return CheckpointHeader(
        tensors=parsed.tensors,
        format=FORMAT,
        metadata=parsed.metadata,
        notes=name_notes(parsed.offsets, subject),
    )


def _source_file(file: RemoteFile, parsed: SafetensorsHeader) -> SourceFile:
    return SourceFile(
        path=basename(file.path),
        format=FORMAT,
        size_bytes=file.size,
        header=parsed.raw,
        tensors=parsed.names_by_offset,
    )
