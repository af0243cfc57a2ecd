"""What lies beside a checkpoint in a snapshot of a repository: its configuration and its model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError
from zooplatform.formats import OpenFile
from zooplatform.formats.limits import load_json
from zooplatform.interfaces import LineageRecord

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Snapshot", "read_snapshot"]

_ASIDE = "Mend it, or move it out of the folder: weights are ingested without it, too."
_MAX_CONFIG_BYTES = 10_000_000
_MAX_CARD_BYTES = 65_536
_CARD_KEYS = ("tags", "library_name", "pipeline_tag", "language", "datasets")


@dataclass(frozen=True)
class Snapshot:
    """`config` is `config.json`; the rest comes from the front matter of `README.md`."""

    config: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    base_model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[LineageRecord, ...] = ()
    notes: tuple[str, ...] = ()


def read_snapshot(folder: Path) -> Snapshot:
    """Read both; one that is broken is left out with a note, because the weights do not depend on it."""
    config: Mapping[str, Any] = {}
    card: Mapping[str, Any] = {}
    notes: list[str] = []
    try:
        config = _config(folder / "config.json")
    except SourceError as exc:
        notes.append(f"left out config.json: {exc.reason}")
    try:
        card = _card(folder / "README.md")
    except SourceError as exc:
        notes.append(f"left out the model card: {exc.reason}")
    license_, bases = _words(card.get("license")), _words(card.get("base_model"))
    return Snapshot(
        config=config,
        license=license_[0] if license_ else None,
        base_model=bases[0] if bases else None,
        metadata={key: words for key in _CARD_KEYS if (words := _words(card.get(key)))},
        lineage=tuple(
            LineageRecord(parent=f"hf-hub:{base}", relation="finetuned_from") for base in bases
        ),
        notes=tuple(notes),
    )


def _config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    with OpenFile(path) as file:
        if file.size > _MAX_CONFIG_BYTES:
            raise SourceError(path, f"it has more than {_MAX_CONFIG_BYTES:,} bytes.", _ASIDE)
        found = load_json(file.read_at(0, file.size), path, "config.json")
    if not isinstance(found, dict):
        raise SourceError(path, "it is not a JSON object.", _ASIDE)
    return found


def _card(path: Path) -> Mapping[str, Any]:
    """The YAML between the first two lines of dashes."""
    if not path.is_file():
        return {}
    with OpenFile(path) as file:
        text = file.read_at(0, min(file.size, _MAX_CARD_BYTES)).decode("utf-8", "replace")
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        raise SourceError(path, "its front matter does not end within 64 kB.", _ASIDE)
    # Comes with huggingface_hub, like the format of the card.
    import yaml

    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise SourceError(
            path, f"its front matter is not valid YAML: {str(exc)[:200]}.", _ASIDE
        ) from exc
    return found if isinstance(found, dict) else {}


def _words(value: object) -> list[str]:
    """A string, or the strings of a list: all that is taken of a card."""
    if isinstance(value, str):
        return [value]
    return (
        [word for word in value if isinstance(word, str)][:256] if isinstance(value, list) else []
    )
