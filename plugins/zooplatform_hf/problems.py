"""What went wrong at the Hub, in one message: the repository, the reason and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zooplatform.errors import SourceError
from zooplatform_hf.patience import Busy, NoAnswer, Patience, httpx

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform_hf.reference import HubReference
    from zooplatform_hf.repository import Repository

__all__ = ["explain"]


def explain(
    error: Exception,
    subject: str,
    target: HubReference | Repository,
    *,
    endpoint: str,
    cache_dir: Path,
    patience: Patience,
    has_token: bool,
) -> SourceError:
    """The SourceError that says what `error`, raised by the client, means for the user."""
    repo_id = target.id if hasattr(target, "id") else target.repo_id
    page = f"{endpoint}/{repo_id}"
    again = f"Nothing was stored; try again later: zoo ingest {subject}"
    # The client wraps failures of its first request; the cause says what happened.
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__

    if isinstance(error, OfflineModeIsEnabled):
        return SourceError(
            subject,
            "HF_HUB_OFFLINE is set, so the Hub is not asked.",
            f"Unset it, or ingest a local copy: {_local_copy(repo_id, cache_dir)}",
        )
    if isinstance(error, GatedRepoError):
        login = "" if has_token else " run `hf auth login`,"
        return SourceError(
            subject,
            f"The repository {repo_id} is gated, and "
            + ("the account of the token in use" if has_token else "an anonymous visitor")
            + " has no access to it.",
            f"Ask for access at {page},{login} and try again.",
        )
    if isinstance(error, DisabledRepoError):
        return SourceError(subject, f"The Hub has disabled {repo_id}.", f"See {page}.")
    if isinstance(error, RevisionNotFoundError):
        revision = target.sha if hasattr(target, "sha") else target.revision
        return SourceError(
            subject,
            f"The repository {repo_id} has no branch, tag or commit {revision!r}.",
            f"See {page}/commits/main, or take its main branch: zoo ingest hf-hub:{repo_id}",
        )
    if isinstance(error, RepositoryNotFoundError):
        account = "to the account of the token in use" if has_token else "without logging in"
        login = "" if has_token else "; for a private one run `hf auth login` first"
        return SourceError(
            subject,
            f"There is no repository {repo_id} at {endpoint}, or it is private and not visible"
            f" {account}.",
            f"Check its name{login}.",
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return SourceError(
            subject, "The Hub lists this file but does not find it.", f"See {page}/tree/main."
        )
    if isinstance(error, Busy):
        reason = "allows no more requests" if error.status == 429 else "is out of service"
        login = " Logged-in users may ask more: `hf auth login`." if error.status == 429 else ""
        return SourceError(
            subject,
            f"The Hub {reason} for now (status {error.status}, {patience.tries} attempts).",
            again + "." + login,
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return SourceError(
                subject,
                "The Hub refuses the token in use.",
                "Run `hf auth login` with a valid one, or unset HF_TOKEN.",
            )
        if status == 403:
            return SourceError(
                subject,
                f"The Hub forbids access to {repo_id} with the token in use.",
                f"See {page}.",
            )
        return SourceError(subject, f"The Hub answers with status {status}.", again)
    if isinstance(error, (NoAnswer, httpx.TimeoutException)):
        return SourceError(
            subject,
            f"{endpoint} gave no whole answer in {patience.tries} attempts (each may stay silent"
            f" for {patience.timeout:g} s).",
            again,
        )
    if isinstance(error, httpx.ConnectError):
        return SourceError(
            subject,
            f"{endpoint} cannot be reached: {error}.",
            "Check the network and HF_ENDPOINT. Where there is no network, ingest a local copy: "
            + _local_copy(repo_id, cache_dir),
        )
    if isinstance(error, httpx.HTTPError):
        return SourceError(
            subject, f"The connection to {endpoint} broke {patience.tries} times: {error}.", again
        )
    if isinstance(error, OSError) and not isinstance(error, FileMetadataError):
        return SourceError(
            subject,
            f"It cannot be downloaded to {cache_dir}: {error}.",
            "Check its space and permissions; HF_HOME names another folder.",
        )
    return SourceError(
        subject,
        f"The answer of {endpoint} is not a Hub's: {error!r:.300}.",
        "Check HF_ENDPOINT and proxies.",
    )


def _local_copy(repo_id: str, cache_dir: Path) -> str:
    """The command for a copy on this machine, or the two commands that make one."""
    snapshots = cache_dir / f"models--{repo_id.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir() and (found := sorted(snapshots.iterdir())):
        return f"zoo ingest local:{found[-1]}"
    return f"`hf download {repo_id} --local-dir DIR` where there is a network, then `zoo ingest local:DIR`"
