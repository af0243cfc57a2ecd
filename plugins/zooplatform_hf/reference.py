"""References to the Hub: `org/name[@revision][/file]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from zooplatform.errors import SourceError

__all__ = ["SCHEME", "HubReference", "is_safe_path", "is_safe_repo_id"]

SCHEME = "hf-hub"
SHAPE = "Write hf-hub:org/name, hf-hub:org/name@revision or hf-hub:org/name@revision/file."

_REPO_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
# Branches that hold a slash are written as in URLs (a%2Fb), except for these well-known ones.
_REVISION = re.compile(r"refs/(?:pr|convert)/[^/]+|[^/]+")


@dataclass(frozen=True)
class HubReference:
    """A parsed reference; `path` names a file or a folder of the repository, empty for the whole."""

    repo_id: str
    revision: str | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str, *, revision: str | None = None) -> HubReference:
        """Read the text after `hf-hub:`; `revision` is one that was given beside it.

        Raises:
            SourceError: the text has another form, or names two different revisions.
        """
        whole = f"{SCHEME}:{text}"
        repo_id, at, rest = text.partition("@")
        given: str | None = None
        if at:
            match = _REVISION.match(rest)
            if match is None:
                raise SourceError(whole, "there is no revision after the @.", SHAPE)
            given, rest = unquote(match[0]), rest[match.end() :]
        else:
            parts = text.split("/", 2)
            repo_id, rest = "/".join(parts[:2]), "/".join(["", *parts[2:]])
        path = rest.strip("/")
        if not is_safe_repo_id(repo_id):
            raise SourceError(whole, f"{repo_id!r} is not the name of a repository.", SHAPE)
        if path and not is_safe_path(path):
            raise SourceError(whole, f"{path!r} is not the path of a file in a repository.", SHAPE)
        if revision is not None and given is not None and revision != given:
            raise SourceError(
                whole, f"the revision {revision!r} was given as well.", "Give one of the two."
            )
        return cls(repo_id, given if given is not None else revision, path)

    def __str__(self) -> str:
        revision = "" if self.revision is None else "@" + self.revision.replace("/", "%2F")
        return f"{SCHEME}:{self.repo_id}{revision}" + (f"/{self.path}" if self.path else "")


def is_safe_repo_id(repo_id: str) -> bool:
    """Whether this is `name` or `org/name` in the Hub's alphabet."""
    return (
        _REPO_ID.fullmatch(repo_id) is not None
        and ".." not in repo_id
        and "--" not in repo_id
        and all(part[:1] not in "-." for part in repo_id.split("/"))
    )


def is_safe_path(path: str) -> bool:
    """Whether `path` stays inside the folder that it is joined to, on every system."""
    parts = path.split("/")
    return (
        all(part not in ("", ".", "..") for part in parts)
        and not any(mark in path for mark in ("\\", "\0"))
        and ":" not in parts[0]
    )
