"""A repository at one commit, as the Hub describes it, checked before anything of it is used."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from posixpath import dirname
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform_hf.reference import SCHEME, is_safe_path, is_safe_repo_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    import huggingface_hub

__all__ = ["RemoteFile", "Repository"]

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a commit: what the Hub states about its content.

    `sha256` is there for files kept in LFS; for the others `blob_id` is git's SHA-1 of the content.
    """

    path: str
    size: int
    blob_id: str | None
    sha256: str | None

    def digest(self, blocks: Iterable[bytes]) -> str:
        """The hash of a content, of the kind that the Hub states for this file."""
        if self.sha256 is not None:
            digest = hashlib.sha256()
        else:
            # git names a blob by the SHA-1 of its type, size and content.
            digest = hashlib.sha1(usedforsecurity=False)
            digest.update(f"blob {self.size}\0".encode())
        for block in blocks:
            digest.update(block)
        return digest.hexdigest()

    @property
    def stated(self) -> str | None:
        """The hash that the Hub states."""
        return self.sha256 or self.blob_id

    @property
    def algorithm(self) -> str:
        return "SHA-256" if self.sha256 is not None else "git SHA-1"


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit.

    Attributes:
        id: the name the Hub itself uses (a renamed repository answers with its new name).
        sha: the commit.
        files: by path.
        info: the Hub's description, for metadata.
    """

    id: str
    sha: str
    files: dict[str, RemoteFile]
    info: huggingface_hub.ModelInfo

    @classmethod
    def of(cls, info: huggingface_hub.ModelInfo, subject: str) -> Repository:
        """Check a description.

        Raises:
            SourceError: it names no commit, states no content hash for a file, or has a file whose
                name climbs out of the repository's folder.
        """
        answer = "Check that HF_ENDPOINT points to a Hub."
        if not isinstance(info.id, str) or not is_safe_repo_id(info.id):
            raise SourceError(subject, f"The Hub calls it {str(info.id)[:200]!r}.", answer)
        if not isinstance(info.sha, str) or not _SHA1.fullmatch(info.sha):
            raise SourceError(subject, "The Hub names no commit for this revision.", answer)
        files = {}
        for entry in info.siblings or ():
            path = entry.rfilename
            if not is_safe_path(path):
                raise SourceError(
                    subject,
                    f"It lists a file {path[:200]!r}, whose name leads out of the repository.",
                    "Nothing of it was taken; tell its author or the Hub.",
                )
            sha256 = entry.lfs.sha256 if entry.lfs is not None else None
            size = entry.lfs.size if entry.lfs is not None else entry.size
            stated, shape = (sha256, _SHA256) if sha256 else (entry.blob_id, _SHA1)
            if not isinstance(size, int) or not stated or not shape.fullmatch(stated):
                raise SourceError(
                    subject,
                    f"The Hub states no size or content hash for {path[:200]!r}, so that a download"
                    " could not be checked.",
                    answer,
                )
            files[path] = RemoteFile(path, size, entry.blob_id, sha256)
        return cls(info.id, info.sha, files, info)

    def ref(self, path: str = "") -> str:
        """The canonical reference of this commit, or of a file of it."""
        return f"{SCHEME}:{self.id}@{self.sha}" + (f"/{path}" if path else "")

    def shards(self, index_path: str, names: Iterable[str]) -> list[RemoteFile]:
        """The files of a sharded set, which lie beside their index.

        Raises:
            SourceError: one is missing.
        """
        folder = dirname(index_path)
        paths = [f"{folder}/{name}" if folder else name for name in names]
        for path in paths:
            if path not in self.files:
                raise SourceError(
                    self.ref(index_path),
                    f"The shard {path} is not in the repository.",
                    "Tell its author; nothing of it was stored.",
                )
        return [self.files[path] for path in paths]
