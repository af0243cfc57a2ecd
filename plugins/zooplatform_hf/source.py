"""Source `hf-hub:`: repositories of the Hugging Face Hub as checkpoints."""

from __future__ import annotations

from dataclasses import replace
from posixpath import dirname
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError
from zooplatform.formats import FileCheckpoint, open_reader
from zooplatform.formats.limits import load_json
from zooplatform.formats.sharded import parse_index
from zooplatform.interfaces import ModelRef
from zooplatform_hf.card import model_key, read_card
from zooplatform_hf.client import HubClient
from zooplatform_hf.headers import HeaderReader
from zooplatform_hf.reference import SCHEME, HubReference
from zooplatform_hf.selection import Weights, choose

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.formats import Reader
    from zooplatform.interfaces import Checkpoint, Progress
    from zooplatform_hf.patience import Patience
    from zooplatform_hf.repository import Repository

__all__ = ["HubSource"]

_MAX_CONFIG_BYTES = 10_000_000


class HubSource:
    """Checkpoints behind `hf-hub:org/name[@revision][/file or folder]`.

    Every revision is resolved to a commit hash once, and everything is read from that commit. Whole
    files go through the cache of huggingface_hub and are compared with the hashes the Hub states.

    Args:
        endpoint, token, cache_dir: by default what huggingface_hub itself uses (HF_ENDPOINT,
            HF_TOKEN, HF_HOME).
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
        self._client = HubClient(
            endpoint=endpoint, token=token, cache_dir=cache_dir, patience=patience
        )
        # The last repository that was described: `list` and `open` come one after the other.
        self._described: tuple[HubReference, Repository] | None = None

    def list(
        self, ref: str, *, revision: str | None = None, limit: int | None = None
    ) -> Iterator[ModelRef]:
        """The checkpoints that `ref` names, at one commit.

        Raises:
            SourceError: the reference is malformed, the repository is missing, private, gated or out
                of reach, or it holds no weights there.
        """
        reference = HubReference.parse(ref, revision=revision)
        repository = self._client.describe(reference)
        for weights in _weights(repository, reference)[:limit]:
            path = "" if weights.implied else weights.path
            exact = HubReference(repository.id, repository.sha, path)
            self._described = (exact, repository)
            name = repository.id + (f"/{path}" if path else "")
            key = model_key(repository.id, path)
            yield ModelRef(ref=str(exact), name=name, revision=repository.sha, key=key)

    def open(
        self, ref: ModelRef, *, header_only: bool = False, progress: Progress | None = None
    ) -> Checkpoint:
        """Open one checkpoint: download and check its files or, for the header, parts of them.

        Raises:
            SourceError: a file is out of reach, is not what the Hub states, or is refused.
        """
        reference = HubReference.parse(ref.ref.removeprefix(f"{SCHEME}:"), revision=None)
        repository = self._repository(reference)
        weights = _weights(repository, reference)
        if len(weights) != 1:
            raise SourceError(
                ref.ref,
                f"It names {len(weights)} checkpoints: {_some(w.path for w in weights)}.",
                "Name one of them.",
            )
        (chosen,) = weights
        card = read_card(repository, "" if chosen.implied else chosen.path)
        config, notes = self._config(repository, dirname(chosen.path))
        if chosen.left_out:
            notes += (
                f"left out {len(chosen.left_out)} other file(s) of weights:"
                f" {_some(chosen.left_out)}",
            )
        reader: Reader
        sha256: dict[str, str] = {}
        try:
            if header_only:
                reader = HeaderReader(self._client, repository, chosen)
            else:
                reader, sha256 = self._download(repository, chosen, progress)
        except SourceError as error:
            # The readers name the file in the cache; the user knows it by its reference.
            raise SourceError(repository.ref(chosen.path), error.reason, error.remedy) from error
        return FileCheckpoint(
            reader,
            card.info,
            sha256=sha256,
            metrics=card.metrics,
            config=config,
            notes=(*notes, *card.notes),
        )

    def _repository(self, reference: HubReference) -> Repository:
        if self._described is not None:
            known, repository = self._described
            if (known.repo_id, known.revision) == (reference.repo_id, reference.revision):
                return repository
        repository = self._client.describe(reference)
        self._described = (reference, repository)
        return repository

    def _download(
        self, repository: Repository, weights: Weights, progress: Progress | None
    ) -> tuple[Reader, dict[str, str]]:
        """A reader of the downloaded files, and the hashes that were checked, by file name."""
        files = [repository.files[weights.path]]
        if weights.sharded:
            index = parse_index(
                self._client.content(repository, files[0]), repository.ref(weights.path)
            )
            files += repository.shards(weights.path, index.shards)
        paths = [self._client.fetch(repository, file, progress) for file in files]
        sha256 = {
            path.name: file.sha256
            for path, file in zip(paths, files, strict=True)
            if file.sha256 is not None
        }
        return open_reader(paths[0]), sha256

    def _config(
        self, repository: Repository, folder: str
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The configuration beside the weights, else that of the repository; and notes."""
        for place in dict.fromkeys((folder, "")):
            path = f"{place}/config.json" if place else "config.json"
            file = repository.files.get(path)
            if file is None:
                continue
            if file.size > _MAX_CONFIG_BYTES:
                return {}, (f"left out {path}: {file.size:,} bytes are no configuration",)
            try:
                config = load_json(self._client.content(repository, file), path, "The file")
            except SourceError as error:
                if error.subject != path:
                    raise  # the Hub could not give it; only its content may be wrong
                return {}, (f"left out {path}: {error.reason}",)
            if isinstance(config, dict):
                return config, ()
            return {}, (f"left out {path}: it is not a JSON object",)
        return {}, ()


def _weights(repository: Repository, reference: HubReference) -> tuple[Weights, ...]:
    """The checkpoints that the reference names.

    Raises:
        SourceError: there are none, or no such file.
    """
    found = choose(repository.files, reference.path)
    if found:
        return found
    subject = str(replace(reference, revision=repository.sha))
    folder = f"{reference.path}/"
    if reference.path and not any(path.startswith(folder) for path in repository.files):
        known = [weights.path for weights in choose(repository.files)]
        raise SourceError(
            subject,
            f"The repository {repository.id} has no file {reference.path!r} at this commit.",
            f"It has weights in {_some(known)}." if known else "It has no weights at all.",
        )
    raise SourceError(
        subject,
        f"There are no weights among the {len(repository.files)} file(s) of {repository.id}"
        + (f" in {folder}" if reference.path else "")
        + f": {_some(repository.files)}.",
        f"Name the file that holds them: zoo ingest {SCHEME}:{repository.id}/FILE",
    )


def _some(paths: Any, most: int = 5) -> str:
    """The first few of `paths`, for a message."""
    every = list(paths)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return (", ".join(every[:most]) or "none") + more
