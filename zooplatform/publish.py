"""A checkpoint to the Hugging Face Hub: its weights, its configuration and a model card."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooplatform.errors import CatalogError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog

__all__ = ["PushReport", "model_card", "push"]

_SCHEME = "hf-hub:"
_DATASETS = "hf-hub:datasets/"
_FACTS = """
    select c.checkpoint_id, c.model_id, c.step, c.epoch, c.dtype, c.num_parameters, c.size_bytes, c.state,
           m.name, m.zoo_id, m.source, m.revision, m.seed, m.config, m.metadata, m.license, m.base_model,
           a.name as architecture, a.family, a.num_tensors
    from checkpoints c join models m using (model_id)
    join architectures a on a.architecture_id = c.architecture_id
    where c.checkpoint_id = ?"""
_METRICS = """
    select name, dataset, split, value, origin from metrics
    where checkpoint_id = ? and isfinite(value) order by dataset, split, name"""
_DATASET_EDGES = """
    select parent_id from lineage
    where child_id = ? and relation = 'trained_on' and starts_with(parent_id, ?) order by parent_id"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReport:
    """What was put on the Hub: `files` of `commit` in `repo_id`, to be seen at `url`."""

    checkpoint_id: str
    repo_id: str
    url: str
    commit: str
    files: tuple[str, ...]


def push(
    catalog: Catalog,
    checkpoint_id: str,
    ref: str,
    *,
    private: bool = False,
    replace: bool = False,
    message: str | None = None,
) -> PushReport:
    """Upload a checkpoint in one commit; the repository is made when it is not there.

    Weights that came as safetensors are uploaded byte for byte as they came.

    Args:
        catalog: where the checkpoint is.
        checkpoint_id: the checkpoint.
        ref: `hf-hub:org/name`.
        private: make the repository a private one, if it has to be made.
        replace: replace files of these names that are there already; their old versions stay in the
            repository's history.
        message: of the commit.

    Raises:
        SourceError: the reference is no repository, files would be replaced, or the Hub refuses.
        CatalogError: there are no weights to push.
    """
    from huggingface_hub import HfApi

    repo_id = _repo_id(ref)
    facts = _facts(catalog, checkpoint_id)
    if facts["state"] != "stored":
        raise CatalogError(
            f"Checkpoint {checkpoint_id}: only its header was ingested, there are no weights to push. Ingest"
            f" {facts['source']} again without --header-only."
        )
    with tempfile.TemporaryDirectory(prefix="zoo-push-") as temporary:
        folder = Path(temporary)
        _write_weights(catalog, checkpoint_id, folder)
        config = catalog.reader.description(checkpoint_id).config
        if config:
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (folder / "README.md").write_text(model_card(catalog, checkpoint_id, repo_id), "utf-8")
        files = tuple(sorted(path.name for path in folder.iterdir()))
        api = HfApi()
        with _explained(ref, api.endpoint):
            api.create_repo(repo_id, private=private, exist_ok=True)
            there = sorted(set(files) & set(api.list_repo_files(repo_id)))
            if there and not replace:
                raise SourceError(
                    ref,
                    f"The repository already holds {', '.join(there)}.",
                    "Add -y to replace them; their old versions stay in its history.",
                )
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=message or f"Upload checkpoint {checkpoint_id}",
            )
    return PushReport(
        checkpoint_id=checkpoint_id,
        repo_id=repo_id,
        url=f"{api.endpoint}/{repo_id}",
        commit=done.oid,
        files=files,
    )


def model_card(catalog: Catalog, checkpoint_id: str, repo_id: str) -> str:
    """The card of a checkpoint: metadata that the Hub reads, and a text for people."""
    facts = _facts(catalog, checkpoint_id)
    metrics = catalog.sql(_METRICS, [checkpoint_id]).to_pylist()
    header = _card_header(catalog, facts, metrics, repo_id)
    return f"---\n{header}\n---\n\n{_card_text(facts, metrics, repo_id)}"


def _card_header(
    catalog: Catalog, facts: dict[str, Any], metrics: list[dict[str, Any]], repo_id: str
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    said = json.loads(facts["metadata"] or "{}")
    edges = catalog.sql(_DATASET_EDGES, [facts["model_id"], _DATASETS]).column("parent_id")
    datasets = [parent.removeprefix(_DATASETS) for parent in edges.to_pylist()]
    tags = [tag for tag in said.get("tags") or [] if ":" not in tag]  # the Hub derives the others
    task = said.get("pipeline_tag")
    data = ModelCardData(
        license=_one_or_many(facts["license"]),
        base_model=_one_or_many(facts["base_model"]),
        datasets=datasets or None,
        library_name=said.get("library"),
        pipeline_tag=task,
        language=said.get("language"),
        tags=[*dict.fromkeys([*tags, "zooplatform", "safetensors"])],
        model_name=repo_id.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type=task or "other",
                dataset_type=row["dataset"],
                dataset_name=row["dataset"],
                dataset_split=row["split"] or None,
                metric_type=row["name"],
                metric_value=row["value"],
            )
            for row in metrics
            # Results are results on a data set; statistics of the weights stand in the text.
            if row["dataset"] and row["origin"] != "predicted"
        ]
        or None,
    )
    return data.to_yaml()


def _card_text(facts: dict[str, Any], metrics: list[dict[str, Any]], repo_id: str) -> str:
    rows = {
        "Architecture": facts["architecture"] or facts["family"],
        "Parameters": f"{facts['num_parameters']:,} in {facts['num_tensors']:,} tensors",
        "Main dtype": facts["dtype"],
        "Step": facts["step"],
        "Epoch": None if facts["epoch"] is None else f"{facts['epoch']:g}",
        "Seed": facts["seed"],
        "Zoo": facts["zoo_id"],
        "Came from": facts["source"],
        "Revision": facts["revision"],
        "Checkpoint": facts["checkpoint_id"],
    }
    lines = [
        f"# {repo_id.rpartition('/')[2]}",
        "",
        f"{_plain(facts['name'])}, a trained network.",
        "",
    ]
    lines += ["| | |", "| --- | --- |"]
    lines += [
        f"| {what} | {_plain(value)} |" for what, value in rows.items() if value not in (None, "")
    ]
    if metrics:
        lines += ["", "## Values", "", "| value | data set | split | | origin |"]
        lines += ["| --- | --- | --- | ---: | --- |"]
        lines += [
            f"| {_plain(row['name'])} | {_plain(row['dataset'])} | {_plain(row['split'])} |"
            f" {row['value']:.6g} | {row['origin']} |"
            for row in metrics
        ]
    config = json.loads(facts["config"] or "{}")
    if config:
        lines += ["", "## Hyper-parameters", "", "```json", json.dumps(config, indent=2), "```"]
    lines += [
        *("", "## Use", "", "```python", "import zooplatform as zoo", ""),
        'catalog = zoo.open_catalog("my-zoo", create=True)',
        f'report = catalog.ingest("{_SCHEME}{repo_id}")',
        "state = catalog.state_dict(report.checkpoint_ids[0])",
        *("```", ""),
    ]
    return "\n".join(lines)


def _facts(catalog: Catalog, checkpoint_id: str) -> dict[str, Any]:
    (row,) = catalog.sql(_FACTS, [catalog.resolve("checkpoint", checkpoint_id)]).to_pylist()
    facts: dict[str, Any] = row
    return facts


def _write_weights(catalog: Catalog, checkpoint_id: str, folder: Path) -> None:
    """The weights under names by which libraries find them."""
    catalog.export(checkpoint_id, folder)
    written = list(folder.iterdir())
    if len(written) == 1:
        written[0].rename(folder / "model.safetensors")


def _repo_id(ref: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    repo_id = ref.removeprefix(_SCHEME)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SourceError(
            ref, f"It names no repository of the Hub: {error}", f"Write {_SCHEME}org/name."
        ) from error
    if not ref.startswith(_SCHEME) or "/" not in repo_id:
        raise SourceError(ref, "It names no repository of the Hub.", f"Write {_SCHEME}org/name.")
    return repo_id


def _one_or_many(text: str | None) -> Any:
    """What the catalog keeps as `a, b`: a word, or a list of words."""
    words = [word for word in (text or "").split(", ") if word]
    return words if len(words) > 1 else (words[0] if words else None)


def _plain(value: object) -> str:
    """`value` in a cell of a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").split())


@contextmanager
def _explained(ref: str, endpoint: str) -> Iterator[None]:
    """Turn the client's errors into one message with the repository, the reason and the remedy."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    login = "Run `hf auth login` with a token that may write there."
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise SourceError(ref, "HF_HUB_OFFLINE is set, so nothing is sent.", "Unset it.") from error
    except LocalTokenNotFoundError as error:
        raise SourceError(ref, "There is no token for the Hub.", login) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            reason = f"{endpoint} does not let this account write there (status {status})."
            raise SourceError(ref, reason, login) from error
        if status == 412:
            reason = "Somebody else changed the repository meanwhile."
            raise SourceError(ref, reason, "Look at it, then push again.") from error
        raise SourceError(
            ref, f"{endpoint} answers with status {status}.", "Try again later."
        ) from error
    except OSError as error:
        raise _unreachable(ref, endpoint, error) from error
    except RuntimeError as error:  # what the client makes of a failed upload of one file
        reason = f"The upload failed: {error} {error.__cause__ or ''}".strip()
        raise SourceError(ref, reason, "Nothing was committed; try again later.") from error
    except Exception as error:
        # Failures of the connection are the client's own kind, from a library that it may exchange.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2"):
            raise
        raise _unreachable(ref, endpoint, error) from error


def _unreachable(ref: str, endpoint: str, error: Exception) -> SourceError:
    return SourceError(
        ref, f"{endpoint} cannot be reached: {error}.", "Check the network and HF_ENDPOINT."
    )
