"""Artifacts: stored as data, found by name and id, loaded only as they were stored."""

from __future__ import annotations

import json
import pickle
import time
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.artifacts import (
    find_artifact,
    list_artifacts,
    load_artifact,
    store_artifact,
)
from zooplatform.catalog import open_catalog
from zooplatform.errors import ArtifactError, CatalogError, ConfigError, UnknownIdError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog


def chunks(catalog: Catalog, size: int = 5) -> Any:
    tokenizer = catalog.registry.tokenizers.create("chunk")
    tokenizer.fit([], seed=0, config={"chunk_size": size})
    return tokenizer


def store(catalog: Catalog, name: str = "chunks", size: int = 5, **records: Any) -> Artifact:
    return store_artifact(
        catalog,
        kind="tokenizer",
        backend="chunk",
        name=name,
        instance=chunks(catalog, size),
        **records,
    )


class Saves:
    """Stands for a backend whose `save` does what a test wants."""

    def __init__(self, save: Callable[[Path], Any]) -> None:
        self.save = save


def test_what_is_stored_is_loaded(catalog: Catalog) -> None:
    made = store(catalog, size=7, config={"chunk_size": 7}, data={"n": 1}, metrics={"x": 0.5})
    with open_catalog(catalog.path) as again:
        found = find_artifact(again, "chunks", "tokenizer")
        assert found == made
        assert load_artifact(again, found).rule.chunk_size == 7
        row = again.sql("select * from artifacts").to_pylist()[0]
    assert json.loads(row["config"]) == {"chunk_size": 7}
    assert row["plugin_version"] == catalog.registry.tokenizers.owner("chunk").version
    manifest = json.loads((catalog.path / made.path / "artifact.json").read_text())
    assert list(manifest["files"]) == ["tokenizer.json"]
    assert catalog.check(deep=True) == []


def test_the_latest_of_a_name_is_meant_and_the_others_keep_their_ids(catalog: Catalog) -> None:
    first, second = store(catalog, size=3), store(catalog, size=4)
    assert find_artifact(catalog, "chunks") == second
    assert find_artifact(catalog, first.artifact_id) == first
    unlike = next(at for at in range(32) if first.artifact_id[:at] != second.artifact_id[:at])
    assert find_artifact(catalog, first.artifact_id[:unlike]) == first
    with pytest.raises(UnknownIdError, match="2 ids begin so"):
        find_artifact(catalog, first.artifact_id[: unlike - 1])
    assert list_artifacts(catalog) == [second, first]
    assert list_artifacts(catalog, "predictor") == []


def test_what_is_not_there_is_said_with_what_is(catalog: Catalog) -> None:
    with pytest.raises(UnknownIdError, match="zoo predictor fit"):
        find_artifact(catalog, "accuracy", "predictor")
    store(catalog)
    with pytest.raises(UnknownIdError, match=r"Known: chunks \(chunk\)"):
        find_artifact(catalog, "accuracy")
    with pytest.raises(CatalogError, match="'chunks' is a tokenizer, not a predictor"):
        find_artifact(catalog, "chunks", "predictor")


def test_a_damaged_file_is_named(catalog: Catalog) -> None:
    made = store(catalog)
    file = catalog.path / made.path / "tokenizer.json"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"5", b"6", 1))
    with pytest.raises(ArtifactError, match=r"tokenizer.json is not what was stored\. Restore"):
        load_artifact(catalog, made)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer.json is missing"):
        load_artifact(catalog, made)
    file.write_bytes(whole)
    load_artifact(catalog, made)


def test_a_check_finds_what_is_damaged(catalog: Catalog) -> None:
    store(catalog, "other")
    made = store(catalog)
    file = catalog.path / made.path / "tokenizer.json"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"5", b"6", 1))  # of the same size
    assert catalog.check() == []
    (found,) = catalog.check(deep=True)
    assert (found.kind, found.subject, found.severity) == ("artifact", made.path, "error")
    assert "tokenizer.json is not what was stored. Restore" in found.message
    file.write_bytes(whole + b" ")
    assert [problem.subject for problem in catalog.check(lint=True)] == [made.path]
    (catalog.path / made.path / "artifact.json").unlink()
    (found,) = catalog.check()
    assert "artifact.json is missing" in found.message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m | {"format": 99}, "reads format 1"),
        (lambda m: m | {"artifact_id": "other"}, "is that of artifact other"),
        (lambda m: m | {"files": {"../../FORMAT": m["files"]["tokenizer.json"]}}, "no file of an"),
        (lambda m: m | {"files": {"a.pkl": m["files"]["tokenizer.json"]}}, "no file of an"),
        (lambda m: {}, "cannot be read"),
        (lambda m: [], "cannot be read"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused(
    catalog: Catalog, change: Callable[[Any], Any], text: str
) -> None:
    made = store(catalog)
    path = catalog.path / made.path / "artifact.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ArtifactError, match=text):
        load_artifact(catalog, made)


@pytest.mark.parametrize(
    ("save", "text"),
    [
        (lambda folder: None, "saved nothing"),
        (lambda folder: (folder / "model.pt").write_bytes(b""), "run no code"),
        (lambda folder: (folder / "model.json").write_bytes(pickle.dumps({})), "is no json"),
        (lambda folder: (folder / "m.safetensors").write_bytes(pickle.dumps({})), "no safetensors"),
        (lambda folder: (folder / "m.json").symlink_to("/etc/hostname"), "plain files"),
        (lambda folder: (folder / "artifact.json").write_text("{}"), "a name that is taken"),
    ],
)
def test_only_data_is_stored(catalog: Catalog, save: Callable[[Path], Any], text: str) -> None:
    with pytest.raises(ArtifactError, match=text):
        store_artifact(catalog, kind="tokenizer", backend="chunk", name="x", instance=Saves(save))
    assert list_artifacts(catalog) == []
    assert list((catalog.path / "artifacts").iterdir()) == []


def test_names_kinds_and_records_that_cannot_be_stored_are_refused(catalog: Catalog) -> None:
    for name in ("", "a b", "../up", "-x", "a:b"):
        with pytest.raises(ConfigError, match="cannot name an artifact"):
            store(catalog, name)
    with pytest.raises(ConfigError, match="no kind of artifact"):
        store_artifact(catalog, kind="source", backend="chunk", name="x", instance=None)
    with pytest.raises(ConfigError, match="its config is no JSON"):
        store(catalog, config={"x": object()})
    made = store(catalog, metrics={"tau": float("nan"), "each": [1.0, float("inf")]})
    assert find_artifact(catalog, "chunks").metrics == {"tau": None, "each": [1.0, None]}
    assert made.metrics == {"tau": None, "each": [1.0, None]}


def test_garbage_collection_keeps_artifacts_and_drops_half_made_ones(catalog: Catalog) -> None:
    made = store(catalog)
    orphan = catalog.path / "artifacts" / "fit-abandoned"
    orphan.mkdir()
    (orphan / "state.safetensors").write_bytes(b"half")
    time.sleep(0.05)  # file systems count time in ticks
    removed = catalog.gc(grace_seconds=0)
    assert [item.reason for item in removed] == ["artifact of no commit"]
    assert not orphan.exists()
    load_artifact(catalog, made)


def test_a_remote_catalog_gives_its_artifacts_and_takes_none(
    catalog: Catalog, tmp_path: Path
) -> None:
    import fsspec

    made = store(catalog, size=9)
    memory = fsspec.filesystem("memory")
    memory.put(str(catalog.path), "/artifacts-test", recursive=True)
    with open_catalog("memory://artifacts-test") as remote:
        found = find_artifact(remote, "chunks")
        assert found == made
        assert load_artifact(remote, found).rule.chunk_size == 9
        with pytest.raises(CatalogError, match="can only be read"):
            store(remote)
        cached = remote.path / made.path / "tokenizer.json"
        cached.write_text("{}")
        with pytest.raises(ArtifactError, match="is not what was stored"):
            load_artifact(remote, found)
