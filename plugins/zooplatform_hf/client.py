"""Everything that is asked of the Hub: descriptions, whole files and parts of files, all checked."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    hf_hub_download,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from zooplatform.errors import SourceError
from zooplatform_hf.patience import Busy, NoAnswer, Patience, httpx, patiently
from zooplatform_hf.problems import explain
from zooplatform_hf.repository import RemoteFile, Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zooplatform.interfaces import Progress
    from zooplatform_hf.reference import HubReference

__all__ = ["HubClient"]

T = TypeVar("T")
_BLOCK = 4 << 20


class HubClient:
    """The Hub at `endpoint`.

    Args:
        endpoint: by default HF_ENDPOINT, or huggingface.co.
        token: by default HF_TOKEN, or the one that `hf auth login` has stored.
        cache_dir: by default the cache of huggingface_hub.
        patience: time-outs and retries.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        cache_dir: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token
        self._cache_dir = Path(cache_dir or constants.HF_HUB_CACHE)
        self._patience = patience or Patience()

    def describe(self, reference: HubReference) -> Repository:
        """The repository at the commit that the reference's revision names now.

        Raises:
            SourceError: it is missing, private, gated, out of reach, or described wrongly.
        """
        api = HfApi(endpoint=self.endpoint, token=self._token)

        def ask() -> Repository:
            info = api.model_info(
                reference.repo_id, revision=reference.revision, files_metadata=True
            )
            return Repository.of(info, str(reference))

        return self._ask(str(reference), reference, ask)

    def fetch(
        self, repository: Repository, file: RemoteFile, progress: Progress | None = None
    ) -> Path:
        """Download a whole file into the cache, and compare its content with the Hub's hash.

        The client itself compares sizes only. A wrong content is removed from the cache and
        downloaded once more.

        Returns:
            The path inside the cache's snapshot of the commit.

        Raises:
            SourceError: the file is out of reach, or its content is wrong a second time.
        """
        subject = repository.ref(file.path)
        bar = _progress_bar(progress, f"downloading {file.path}", file.size)

        def download(force: bool) -> Path:
            return Path(
                hf_hub_download(
                    repository.id,
                    file.path,
                    revision=repository.sha,
                    endpoint=self.endpoint,
                    token=self._token,
                    cache_dir=self._cache_dir,
                    etag_timeout=self._patience.timeout,
                    force_download=force,
                    tqdm_class=bar,
                )
            )

        found = ""
        for force in (False, True):
            path = self._ask(subject, repository, partial(download, force))
            size = path.stat().st_size
            found = file.digest(_blocks(path)) if size == file.size else f"{size:,} bytes"
            if found == file.stated:
                return path
            self._forget(path)
        raise SourceError(
            subject,
            f"The download is corrupt: its {file.algorithm} is {found}, the Hub states"
            f" {file.stated}. It was downloaded twice and removed from the cache.",
            "Try again later, or from another network.",
        )

    def content(self, repository: Repository, file: RemoteFile) -> bytes:
        """The checked content of a small file, without the cache.

        Raises:
            SourceError: the file is out of reach, or its content is wrong.
        """
        data = self.read(repository, file, 0, file.size) if file.size else b""
        if file.digest((data,)) != file.stated:
            raise SourceError(
                repository.ref(file.path),
                f"The download is corrupt: its {file.algorithm} is not the one the Hub states.",
                "Try again.",
            )
        return data

    def read(self, repository: Repository, file: RemoteFile, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop` of a file, through a range request.

        Raises:
            SourceError: the file is out of reach, or the server sends other bytes than asked for.
        """
        subject = repository.ref(file.path)
        url = hf_hub_url(repository.id, file.path, revision=repository.sha, endpoint=self.endpoint)
        headers = {
            **build_hf_headers(token=self._token),
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }

        def get() -> bytes:
            # Redirects lead to storage hosts; the session drops the token on the way there.
            with get_session().stream("GET", url, headers=headers, follow_redirects=True) as reply:
                hf_raise_for_status(reply)
                skip = _first_byte(reply, start)
                data = bytearray()
                for chunk in reply.iter_bytes(chunk_size=1 << 14):
                    data += chunk
                    # A server may ignore Range and send everything: stop as soon as it is enough.
                    if len(data) >= skip + stop - start:
                        break
            if len(data) < skip + stop - start:
                raise SourceError(
                    subject, f"The Hub sends {len(data):,} bytes of {stop - start:,}.", "Try again."
                )
            return bytes(data[skip : skip + stop - start])

        return self._ask(subject, repository, get)

    def _ask(self, subject: str, target: HubReference | Repository, action: Callable[[], T]) -> T:
        try:
            return patiently(action, self._patience, self.endpoint)
        except SourceError:
            raise
        # RuntimeError comes from the Xet library, ValueError from answers that are not a Hub's
        # (no JSON, missing keys), OSError from the disk and from the client's own errors.
        except (
            *(Busy, NoAnswer, httpx.HTTPError, OSError),
            *(RuntimeError, ValueError, KeyError, TypeError),
        ) as error:
            raise explain(
                error,
                subject,
                target,
                endpoint=self.endpoint,
                cache_dir=self._cache_dir,
                patience=self._patience,
                has_token="authorization" in build_hf_headers(token=self._token),
            ) from error

    def _forget(self, path: Path) -> None:
        """Remove a file from the cache: the snapshot's link and every file it leads to."""
        while True:
            target = path.parent / path.readlink() if path.is_symlink() else None
            path.unlink(missing_ok=True)
            if target is None:
                return
            path = Path(os.path.normpath(target))
            if not path.is_relative_to(self._cache_dir.absolute()):
                return


def _first_byte(reply: Any, start: int) -> int:
    """How many bytes of the answer to skip to get to byte `start`."""
    if reply.status_code != 206:
        return start
    given = reply.headers.get("content-range", "")
    if not given.startswith(f"bytes {start}-"):
        raise SourceError(
            str(reply.url),
            f"Bytes from {start} were asked for, the answer says {given!r}.",
            "Check that HF_ENDPOINT points to a Hub, or try again later.",
        )
    return 0


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _progress_bar(progress: Progress | None, what: str, total: int) -> Any:
    """A class that the client makes its progress bar of, which hands everything to `progress`."""

    class Bar:
        def __init__(self, *_: object, initial: float = 0, **__: object) -> None:
            self.done = int(initial)

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if progress is not None:
                progress(what, self.done, total)

        def set_description(self, *_: object, **__: object) -> None:
            """Nothing to show."""

        refresh = reset = close = set_postfix_str = set_description

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to close."""

    return Bar
