"""What a Hub holds: repositories with commits, branches and files, as the loopback Hub serves them.

Contents are bytes or paths, so that large files need no memory. Hashes are the Hub's own: SHA-256
for files kept in LFS, git's blob SHA-1 for the others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Content", "HubFile", "HubRepo", "HubStore"]

Content: TypeAlias = "bytes | Path"

LFS_SUFFIXES = (
    *(".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".ot", ".pickle"),
    *(".pkl", ".pt", ".pth", ".safetensors", ".zip"),
)
LFS_SIZE = 10 * 1024 * 1024
CHUNK = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """One file of one commit; `blob_id` is git's hash of the file or, in LFS, of its pointer."""

    path: str
    content: Content
    size: int
    sha256: str
    blob_id: str
    lfs: bool

    @classmethod
    def of(cls, path: str, content: Content) -> HubFile:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        sha256 = hashlib.sha256()
        for chunk in read(content):
            sha256.update(chunk)
        lfs = size > LFS_SIZE or path.endswith(LFS_SUFFIXES)
        if lfs:
            pointer = _pointer(sha256.hexdigest(), size)
            blob_id = git_sha1(pointer, len(pointer))
        else:
            blob_id = git_sha1(content, size)
        return cls(path, content, size, sha256.hexdigest(), blob_id, lfs)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def sibling(self) -> dict[str, Any]:
        """The entry of this file in the answer of `/api/models/{id}?blobs=true`."""
        entry: dict[str, Any] = {
            "rfilename": self.path,
            "size": self.size,
            "blobId": self.blob_id,
        }
        if self.lfs:
            pointer_size = len(_pointer(self.sha256, self.size))
            entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": pointer_size}
        return entry

    def tree_entry(self) -> dict[str, Any]:
        """The entry of this file in the answer of `/api/models/{id}/tree/{revision}`."""
        entry: dict[str, Any] = {
            "type": "file",
            "oid": self.blob_id,
            "size": self.size,
            "path": self.path,
        }
        if self.lfs:
            pointer_size = len(_pointer(self.sha256, self.size))
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": pointer_size}
        return entry


@dataclass
class HubRepo:
    """A model repository: every commit ever made, and the branches and tags that point at them.

    `gated` and `private` work as on the Hub: a gated repository is described to everybody and its
    files are given to the users in `granted`; a private one is there for `granted` alone.
    """

    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(
        self,
        files: Mapping[str, Content | None],
        *,
        message: str = "Upload files",
        branch: str = "main",
    ) -> str:
        """Put `files` on top of `branch` (None deletes) and return the new commit hash."""
        parent = self.refs.get(branch, "")
        tree = dict(self.commits.get(parent, {}))
        for path, content in files.items():
            if content is None:
                tree.pop(path, None)
            else:
                tree[path] = HubFile.of(path, content)
        seed = "\n".join([parent, message, *(f"{p} {f.blob_id}" for p, f in sorted(tree.items()))])
        sha = hashlib.sha1(f"{len(self.commits)} {seed}".encode(), usedforsecurity=False)
        self.commits[sha.hexdigest()] = tree
        self.messages[sha.hexdigest()] = message
        self.refs[branch] = sha.hexdigest()
        return sha.hexdigest()

    def resolve(self, revision: str) -> str | None:
        """The commit hash of a branch, tag or (abbreviated) commit; None when there is none."""
        if revision in self.refs:
            return self.refs[revision]
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return found[0] if len(found) == 1 else None

    def info(self, sha: str, *, blobs: bool) -> dict[str, Any]:
        """The answer of `/api/models/{id}`; metadata come from the model card, as on the Hub."""
        tree = self.commits[sha]
        card = _front_matter(tree["README.md"].content) if "README.md" in tree else {}
        tags = list(card.get("tags") or [])
        if isinstance(card.get("license"), str):
            tags.append(f"license:{card['license']}")
        info: dict[str, Any] = {
            "_id": hashlib.sha1(self.id.encode(), usedforsecurity=False).hexdigest()[:24],
            "id": self.id,
            "modelId": self.id,
            "author": self.id.partition("/")[0],
            "sha": sha,
            "private": self.private,
            "gated": "auto" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "lastModified": "2024-01-01T00:00:00.000Z",
            "createdAt": "2024-01-01T00:00:00.000Z",
            "tags": tags,
            "siblings": [
                file.sibling() if blobs else {"rfilename": path} for path, file in tree.items()
            ],
        }
        if card:
            info["cardData"] = card
        for key in ("pipeline_tag", "library_name"):
            if key in card:
                info[key] = card[key]
        if "model-index" in card:
            info["model-index"] = card["model-index"]
        return info


class HubStore:
    """Repositories by id, uploaded LFS objects by SHA-256, and the users whose tokens are valid."""

    def __init__(self) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.uploads: dict[str, bytes] = {}
        self.users: dict[str, str] = {}

    def repo(
        self, repo_id: str, files: Mapping[str, Content] | None = None, **flags: Any
    ) -> HubRepo:
        """Create (or return) a repository and commit `files` to its `main`."""
        repo = self.repos.setdefault(repo_id, HubRepo(repo_id, **flags))
        if files is not None:
            repo.commit(dict(files))
        return repo

    def object(self, sha256: str) -> Content | None:
        """The LFS object of this hash, uploaded or committed."""
        if sha256 in self.uploads:
            return self.uploads[sha256]
        for repo in self.repos.values():
            for tree in repo.commits.values():
                for file in tree.values():
                    if file.lfs and file.sha256 == sha256:
                        return file.content
        return None


def read(content: Content, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of `content` from `start` up to `stop`, in chunks."""
    if isinstance(content, bytes):
        for at in range(start, len(content) if stop is None else stop, CHUNK):
            yield content[at : min(at + CHUNK, len(content) if stop is None else stop)]
        return
    with content.open("rb") as file:
        file.seek(start)
        left = (content.stat().st_size if stop is None else stop) - start
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


def git_sha1(content: Content, size: int) -> str:
    """Git's name for a blob: the SHA-1 of its header and its bytes."""
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for chunk in read(content):
        digest.update(chunk)
    return digest.hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def _front_matter(content: Content) -> dict[str, Any]:
    import yaml

    text = b"".join(read(content)).decode()
    if not text.startswith("---\n"):
        return {}
    card = yaml.safe_load(text[4:].partition("\n---")[0])
    return card if isinstance(card, dict) else {}
