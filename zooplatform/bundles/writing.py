"""Writes a split to a folder: one safetensors file per distinct network, the manifest last."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import save

from zooplatform.bundles.manifest import FORMAT, MANIFEST, layout_rows, metric_rows
from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.splits import find_split, split_members

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from zooplatform.catalog import Catalog
    from zooplatform.catalog.snapshot import Snapshot
    from zooplatform.interfaces import Progress
    from zooplatform.splits import Split, SplitMember

__all__ = ["ExportReport", "export_split"]

_WEIGHTS = "weights"
# Networks of a population that are read at once.
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: `files` of weights, `size_bytes` of them together."""

    split: Split
    folder: Path
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size_bytes: int
    sha256: str
    source_file: str | None


def export_split(
    catalog: Catalog,
    split: str,
    folder: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the networks of a split as safetensors, with a manifest that brings it back into any catalog.

    Args:
        catalog: that holds it.
        split: its name or id.
        folder: an empty or new folder.
        progress: called with (what, done, total).

    Raises:
        UnknownIdError: there is no such split.
        CatalogError: the folder holds something, or cannot be written.
        IntegrityError: a member is no longer what was split.
    """
    found = find_split(catalog, split)
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CatalogError(f"{target} is not an empty folder. Choose another one.")
    members = split_members(catalog, found)
    rows = _checkpoints(catalog.snapshot(), members)
    try:
        (target / _WEIGHTS).mkdir(parents=True, exist_ok=True)
        files = {}
        for content, file in _write_weights(catalog, rows, target):
            files[content] = file
            if progress is not None:
                progress(found.name, len(files), None)
        manifest = _manifest(catalog, found, members, rows, files)
        # Comes last: a folder without it was not finished.
        (target / MANIFEST).write_text(
            json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )
    except OSError as exc:
        raise CatalogError(f"{target} cannot be written ({exc.strerror or exc}).") from exc
    return ExportReport(found, target, len(files), sum(f.size_bytes for f in files.values()))


def _checkpoints(snapshot: Snapshot, members: Sequence[SplitMember]) -> dict[str, dict[str, Any]]:
    """Rows of `checkpoints` of all members by id, compared with what the split says of them."""
    table = snapshot.table("checkpoints")
    ids = pa.array({member.checkpoint_id for member in members}, type=pa.string())
    rows = table.filter(pc.is_in(table.column("checkpoint_id"), value_set=ids)).sort_by(
        "checkpoint_id"
    )
    by_id = {row["checkpoint_id"]: row for row in rows.to_pylist()}
    for member in members:
        row = by_id.get(member.checkpoint_id)
        if row is None or row["content_hash"] != member.content_hash:
            raise IntegrityError(
                f"Checkpoint {member.checkpoint_id} is not what the split froze (content hash {member.content_hash}). "
                "Run `zoo check --deep`."
            )
    return by_id


def _write_weights(
    catalog: Catalog, rows: dict[str, dict[str, Any]], folder: Path
) -> Iterator[tuple[str, _File]]:
    """Write each distinct network once; gives its content hash and file."""
    first = {row["content_hash"]: row for row in reversed(list(rows.values()))}
    populations: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for content, row in sorted(first.items()):
        if row["shard_id"] is not None:
            populations[row["architecture_id"]].append(row)
            continue
        path = catalog.export(row["checkpoint_id"], folder / _file_name(content))
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        yield (
            content,
            _File(_file_name(content), path.stat().st_size, digest, _origin(catalog, row)),
        )
    for own in populations.values():
        for start in range(0, len(own), _BLOCK):
            block = own[start : start + _BLOCK]
            population = catalog.population([row["checkpoint_id"] for row in block])
            for at, row in enumerate(block):
                state = population.state_dict(at)
                data = save({name: tensor.numpy() for name, tensor in state.items()})
                name = _file_name(row["content_hash"])
                with (folder / name).open("xb") as handle:
                    handle.write(data)
                digest = hashlib.sha256(data).hexdigest()
                yield row["content_hash"], _File(name, len(data), digest, None)


def _file_name(content: str) -> str:
    return f"{_WEIGHTS}/{content}.safetensors"


def _origin(catalog: Catalog, row: dict[str, Any]) -> str | None:
    """Name of the safetensors file that a checkpoint came as, if it came as one."""
    files = catalog.snapshot().rows_of("files", row["checkpoint_id"], row["commit_id"])
    originals = [file for file in files if file["header"] is not None]
    return str(originals[0]["path"]) if len(originals) == 1 else None


def _manifest(
    catalog: Catalog,
    split: Split,
    members: Sequence[SplitMember],
    rows: dict[str, dict[str, Any]],
    files: dict[str, _File],
) -> dict[str, Any]:
    snapshot = catalog.snapshot()
    models = _rows_by(snapshot, "models", "model_id", {r["model_id"] for r in rows.values()})
    known = {i: found[0] for i, found in models.items()}
    edges = _rows_by(snapshot, "lineage", "child_id", set(known))
    zoo_ids = {row["zoo_id"] for row in known.values()} - {None}
    zoos = {i: found[0] for i, found in _rows_by(snapshot, "zoos", "zoo_id", zoo_ids).items()}
    metrics = _rows_by(snapshot, "metrics", "checkpoint_id", set(rows))
    architecture_ids = {row["architecture_id"] for row in rows.values()}
    architectures = _rows_by(snapshot, "architectures", "architecture_id", architecture_ids)
    builds = _builds(catalog, rows, known)
    roles = defaultdict(list)
    for member in members:
        roles[member.checkpoint_id].append(member.role)
    return {
        "format": FORMAT,
        "split": {
            "name": split.name,
            "split_id": split.split_id,
            "by": split.by,
            "seed": split.seed,
            "detail": dict(split.detail),
        },
        "zoos": {
            i: {name: row[name] for name in ("source", "license", "citation")}
            for i, row in sorted(zoos.items())
        },
        "architectures": {
            i: {
                **{name: found[0][name] for name in ("family", "name")},
                "layout": layout_rows(catalog.reader.vector(i).layout),
            }
            for i, found in sorted(architectures.items())
        },
        "models": {
            i: {**_model(row, edges.get(i, [])), "build": builds[i]}
            for i, row in sorted(known.items())
        },
        "checkpoints": [
            {
                **{name: row[name] for name in ("checkpoint_id", "model_id", "architecture_id")},
                **{name: row[name] for name in ("step", "epoch", "content_hash")},
                "roles": roles[row["checkpoint_id"]],
                "storage": "tensors" if row["shard_id"] is None else "population",
                "file": files[row["content_hash"]].name,
                "size_bytes": files[row["content_hash"]].size_bytes,
                "sha256": files[row["content_hash"]].sha256,
                "source_file": files[row["content_hash"]].source_file,
                "tied": _tied(catalog, row),
                "metrics": metric_rows(metrics.get(row["checkpoint_id"], [])),
            }
            for row in rows.values()
        ],
    }


def _model(row: dict[str, Any], edges: Sequence[dict[str, Any]]) -> dict[str, Any]:
    plain = ("zoo_id", "name", "source", "source_key", "revision", "license", "base_model", "seed")
    return {
        **{name: row[name] for name in plain},
        **{name: _parsed(row[name]) for name in ("config", "metadata")},
        "lineage": [
            {
                "parent": edge["parent_id"],
                "relation": edge["relation"],
                "detail": _parsed(edge["detail"]),
            }
            for edge in edges
        ],
    }


def _builds(
    catalog: Catalog, rows: dict[str, dict[str, Any]], models: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Adapter and configuration that build each model, by model id."""
    reader = catalog.reader
    known: dict[tuple[str, str | None], dict[str, Any]] = {}
    found = {}
    for row in rows.values():
        model = row["model_id"]
        # Few differ, and looking one up takes time.
        key = (row["architecture_id"], models[model]["build_config"])
        if key not in known:
            description = reader.description(row["checkpoint_id"])
            known[key] = {"adapter": description.adapter, "config": description.config}
        found[model] = known[key]
    return found


def _tied(catalog: Catalog, row: dict[str, Any]) -> dict[str, str]:
    if row["shard_id"] is not None:
        return {}
    return {t["name"]: t["tied_to"] for t in catalog.reader.tensor_rows(row) if t["tied_to"]}


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _rows_by(
    snapshot: Snapshot, table: str, column: str, values: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of a table whose `column` is among `values`, by this column."""
    rows = snapshot.table(table)
    wanted = pc.is_in(rows.column(column), value_set=pa.array(sorted(values), type=pa.string()))
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows.filter(wanted).to_pylist():
        found[row[column]].append(row)
    return dict(found)
