"""Artifacts: fitted tokenizers, predictors and generators, stored in a catalog as data and never as code.

    artifact = store_artifact(catalog, kind="predictor", backend="sne", name="accuracy", instance=predictor)
    predictor = load_artifact(catalog, find_artifact(catalog, "accuracy"))

An artifact is a folder `artifacts/<artifact_id>/` with what the backend's `save` wrote and `artifact.json`, which names
every file with its SHA-256, and a row of the table `artifacts`. The row comes last: a folder without one is nothing,
and `zoo gc` removes it once no living writer can be making it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from zooplatform.catalog.files import fsync_dir, fsync_file, new_id, write_durably
from zooplatform.catalog.leases import lease
from zooplatform.errors import ArtifactError, CatalogError, ConfigError, UnknownIdError

if TYPE_CHECKING:
    from zooplatform.backends import Backends, PluginInfo
    from zooplatform.catalog import Catalog

__all__ = [
    "FORMAT",
    "KINDS",
    "Artifact",
    "PredictionKey",
    "artifact_folder",
    "check_files",
    "check_name",
    "find_artifact",
    "list_artifacts",
    "load_artifact",
    "prediction_key",
    "require_writable",
    "store_artifact",
]

FORMAT = 1
KINDS = ("tokenizer", "predictor", "generator")

_MANIFEST = "artifact.json"
_SUFFIXES = (".safetensors", ".json", ".txt")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COLUMNS = [
    *("artifact_id", "kind", "backend", "plugin_version", "name"),
    *("config", "data", "metrics", "path", "created_at", "commit_id"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A fitted method as the catalog knows it.

    Attributes:
        artifact_id: its own, shared with no other fit.
        kind: `tokenizer`, `predictor` or `generator`.
        backend: the backend that was fitted and that loads it.
        name: what people call it; the latest of a name is meant.
        plugin_version: of the distribution that brought the backend.
        config: what it was fitted with.
        data: what it was fitted on: query, split, target, counts.
        metrics: validation figures.
        path: its folder, relative to the catalog.
        created_at: UTC.
    """

    artifact_id: str
    kind: str
    backend: str
    name: str
    plugin_version: str | None
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    path: str
    created_at: datetime


class PredictionKey(NamedTuple):
    """The columns of `metrics` that tell the predictions of one artifact from all others."""

    dataset: str
    split: str
    name: str


def prediction_key(artifact: Artifact) -> PredictionKey:
    """Where the predictions of an artifact are kept: under its id, which no refitted artifact shares.

    `wide` shows them as `predicted_<target>`, or `predicted_<artifact>_<target>` once several artifacts have predicted
    the same checkpoint.
    """
    target = str(artifact.data.get("target") or "prediction")
    return PredictionKey(dataset=artifact.artifact_id, split="", name=target)


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` can name an artifact."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name an artifact. Use letters, digits, '.', '_' and '-', a letter or digit first."
        )


def require_writable(catalog: Catalog) -> None:
    """Raises CatalogError where the catalog is remote, before anything expensive is done for it."""
    if catalog.snapshot().mirror is not None:
        raise CatalogError(
            f"{catalog.url}: a remote catalog can only be read, so no artifact can be stored in it. Copy it to a local "
            "disk and fit there."
        )


# --- storing ---------------------------------------------------------------------------------------------------------


def store_artifact(
    catalog: Catalog,
    *,
    kind: str,
    backend: str,
    name: str,
    instance: Any,
    config: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Artifact:
    """Save a fitted instance and commit it; when this returns, it lasts.

    Args:
        catalog: a local catalog.
        kind: one of `KINDS`.
        backend: name of the backend that `instance` is of.
        name: letters, digits, '.', '_' and '-'; an earlier artifact of this name stays and can be found by its id.
        instance: its `save(folder)` writes safetensors, JSON or plain text.
        config, data, metrics: for the record; plain values of JSON. What is not finite becomes null.

    Raises:
        ArtifactError: `save` wrote nothing, or a file that is not data.
        ConfigError: the name or kind is not usable, or a record is no JSON.
        CatalogError: the catalog is remote or cannot be written.
    """
    check_name(name)
    require_writable(catalog)
    owner = _backends(catalog, kind).owner(backend)
    records = {"config": config or {}, "data": data or {}, "metrics": metrics or {}}
    plain = {what: _plain(record, name, what) for what, record in records.items()}
    with lease(catalog.path):
        artifact = Artifact(
            artifact_id=(artifact_id := new_id()),
            kind=kind,
            backend=backend,
            name=name,
            plugin_version=owner.version or None,
            path=f"artifacts/{artifact_id}",
            created_at=datetime.now(UTC),
            **plain,
        )
        folder = catalog.path / artifact.path
        folder.mkdir(parents=True)
        try:
            _write(folder, artifact, instance, owner)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # what stays behind, `zoo gc` removes
            raise
        row = {
            **asdict(artifact),
            **{what: json.dumps(value, ensure_ascii=False) for what, value in plain.items()},
        }
        catalog.commit(f"{kind} {name}", {"artifacts": [row]})
    return artifact


def _write(folder: Path, artifact: Artifact, instance: Any, owner: PluginInfo) -> None:
    """Save an instance and the manifest into an empty folder, durably."""
    from zooplatform import __version__

    instance.save(folder)
    manifest = {
        "format": FORMAT,
        **asdict(artifact),
        "created_at": artifact.created_at.isoformat(),
        "plugin": owner.name,
        "distribution": owner.distribution,
        "zooplatform_version": __version__,
        "files": _hashed(folder, f"{artifact.kind} {artifact.backend!r}"),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    write_durably(folder / _MANIFEST, text.encode() + b"\n")
    for inner in [*(p for p in folder.rglob("*") if p.is_dir()), folder, folder.parent]:
        fsync_dir(inner)


def _backends(catalog: Catalog, kind: str) -> Backends[Any, Any]:
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is no kind of artifact. Kinds: {', '.join(KINDS)}.")
    found: Backends[Any, Any] = getattr(catalog.registry, f"{kind}s")
    return found


def _plain(record: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    """A record as values of JSON."""
    try:
        value: dict[str, Any] = json.loads(json.dumps(_finite(record), sort_keys=True))
    except TypeError as exc:
        raise ConfigError(f"Artifact {name!r}: its {what} is no JSON ({exc}).") from exc
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _hashed(folder: Path, label: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file that `save` wrote, after a look at whether it is data; made durable."""
    found = sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    if not found:
        raise ArtifactError(f"{label} saved nothing; its `save` has to write what `load` needs.")
    files = {}
    for path in found:
        name = path.relative_to(folder).as_posix()
        if name == _MANIFEST:
            raise ArtifactError(f"{label} saved {name!r}, a name that is taken. Choose another.")
        if path.is_symlink() or not path.is_file() or path.suffix not in _SUFFIXES:
            raise ArtifactError(
                f"{label} saved {name!r}. An artifact holds plain files of the kinds {', '.join(_SUFFIXES)}, which "
                "run no code when they are read."
            )
        _look_at(path, label)
        fsync_file(path)
        files[name] = {"size_bytes": path.stat().st_size, "sha256": _sha256(path)}
    return files


def _look_at(path: Path, label: str) -> None:
    """Whether a file holds what its name says: a pickle may call itself anything."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                return
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
    except (SafetensorError, ValueError) as exc:
        kind = path.suffix.lstrip(".")
        raise ArtifactError(f"{label} saved {path.name!r}, which is no {kind} ({exc}).") from exc


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --- finding ---------------------------------------------------------------------------------------------------------


def list_artifacts(catalog: Catalog, kind: str | None = None) -> list[Artifact]:
    """Every artifact (of one kind), the latest first."""
    rows = catalog.snapshot().table("artifacts", _COLUMNS).to_pylist()
    rows.sort(key=lambda row: (row["created_at"], row.pop("commit_id")), reverse=True)
    for row in rows:
        row.update({what: json.loads(row[what] or "{}") for what in ("config", "data", "metrics")})
    return [Artifact(**row) for row in rows if kind in (None, row["kind"])]


def find_artifact(catalog: Catalog, given: str, kind: str | None = None) -> Artifact:
    """The artifact that is meant: the latest of this name, or the one with this id or beginning of an id.

    Raises:
        UnknownIdError: there is none, or several ids begin so; the text lists the names that there are.
        CatalogError: there is one, but of another kind than `kind`.
    """
    every = list_artifacts(catalog)
    chosen = [a for a in every if kind in (None, a.kind)]
    word = kind or "artifact"
    for artifacts in (chosen, every):
        found = [a for a in artifacts if a.name == given][:1]
        found = found or [a for a in artifacts if a.artifact_id == given]
        found = found or [a for a in artifacts if given and a.artifact_id.startswith(given)]
        if len(found) > 1:
            remedy = f"{len(found)} ids begin so: {', '.join(a.artifact_id for a in found[:4])}. Give more of it."
            raise UnknownIdError(word, given, remedy=remedy)
        if found and artifacts is chosen:
            return found[0]
        if found:
            raise CatalogError(
                f"Artifact {given!r} is a {found[0].kind}, not a {word}. {_known(chosen, word)}"
            )
    raise UnknownIdError(word, given, remedy=_known(chosen, word))


def _known(artifacts: list[Artifact], word: str) -> str:
    names = list(dict.fromkeys(f"{a.name} ({a.backend})" for a in artifacts))
    if not names:
        return f"It holds no {word}; `zoo {word if word in KINDS else 'predictor'} fit` makes one."
    return f"Known: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}."


# --- loading ---------------------------------------------------------------------------------------------------------


def load_artifact(catalog: Catalog, artifact: Artifact) -> Any:
    """The fitted instance, ready to be used; files of a remote catalog are fetched once and kept.

    Raises:
        ArtifactError: a file is missing or was changed, or the backend cannot read it; the text names file and remedy.
        PluginError: the backend is not there.
    """
    instance = _backends(catalog, artifact.kind).create(artifact.backend)
    instance.load(artifact_folder(catalog, artifact))
    return instance


def artifact_folder(catalog: Catalog, artifact: Artifact) -> Path:
    """Where the files of an artifact lie on this machine, each compared with its hash.

    Raises:
        ArtifactError: a file is missing or was changed, or a newer version wrote it.
    """
    check_files(catalog, artifact, deep=True)
    return catalog.path / artifact.path


def check_files(catalog: Catalog, artifact: Artifact, *, deep: bool) -> None:
    """Compare the files of an artifact with its manifest: sizes, and with `deep` every byte.

    Raises:
        ArtifactError: as `artifact_folder`.
    """
    manifest = _manifest(catalog, artifact)
    for name, stored in manifest["files"].items():
        path = _file(catalog, artifact, name)
        same = path.stat().st_size == stored["size_bytes"]
        if not same or (deep and _sha256(path) != stored["sha256"]):
            _damaged(artifact, name, "is not what was stored")


def _manifest(catalog: Catalog, artifact: Artifact) -> dict[str, Any]:
    path = _file(catalog, artifact, _MANIFEST)
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, owner, files = manifest["format"], manifest["artifact_id"], manifest["files"]
        names = [(name, stored["size_bytes"], stored["sha256"]) for name, stored in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _damage(artifact, _MANIFEST, f"cannot be read ({exc})") from exc
    if version != FORMAT:
        raise ArtifactError(
            f"Artifact {artifact.name!r} has format {version}; this version of zooplatform reads format {FORMAT}. Run "
            "`pip install --upgrade zooplatform`."
        )
    if owner != artifact.artifact_id:
        _damaged(artifact, _MANIFEST, f"is that of artifact {owner}")
    for name, *_ in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or pure.suffix not in _SUFFIXES:
            _damaged(artifact, _MANIFEST, f"names {name!r}, which is no file of an artifact")
    return manifest


def _file(catalog: Catalog, artifact: Artifact, name: str) -> Path:
    relative = f"{artifact.path}/{name}"
    mirror = catalog.snapshot().mirror
    path = catalog.path / relative if mirror is None else mirror.weight_file(relative)
    if not path.is_file():
        _damaged(artifact, name, "is missing")
    return path


def _damaged(artifact: Artifact, name: str, what: str) -> NoReturn:
    raise _damage(artifact, name, what)


def _damage(artifact: Artifact, name: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"Artifact {artifact.name!r} ({artifact.artifact_id}): file {artifact.path}/{name} {what}. Restore it from a "
        "copy of the catalog, or fit again."
    )
