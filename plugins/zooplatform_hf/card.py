"""What the model card and the Hub say about a model, as records of the catalog."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results

from zooplatform.interfaces import LineageRecord, MetricRecord, ModelInfo
from zooplatform_hf.reference import SCHEME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zooplatform_hf.repository import Repository

__all__ = ["Card", "read_card"]

_NAMES_ACCURACY = ("acc", "accuracy", "top_1_accuracy", "top_5_accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class Card:
    """The model, its reported values, and what of the card could not be taken."""

    info: ModelInfo
    metrics: tuple[MetricRecord, ...]
    notes: tuple[str, ...]


def model_key(repository: str, path: str) -> str:
    """What identifies a checkpoint of the Hub, but for the revision; `path` is empty for a repository's only one."""
    return f"{SCHEME}:{repository}/{path}" if path else f"{SCHEME}:{repository}"


def read_card(repository: Repository, path: str) -> Card:
    """The metadata of a repository for its checkpoint at `path` (empty: the one that it implies)."""
    hub = repository.info
    card: dict[str, Any] = {}
    if hub.card_data is not None:
        card = hub.card_data.to_dict()  # type: ignore[no-untyped-call]
    tags = [tag for tag in hub.tags or () if isinstance(tag, str)]
    bases = _words(card.get("base_model"))
    datasets = _words(card.get("datasets"))
    licenses = _words(card.get("license")) or [
        tag.removeprefix("license:") for tag in tags if tag.startswith("license:")
    ]
    if licenses == ["other"]:
        licenses = _words(card.get("license_name")) or licenses
    how = card.get("base_model_relation")
    detail = {"as": how} if isinstance(how, str) else {}
    metadata = {
        "library": hub.library_name or card.get("library_name"),
        "pipeline_tag": hub.pipeline_tag or card.get("pipeline_tag"),
        "tags": tags,
        "language": _words(card.get("language")),
    }
    place = f"/{path}" if path else ""
    info = ModelInfo(
        key=model_key(repository.id, path),
        name=repository.id + place,
        source=f"{SCHEME}:{repository.id}",
        revision=repository.sha,
        license=", ".join(licenses) or None,
        base_model=", ".join(bases) or None,
        metadata={key: value for key, value in metadata.items() if value},
        lineage=(
            *(
                LineageRecord(parent=f"{SCHEME}:{base}", relation="finetuned_from", detail=detail)
                for base in bases
            ),
            *(
                LineageRecord(parent=f"{SCHEME}:datasets/{name}", relation="trained_on")
                for name in datasets
            ),
        ),
    )
    metrics, notes = _metrics(_results(repository))
    return Card(info, metrics, notes)


def _words(value: object) -> list[str]:
    """A card's field that holds a word or a list of words; anything else in it is skipped."""
    values = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(word for word in values if isinstance(word, str) and word))


def _results(repository: Repository) -> Iterable[EvalResult]:
    hub = repository.info
    if hub.card_data is not None and hub.card_data.eval_results:
        return hub.card_data.eval_results
    if not hub.model_index:
        return ()
    try:
        # The client declares a dict where the Hub sends a list.
        return model_index_to_eval_results(hub.model_index)[1]  # type: ignore[arg-type]
    except (KeyError, TypeError, AttributeError, ValueError):
        # People write this part of the card by hand; the client refuses to guess as well.
        return ()


def _metrics(results: Iterable[EvalResult]) -> tuple[tuple[MetricRecord, ...], tuple[str, ...]]:
    """One record for each (metric, data set, split), the first that the card gives."""
    records: dict[tuple[str, str, str], MetricRecord] = {}
    skipped: list[str] = []
    for result in results:
        name = str(result.metric_type or result.metric_name)
        value = _number(result.metric_value)
        if value is None:
            skipped.append(name)
            continue
        if name.lower().replace("-", "_").replace(" ", "_") in _NAMES_ACCURACY and value > 1:
            value /= 100
        dataset = str(result.dataset_type or result.dataset_name or "")
        if result.dataset_config:
            dataset += f"/{result.dataset_config}"
        record = MetricRecord(
            name=name, value=value, dataset=dataset, split=str(result.dataset_split or "")
        )
        records.setdefault((record.name, record.dataset, record.split), record)
    notes = (
        (f"left out {len(skipped)} value(s) of the model card that are no numbers: {skipped[0]}",)
        if skipped
        else ()
    )
    return tuple(records.values()), notes


def _number(value: object) -> float | None:
    """A finite number, also one written as text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
