"""The routes of the loopback Hub: repository information, downloads with ranges, and uploads.

Refusals are told by header, as the Hub does: `X-Error-Code` names the kind and `X-Error-Message`
explains it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from zooplatform.testing.hub_store import LFS_SIZE, LFS_SUFFIXES, Content, HubRepo, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zooplatform.testing.hub import LoopbackHub

__all__ = ["Reply", "answer"]


@dataclass
class Reply:
    """Status, headers and body (`length` bytes in `chunks`)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterable[bytes] = ()
    length: int = 0


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.reply = _json({"error": message or code}, status)
        if code:
            self.reply.headers["X-Error-Code"] = code
        if message:
            self.reply.headers["X-Error-Message"] = message
        self.reply.headers.update({k.replace("_", "-"): v for k, v in headers.items()})


def answer(
    hub: LoopbackHub, method: str, target: str, headers: Mapping[str, str], body: bytes
) -> Reply:
    """The Hub's answer to one request."""
    url = urlsplit(target)
    path = url.path
    query = parse_qs(url.query, keep_blank_values=True)
    try:
        user = _user(hub, headers)
        if path == "/api/whoami-v2" and method == "GET":
            if user is None:
                raise _Refusal(401, message="Invalid username or password.")
            return _json({"name": user, "type": "user", "orgs": []})
        if path == "/api/validate-yaml" and method == "POST":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create" and method == "POST":
            return _create(hub, user, json.loads(body))
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            return _object(hub, method, match[1], headers, body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", path):
            _writable(hub, match[1], user)
            return _lfs(hub, match[1], match[2], json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/(revision|tree)/(.+))?", path):
            repo = _visible(hub, match[1], user)
            return _describe(repo, match[2], unquote(match[3] or "main"), query)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path):
            repo = _writable(hub, match[1], user)
            return _write(hub, repo, match[2], unquote(match[3]), body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = _visible(hub, match[1], user)
            if repo.gated and user not in repo.granted:
                raise _Refusal(
                    403 if user else 401, "GatedRepo", f"Access to model {repo.id} is restricted."
                )
            return _resolve(hub, repo, unquote(match[2]), unquote(match[3]), method, headers)
        raise _Refusal(404, message=f"No route {method} {path}")
    except _Refusal as refusal:
        return refusal.reply


# --- who asks, and what may be seen --------------------------------------------------------------


def _user(hub: LoopbackHub, headers: Mapping[str, str]) -> str | None:
    given = headers.get("authorization") or ""
    if not given:
        return None
    user = hub.store.users.get(given.removeprefix("Bearer "))
    if user is None:
        raise _Refusal(401, message="Invalid credentials in Authorization header")
    return user


def _visible(hub: LoopbackHub, repo_id: str, user: str | None) -> HubRepo:
    repo = hub.store.repos.get(repo_id)
    if repo is None or (repo.private and user not in repo.granted):
        # The Hub does not tell a stranger whether a repository exists.
        raise _Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
    return repo


def _writable(hub: LoopbackHub, repo_id: str, user: str | None) -> HubRepo:
    repo = _visible(hub, repo_id, user)
    if user is None:
        raise _Refusal(401, message="Invalid username or password.")
    if user != repo.id.partition("/")[0] and user not in repo.granted:
        raise _Refusal(403, message=f"You have no write access to {repo.id}")
    return repo


def _commit_of(repo: HubRepo, revision: str) -> str:
    sha = repo.resolve(revision)
    if sha is None:
        raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return sha


# --- reading -------------------------------------------------------------------------------------


def _describe(repo: HubRepo, what: str | None, rest: str, query: Mapping[str, Any]) -> Reply:
    if what != "tree":
        return _json(repo.info(_commit_of(repo, rest), blobs="blobs" in query))
    revision, _, folder = rest.partition("/")
    tree = repo.commits[_commit_of(repo, revision)]
    return _json([f.tree_entry() for f in tree.values() if f.path.startswith(folder)])


def _resolve(
    hub: LoopbackHub,
    repo: HubRepo,
    revision: str,
    path: str,
    method: str,
    headers: Mapping[str, str],
) -> Reply:
    sha = _commit_of(repo, revision)
    file = repo.commits[sha].get(path)
    if file is None:
        raise _Refusal(404, "EntryNotFound", f"{path} does not exist", X_Repo_Commit=sha)
    about = {
        "X-Repo-Commit": sha,
        "ETag": f'"{file.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if file.lfs and hub.cdn is not None:
        about |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        return Reply(302, {**about, "Location": f"{hub.cdn.url}/lfs/{file.sha256}"})
    return _bytes(file.content, file.size, about, headers)


def _bytes(content: Content, size: int, about: dict[str, str], headers: Mapping[str, str]) -> Reply:
    """The whole content, or the part that Range asks for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range") or "")
    if asked is None:
        return Reply(200, about, read(content), size)
    start, stop = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else size, size)
    if start >= size:
        raise _Refusal(416, message="Range not satisfiable", Content_Range=f"bytes */{size}")
    about = {**about, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Reply(206, about, read(content, start, stop), stop - start)


def _object(
    hub: LoopbackHub, method: str, sha256: str, headers: Mapping[str, str], body: bytes
) -> Reply:
    """LFS objects by hash: the signed URLs of the real Hub, which need no token."""
    if method == "PUT":
        if hashlib.sha256(body).hexdigest() != sha256:
            raise _Refusal(400, message="The content has another SHA-256")
        hub.store.uploads[sha256] = body
        return Reply(200)
    content = hub.store.object(sha256)
    if content is None:
        raise _Refusal(404, message="No such object")
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return _bytes(content, size, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}, headers)


# --- writing -------------------------------------------------------------------------------------


def _create(hub: LoopbackHub, user: str | None, asked: Mapping[str, Any]) -> Reply:
    if user is None:
        raise _Refusal(401, message="Invalid username or password.")
    owner = asked.get("organization") or user
    repo_id = f"{owner}/{asked['name']}"
    if owner != user and owner not in hub.store.users.values():
        raise _Refusal(403, message=f"You have no write access to {owner}")
    if repo_id in hub.store.repos:
        # The client goes on with the address when the caller does not mind that it exists.
        there = {"error": "You already created this model repo", "url": f"{hub.url}/{repo_id}"}
        return _json(there, 409)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    repo = hub.store.repo(repo_id, {".gitattributes": b""}, private=private)
    repo.granted.add(user)
    return _json({"url": f"{hub.url}/{repo_id}", "name": repo_id, "id": repo_id})


def _lfs(hub: LoopbackHub, repo_id: str, what: str, asked: Mapping[str, Any]) -> Reply:
    if what == "verify":
        if asked["oid"] not in hub.store.uploads:
            raise _Refusal(404, message="The object was not uploaded")
        return _json({})
    objects = []
    for wanted in asked["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if hub.store.object(wanted["oid"]) is None:
            entry["actions"] = {
                "upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"},
                "verify": {"href": f"{hub.url}/{repo_id}.git/info/lfs/objects/verify"},
            }
        objects.append(entry)
    return _json({"transfer": "basic", "objects": objects})


def _write(hub: LoopbackHub, repo: HubRepo, what: str, branch: str, body: bytes) -> Reply:
    if what == "preupload":
        tree = repo.commits.get(repo.refs.get(branch, ""), {})
        files = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            lfs = asked["size"] > LFS_SIZE or path.endswith(LFS_SUFFIXES)
            old = tree.get(path)
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": old.etag if old else None,
                }
            )
        return _json({"files": files})
    message = ""
    changes: dict[str, Content | None] = {}
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            message = value["summary"]
            stale = value.get("parentCommit") not in (None, repo.refs.get(branch))
            if stale:
                raise _Refusal(412, message="A commit has happened since")
        elif entry["key"] == "file":
            changes[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            content = hub.store.object(value["oid"])
            if content is None:
                raise _Refusal(400, message=f"LFS object of {value['path']} is missing")
            changes[value["path"]] = content
        elif entry["key"] == "deletedFile":
            changes[value["path"]] = None
    sha = repo.commit(changes, message=message, branch=branch)
    return _json(
        {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo.id}/commit/{sha}"}
    )


def _json(value: object, status: int = 200) -> Reply:
    data = json.dumps(value, default=str).encode()
    return Reply(status, {"Content-Type": "application/json"}, [data], len(data))
