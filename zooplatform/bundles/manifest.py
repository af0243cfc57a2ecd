"""`manifest.json`: everything about a split but the weights, with the hashes of the files that hold them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError
from zooplatform.interfaces import LineageRecord, MetricRecord, ModelInfo, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.interfaces import Layout

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Manifest",
    "ManifestCheckpoint",
    "layout_rows",
    "metric_rows",
    "read_manifest",
]

MANIFEST = "manifest.json"
FORMAT = 1
_AGAIN = "Export the split again, or fetch the whole folder again."


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestCheckpoint:
    """One member: what it is, in which roles, and the file that holds its weights.

    `storage` is `population` or `tensors`, as in the catalog it came from; `source_file` is the name that the file had
    there when it came as safetensors; `tied` maps tensors to the earlier ones whose memory they share.
    """

    checkpoint_id: str
    model_id: str
    architecture_id: str
    step: int | None
    epoch: float | None
    content_hash: str
    roles: tuple[str, ...]
    storage: str
    file: str
    size_bytes: int
    sha256: str
    source_file: str | None
    tied: Mapping[str, str]
    metrics: tuple[MetricRecord, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read and checked for form; `folder` is where it lies."""

    folder: Path
    split: Mapping[str, Any]
    zoos: Mapping[str, Mapping[str, Any]]
    architectures: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    checkpoints: tuple[ManifestCheckpoint, ...]

    def layout(self, architecture_id: str) -> Layout:
        """The tensors of an architecture."""
        return tuple(
            TensorSpec(row["name"], row["dtype"], tuple(row["shape"]), row["size_bytes"])
            for row in self.architectures[architecture_id]["layout"]
        )

    def info(self, model_id: str) -> ModelInfo:
        """A model as its source described it."""
        row = self.models[model_id]
        return ModelInfo(
            key=row["source_key"],
            name=row["name"],
            source=row["source"],
            revision=row["revision"] or "",
            license=row["license"],
            base_model=row["base_model"],
            seed=row["seed"],
            config=row["config"] or {},
            metadata=row["metadata"] or {},
            lineage=tuple(
                LineageRecord(parent=e["parent"], relation=e["relation"], detail=e["detail"] or {})
                for e in row["lineage"]
            ),
        )

    def path(self, checkpoint: ManifestCheckpoint) -> Path:
        """The file of a checkpoint."""
        return self.folder / checkpoint.file


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle.

    Raises:
        SourceError: there is none, it is of another format, or something in it is missing or of a wrong kind.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise SourceError(
            folder, f"there is no {MANIFEST}.", "Give a folder that `zoo split export` wrote."
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise SourceError(path, f"it cannot be read ({exc}).", _AGAIN) from exc
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise SourceError(
            path,
            f"it has format {version!r}; this version of zooplatform reads format {FORMAT}.",
            "Run `pip install --upgrade zooplatform`." if isinstance(version, int) else _AGAIN,
        )
    try:
        manifest = Manifest(
            folder=folder,
            split={key: raw["split"][key] for key in ("name", "split_id", "by", "seed", "detail")},
            zoos=dict(raw["zoos"]),
            architectures=dict(raw["architectures"]),
            models=dict(raw["models"]),
            checkpoints=tuple(_checkpoint(row, path) for row in raw["checkpoints"]),
        )
        for architecture in manifest.architectures:
            manifest.layout(architecture)
        for model, row in manifest.models.items():
            manifest.info(model)
            _ = row["zoo_id"], row["build"]["adapter"], row["build"]["config"]
        for checkpoint in manifest.checkpoints:
            manifest.models[checkpoint.model_id]
            manifest.architectures[checkpoint.architecture_id]
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        if isinstance(exc, SourceError):
            raise
        raise SourceError(
            path, f"something is missing or malformed ({type(exc).__name__}: {exc}).", _AGAIN
        ) from exc
    return manifest


def _checkpoint(row: Mapping[str, Any], path: Path) -> ManifestCheckpoint:
    file = PurePosixPath(row["file"])
    if file.is_absolute() or ".." in file.parts or "\\" in row["file"]:
        raise SourceError(path, f"it names the file {row['file']!r}, which is not in the folder.")
    return ManifestCheckpoint(
        checkpoint_id=row["checkpoint_id"],
        model_id=row["model_id"],
        architecture_id=row["architecture_id"],
        step=row["step"],
        epoch=row["epoch"],
        content_hash=row["content_hash"],
        roles=tuple(row["roles"]),
        storage=row["storage"],
        file=row["file"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        source_file=row["source_file"],
        tied=dict(row["tied"]),
        metrics=tuple(
            MetricRecord(
                dataset=m["dataset"],
                split=m["split"],
                name=m["name"],
                value=float(m["value"]),
                origin=m["origin"],
            )
            for m in row["metrics"]
        ),
    )


def metric_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `metrics` for the manifest; JSON has no NaN and no infinities, so they are texts."""
    return [
        {
            **{name: row[name] for name in ("dataset", "split", "name", "origin")},
            "value": row["value"] if math.isfinite(row["value"]) else str(row["value"]),
        }
        for row in rows
    ]


def layout_rows(layout: Layout) -> list[dict[str, Any]]:
    """A layout for the manifest."""
    return [
        {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "size_bytes": t.size_bytes}
        for t in layout
    ]
