"""Brings an exported split into a catalog: the same networks, under the same ids, in the same roles."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from zooplatform.bundles.manifest import Manifest, ManifestCheckpoint, read_manifest
from zooplatform.catalog.tensor_writer import content_hash
from zooplatform.catalog.writer import ZooRecord, content_hashes, to_json
from zooplatform.errors import CatalogError, IntegrityError, SourceError
from zooplatform.formats.reader import FileCheckpoint
from zooplatform.formats.safetensors import SafetensorsReader
from zooplatform.interfaces import CheckpointHeader, CheckpointRecord, PopulationBatch
from zooplatform.layout import VectorLayout, architecture_id, checkpoint_id, model_id
from zooplatform.splits import SplitMember, split_id_of
from zooplatform.splits.store import Split, check_name, freeze, list_splits

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import ModelInfo, Progress

__all__ = ["import_split"]

# Weights that are held at once.
_BATCH_BYTES = 64 << 20
_AGAIN = "Fetch the folder again."


def import_split(
    catalog: Catalog, folder: str | os.PathLike[str], *, progress: Progress | None = None
) -> Split:
    """Store the networks of an exported split and freeze the split under its name.

    What the catalog holds already is not stored again. The ids of models, checkpoints and the split, and the content
    hashes, are those of the catalog that it came from.

    Raises:
        SourceError: the folder is no exported split.
        IntegrityError: a file or the manifest is not what was exported.
        CatalogError: the catalog holds another split of this name, or other weights under the id of a member.
    """
    manifest = read_manifest(Path(folder))
    split = manifest.split
    members = [
        SplitMember(role, c.content_hash, c.checkpoint_id, c.model_id)
        for c in manifest.checkpoints
        for role in c.roles
    ]
    _check(catalog, manifest, members)
    missing = _not_stored(catalog, manifest)
    # All of them first, so that nothing of a damaged folder is stored.
    for path, digest in {manifest.path(row): row.sha256 for row in missing}.items():
        _compare(path, digest)
    done = 0
    for batch, zoo in _populations(catalog, manifest, missing):
        catalog.write_population(batch, zoo)
        done += len(batch.rows)
        if progress is not None:
            progress(split["name"], done, len(missing))
    for row in missing:
        if row.storage == "population":
            continue
        with _open(catalog, manifest, row) as checkpoint:
            catalog.write_checkpoint(
                checkpoint, _zoo(manifest, row), described=_described(catalog, manifest, row)
            )
        done += 1
        if progress is not None:
            progress(split["name"], done, len(missing))
    return freeze(
        catalog,
        split["name"],
        members,
        by=split["by"],
        seed=split["seed"],
        detail=split["detail"],
    )


def _check(catalog: Catalog, manifest: Manifest, members: Sequence[SplitMember]) -> None:
    """Refuse what cannot be imported before anything is stored."""
    name, split_id = manifest.split["name"], manifest.split["split_id"]
    check_name(name)
    if split_id_of(members) != split_id:
        raise IntegrityError(
            f"{manifest.folder}: the members of split {name!r} make id {split_id_of(members)}, the manifest says "
            f"{split_id}; it was changed. {_AGAIN}"
        )
    for other in list_splits(catalog):
        if other.name == name and other.split_id != split_id:
            raise CatalogError(
                f"{catalog.path} has a split {name!r} with other members ({other.split_id}; the folder holds "
                f"{split_id}). Import it into another catalog."
            )
    for architecture in manifest.architectures:
        if architecture_id(manifest.layout(architecture)) != architecture:
            raise _changed(manifest, f"the layout of architecture {architecture}")
    for row in manifest.checkpoints:
        info = manifest.info(row.model_id)
        model = model_id(info.key, info.revision)
        if model != row.model_id or checkpoint_id(model, row.step, row.epoch) != row.checkpoint_id:
            raise _changed(manifest, f"checkpoint {row.checkpoint_id}")


def _changed(manifest: Manifest, what: str) -> IntegrityError:
    return IntegrityError(
        f"{manifest.folder}: {what} does not fit its id; the manifest was changed. {_AGAIN}"
    )


def _not_stored(catalog: Catalog, manifest: Manifest) -> list[ManifestCheckpoint]:
    """Members that the catalog does not hold.

    Raises:
        CatalogError: it holds other weights under the id of one.
    """
    table = catalog.snapshot().table("checkpoints", ["checkpoint_id", "content_hash"], keep=True)
    asked = pa.array([row.checkpoint_id for row in manifest.checkpoints], type=pa.string())
    found = table.filter(pc.is_in(table.column("checkpoint_id"), value_set=asked)).to_pydict()
    stored = dict(zip(found["checkpoint_id"], found["content_hash"], strict=True))
    missing = []
    for row in manifest.checkpoints:
        content = stored.get(row.checkpoint_id)
        if content is None:  # not there, or only its header
            missing.append(row)
        elif content != row.content_hash:
            raise CatalogError(
                f"Checkpoint {row.checkpoint_id} of {catalog.path} holds other weights ({content}) than in "
                f"{manifest.folder} ({row.content_hash}). Import it into another catalog."
            )
    return missing


def _zoo(manifest: Manifest, row: ManifestCheckpoint) -> ZooRecord | None:
    name = manifest.models[row.model_id]["zoo_id"]
    if name is None:
        return None
    zoo = manifest.zoos[name]
    return ZooRecord(name, zoo["source"], zoo["license"], zoo["citation"])


def _described(
    catalog: Catalog, manifest: Manifest, row: ManifestCheckpoint
) -> Mapping[str, Any] | None:
    """What the manifest says of an architecture; None where its adapter is not installed here."""
    build = manifest.models[row.model_id]["build"]
    if build["adapter"] is None or build["adapter"] not in catalog.registry.architectures:
        return None
    architecture = manifest.architectures[row.architecture_id]
    return {**build, "family": architecture["family"], "name": architecture["name"]}


def _compare(path: Path, expected: str) -> None:
    """Raises IntegrityError when a file is missing or its SHA-256 is not `expected`."""
    try:
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as exc:
        raise IntegrityError(f"{path}: the file cannot be read ({exc.strerror}). {_AGAIN}") from exc
    if digest != expected:
        raise IntegrityError(
            f"{path}: its SHA-256 is {digest}, the manifest says {expected}. {_AGAIN}"
        )


# --- populations -----------------------------------------------------------------------------------------------------


def _populations(
    catalog: Catalog, manifest: Manifest, missing: Sequence[ManifestCheckpoint]
) -> Iterator[tuple[PopulationBatch, ZooRecord | None]]:
    """The missing networks of populations in batches of one zoo, architecture and configuration."""
    groups: dict[tuple[str | None, str, str], list[ManifestCheckpoint]] = defaultdict(list)
    for row in missing:
        if row.storage == "population":
            model = manifest.models[row.model_id]
            build = to_json(model["build"])
            groups[model["zoo_id"], row.architecture_id, build].append(row)
    for (_, architecture, _), rows in groups.items():
        layout = manifest.layout(architecture)
        vector = VectorLayout(layout)
        described = _described(catalog, manifest, rows[0]) or {}
        per_batch = max(1, _BATCH_BYTES // max(1, vector.size_bytes))
        for start in range(0, len(rows), per_batch):
            part = rows[start : start + per_batch]
            weights = np.empty((len(part), vector.width), vector.dtype)
            aside = np.empty((len(part), vector.aside_bytes), np.uint8)
            for at, row in enumerate(part):
                _fill(manifest, row, vector, weights[at].view(np.uint8), aside[at])
            given = aside if vector.aside_bytes else None
            for row, content in zip(
                part, content_hashes(vector, architecture, weights, given), strict=True
            ):
                if content != row.content_hash:
                    raise _changed(manifest, f"the content of checkpoint {row.checkpoint_id}")
            yield (
                PopulationBatch(
                    layout=layout,
                    weights=weights,
                    rows=[_record(manifest, row) for row in part],
                    aside=given,
                    family=described.get("adapter", ""),
                    name=described.get("name") or "",
                    config=described.get("config", {}),
                ),
                _zoo(manifest, rows[0]),
            )


def _fill(
    manifest: Manifest, row: ManifestCheckpoint, vector: VectorLayout, weights: Any, aside: Any
) -> None:
    """Copy the tensors of a file into a row of bytes, and those of other dtypes aside."""
    with closing(SafetensorsReader(manifest.path(row))) as reader:
        specs = {spec.name: spec for spec in reader.header.tensors}
        size = len(weights) // max(1, vector.width)
        for field in vector.fields:
            if specs.get(field.spec.name) != field.spec:
                raise SourceError(
                    manifest.path(row), f"tensor {field.spec.name!r} is not as the manifest says."
                )
            data = np.frombuffer(reader.buffer(field.spec.name), np.uint8)
            target, start = (aside, field.offset) if field.aside else (weights, field.offset * size)
            target[start : start + len(data)] = data


def _record(manifest: Manifest, row: ManifestCheckpoint) -> CheckpointRecord:
    return CheckpointRecord(
        model=manifest.info(row.model_id), step=row.step, epoch=row.epoch, metrics=row.metrics
    )


# --- single checkpoints ----------------------------------------------------------------------------------------------


def _open(catalog: Catalog, manifest: Manifest, row: ManifestCheckpoint) -> _BundledCheckpoint:
    # Values that plugins measure at ingest are measured anew.
    measured = {spec.name for _, spec in catalog.registry.properties}
    metrics = tuple(
        m for m in row.metrics if m.dataset or m.origin != "measured" or m.name not in measured
    )
    reader = SafetensorsReader(manifest.path(row))
    reader.step, reader.epoch = row.step, row.epoch
    if row.source_file is not None:
        reader.files = (replace(reader.files[0], path=row.source_file),)
    header = replace(reader.header, tensors=manifest.layout(row.architecture_id), tied=row.tied)
    return _BundledCheckpoint(
        reader, manifest.info(row.model_id), header, replace(row, metrics=metrics)
    )


class _BundledCheckpoint(FileCheckpoint):
    """A file of a bundle; that its content is what the manifest says is checked before anything is committed."""

    def __init__(
        self,
        reader: SafetensorsReader,
        info: ModelInfo,
        header: CheckpointHeader,
        row: ManifestCheckpoint,
    ) -> None:
        super().__init__(
            reader, info, sha256={reader.files[0].path: row.sha256}, metrics=row.metrics
        )
        self.header = header
        self._row = row
        self._hashes: dict[str, str] = {}

    def buffer(self, name: str) -> memoryview:
        data = super().buffer(name)
        self._hashes[name] = xxhash.xxh3_128_hexdigest(data)
        return data

    def verify(self) -> None:
        super().verify()
        for name, first in self.header.tied.items():
            self._hashes[name] = self._hashes[first]
        hashes = (self._hashes[spec.name] for spec in self.header.tensors)
        if content_hash(self._row.architecture_id, hashes) != self._row.content_hash:
            raise IntegrityError(
                f"Checkpoint {self._row.checkpoint_id}: the content of its file is not what the manifest says. {_AGAIN}"
            )
