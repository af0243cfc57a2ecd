"""Source `local:`: checkpoints in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats import (
    FileCheckpoint,
    OpenFile,
    checkpoint_files,
    open_reader,
    sha256_file,
    sha256_of_set,
)
from zooplatform.interfaces import ModelInfo, ModelRef
from zooplatform_local.finding import SUFFIXES, find_checkpoints
from zooplatform_local.snapshot import read_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.formats.files import FileStamp
    from zooplatform.interfaces import Checkpoint, Progress

__all__ = ["SCHEME", "LocalSource"]

SCHEME = "local"
# Names that say nothing about the model; the folder's name does.
_PLAIN_NAMES = frozenset(
    (
        "model",
        "pytorch_model",
        "diffusion_pytorch_model",
        "adapter_model",
        "checkpoint",
        "weights",
        "best",
        "last",
    )
)


class LocalSource:
    """Checkpoints behind `local:path`, where path is a file, a folder or a glob.

    The revision of a checkpoint is the SHA-256 of its content. A file is hashed once: the hash is kept with what would
    change with the file, and what is read later is compared with that.
    """

    def __init__(self) -> None:
        self._hashes: dict[Path, tuple[FileStamp, str]] = {}

    def list(
        self, ref: str, *, revision: str | None = None, limit: int | None = None
    ) -> Iterator[ModelRef]:
        """The checkpoints that `ref` names. One that cannot be read is listed too: opening it says why.

        Raises:
            SourceError: nothing is there, or it is not of the wanted revision.
        """
        if not ref:
            raise SourceError(
                f"{SCHEME}:", "It names no file.", f"Give a path: {SCHEME}:folder/model.safetensors"
            )
        for count, path in enumerate(find_checkpoints(ref)):
            if limit is not None and count >= limit:
                return
            try:
                found = self._revision(path, self._digests(path, None))
            except SourceError:
                found = ""
            if (
                revision
                and found
                and not found.removeprefix("sha256:").startswith(revision.removeprefix("sha256:"))
            ):
                raise SourceError(
                    path,
                    f"Its revision is {found}, not {revision}.",
                    "Leave --revision away to take what is there.",
                )
            yield ModelRef(ref=f"{SCHEME}:{path}", name=_name(path), revision=found, key=path.name)

    def open(
        self, ref: ModelRef, *, header_only: bool = False, progress: Progress | None = None
    ) -> Checkpoint:
        """Open one checkpoint.

        Raises:
            SourceError: the file is refused, or is another than was listed.
        """
        path = Path(ref.ref.removeprefix(f"{SCHEME}:"))
        digests = self._digests(path, progress)
        revision = self._revision(path, digests)
        if ref.revision and ref.revision != revision:
            raise SourceError(path, "It was changed since it was listed.", "Try again.")
        reader = open_reader(path)
        try:
            for file in reader.opened:
                if self._hashes[file.path][0] != file.stamp:
                    raise SourceError(
                        path, f"{file.path.name} was changed while it was opened.", "Try again."
                    )
        except SourceError:
            reader.close()
            raise
        snapshot = read_snapshot(path.parent)
        info = ModelInfo(
            key=path.name,
            name=_name(path),
            source=f"{SCHEME}:{path}",
            revision=revision,
            license=snapshot.license,
            base_model=snapshot.base_model,
            metadata=snapshot.metadata,
            lineage=snapshot.lineage,
        )
        return FileCheckpoint(
            reader, info, sha256=digests, config=snapshot.config or None, notes=snapshot.notes
        )

    def _digests(self, path: Path, progress: Progress | None) -> dict[str, str]:
        """SHA-256 of every file of the checkpoint at `path`, by its name as seen from the folder."""
        return {
            file.relative_to(path.parent).as_posix(): self._hash(file, progress)
            for file in checkpoint_files(path)
        }

    def _hash(self, path: Path, progress: Progress | None) -> str:
        with OpenFile(path) as file:
            known = self._hashes.get(path)
            if known is not None and known[0] == file.stamp:
                return known[1]
            digest = sha256_file(file, progress)
            file.check_unchanged()
            self._hashes[path] = (file.stamp, digest)
            return digest

    @staticmethod
    def _revision(path: Path, digests: dict[str, str]) -> str:
        if len(digests) == 1:
            return f"sha256:{digests[path.name]}"
        return f"sha256:{sha256_of_set(digests.items())}"


def _name(path: Path) -> str:
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix) or name
    return path.parent.name if name in _PLAIN_NAMES and path.parent.name else name
