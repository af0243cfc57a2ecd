"""Splits as folders of safetensors, and back: the same ids and bits, and nothing from a folder that was changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zooplatform.bundles import export_split, import_split
from zooplatform.catalog import open_catalog
from zooplatform.errors import CatalogError, IntegrityError, SourceError, UnknownIdError
from zooplatform.interfaces import LineageRecord, MetricRecord, PopulationBatch
from zooplatform.splits import create_split, list_splits, split_members
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.catalog import Catalog

TABLES = ("zoos", "models", "checkpoints", "metrics", "lineage", "architectures", "files", "splits")
# Differ by nature: when and in which shard; `build_config` says how a model differs from the first of its layout.
APART = ("commit_id", "created_at", "shard_id", "shard_row", "build_config", "config")


def rich_population() -> PopulationBatch:
    batch = sample_population("mlp", num_models=6)
    rows = list(batch.rows)
    rows[0] = replace(
        rows[0],
        metrics=(
            *rows[0].metrics,
            MetricRecord(name="loss", value=float("nan"), dataset="sample", split="test"),
            MetricRecord(name="gap", value=float("-inf"), origin="measured"),
        ),
        model=replace(
            rows[0].model,
            license="MIT",
            metadata={"tags": ["ä", 1]},
            lineage=(
                LineageRecord(parent="hf-hub:a/b", relation="finetuned_from", detail={"x": 1}),
            ),
        ),
    )
    rows[1] = replace(rows[1], model=rows[0].model)
    return replace(batch, rows=rows)


@pytest.fixture
def full(catalog: Catalog, tmp_path: Path) -> Catalog:
    """Two zoos of populations, one with integers aside, and files stored tensor by tensor."""
    catalog.append(rich_population(), zoo="mlps", source="made", license="CC0-1.0", citation="us")
    other = replace(
        sample_population("mlp", num_models=2, seed=5),
        config={**sample_population("mlp").config, "activation": "relu"},
    )
    catalog.append(other, zoo="mlps")
    states = []
    for number in range(3):
        torch.manual_seed(number)
        states.append(
            torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
        )
    records = [
        replace(row, model=replace(row.model, key=f"bn {at}"))
        for at, row in enumerate(sample_population().rows[:3])
    ]
    catalog.add_state_dicts(states, records, zoo="bn")
    for number in range(2):
        torch.manual_seed(number)
        state = torch.nn.Linear(4, 3).to(torch.bfloat16).state_dict()
        save_file(state, tmp_path / f"half-{number}.safetensors", metadata={"format": "pt"})
        catalog.ingest(tmp_path / f"half-{number}.safetensors", zoo="files")
    tied = torch.nn.Linear(4, 4).weight.detach()
    torch.save({"a.weight": tied, "b.weight": tied, "n": torch.tensor(7)}, tmp_path / "tied.pt")
    catalog.ingest(tmp_path / "tied.pt", zoo="files")
    return catalog


def contents(catalog: Catalog, table: str) -> list[dict[str, Any]]:
    rows = catalog.sql(f"select * from {table}").to_pylist()
    plain = [{k: v for k, v in row.items() if k not in APART} for row in rows]
    if table == "files":  # a .pt file comes back as safetensors
        plain = [row for row in plain if row["format"] == "safetensors" and "half" in row["path"]]
    return sorted(plain, key=repr)


@pytest.fixture
def exported(full: Catalog, tmp_path: Path) -> Path:
    create_split(full, "main", seed=3, by="checkpoint", stratify="zoo")
    export_split(full, "main", tmp_path / "out")
    return tmp_path / "out"


def test_the_same_split_and_networks_come_back(
    full: Catalog, exported: Path, tmp_path: Path
) -> None:
    (split,) = list_splits(full)
    with open_catalog(tmp_path / "second", create=True) as second:
        imported = import_split(second, exported)
        assert imported == split
        assert imported.created
        for table in TABLES:
            # repr, because NaN is not equal to itself.
            assert repr(contents(second, table)) == repr(contents(full, table)), table
        assert split_members(second, imported) == split_members(full, split)
        for checkpoint in full.sql("select checkpoint_id from checkpoints")[0].to_pylist():
            ours, theirs = (c.state_dict(checkpoint, verify=True) for c in (full, second))
            assert list(ours) == list(theirs)
            for name, tensor in ours.items():
                assert theirs[name].dtype == tensor.dtype
                assert torch.equal(theirs[name], tensor)
            assert full.reader.description(checkpoint) == second.reader.description(checkpoint)
        single = second.sql(
            "select checkpoint_id from wide where zoo = 'files' and dtype = 'float32'"
        )
        state = second.state_dict(single["checkpoint_id"][0].as_py())
        assert state["b.weight"] is state["a.weight"]
        assert second.check(deep=True) == []
        # A file that came as safetensors is the same file again, through two catalogs.
        for path in sorted(tmp_path.glob("half-*.safetensors")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found = second.sql("select checkpoint_id from files where sha256 = ?", [digest])
            again = second.export(found["checkpoint_id"][0].as_py(), tmp_path / "again.safetensors")
            assert again.read_bytes() == path.read_bytes()
            again.unlink()


def test_networks_build_as_before(full: Catalog, exported: Path, tmp_path: Path) -> None:
    with open_catalog(tmp_path / "second", create=True) as second:
        import_split(second, exported)
        data = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        ids = full.sql("select checkpoint_id from wide where zoo = 'mlps'")["checkpoint_id"]
        for checkpoint in ids.to_pylist():
            assert torch.equal(second.build(checkpoint)(data), full.build(checkpoint)(data))


def test_what_is_there_already_is_not_stored_again(full: Catalog, exported: Path) -> None:
    before = full.sql("select count(*) as n from commits").to_pylist()
    assert import_split(full, exported).created is False
    assert full.sql("select count(*) as n from commits").to_pylist() == before


def test_the_folder_is_plain_safetensors_and_says_its_hashes(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))
    files = {row["file"]: row for row in manifest["checkpoints"]}
    assert {str(p.relative_to(exported)) for p in (exported / "weights").iterdir()} == set(files)
    for name, row in files.items():
        data = (exported / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert len(data) == row["size_bytes"]
        with safe_open(exported / name, "pt") as file:
            names = set(file.keys())
        layout = manifest["architectures"][row["architecture_id"]]["layout"]
        assert names == {tensor["name"] for tensor in layout}


def test_networks_of_equal_content_share_a_file(catalog: Catalog, tmp_path: Path) -> None:
    batch = sample_population(num_models=6)
    catalog.append(batch, zoo="mlps")
    copies = [replace(r, model=replace(r.model, key=f"copy {r.model.key}")) for r in batch.rows]
    catalog.append(replace(batch, rows=copies), zoo="copies")
    create_split(catalog, "main")
    assert export_split(catalog, "main", tmp_path / "out").files == 12
    with open_catalog(tmp_path / "second", create=True) as second:
        import_split(second, tmp_path / "out")
        assert second.sql("select count(*) as n from checkpoints").to_pylist() == [{"n": 24}]


def _flip(folder: Path) -> None:
    path = sorted((folder / "weights").iterdir())[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _remove(folder: Path) -> None:
    sorted((folder / "weights").iterdir())[0].unlink()


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        change(manifest)
        path.write_text(json.dumps(manifest), encoding="utf-8")

    return apply


def _other_weights(storage: str) -> Callable[[Path], None]:
    """A file of other weights whose new hash was written into the manifest."""

    def apply(folder: Path) -> None:
        def change(manifest: dict[str, Any]) -> None:
            row = next(r for r in manifest["checkpoints"] if r["storage"] == storage)
            path = folder / row["file"]
            save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
            row["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

        _edit(change)(folder)

    return apply


def _swap_roles(manifest: dict[str, Any]) -> None:
    manifest["checkpoints"][0]["roles"] = ["test", "train"]


def _other_step(manifest: dict[str, Any]) -> None:
    manifest["checkpoints"][0]["step"] = 12345


def _outside(manifest: dict[str, Any]) -> None:
    manifest["checkpoints"][0]["file"] = "../secret.safetensors"


def _other_layout(manifest: dict[str, Any]) -> None:
    next(iter(manifest["architectures"].values()))["layout"][0]["name"] = "evil"


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (_flip, IntegrityError, "its SHA-256 is .* the manifest says"),
        (_remove, IntegrityError, "cannot be read"),
        (_other_weights("population"), IntegrityError, "content of checkpoint"),
        (_other_weights("tensors"), IntegrityError, "the content of its file is not"),
        (_edit(_swap_roles), IntegrityError, "make id .* the manifest says"),
        (_edit(_other_step), IntegrityError, "does not fit its id"),
        (_edit(_other_layout), IntegrityError, "the layout of architecture"),
        (_edit(_outside), SourceError, "'../secret.safetensors', which is not in the folder"),
        (_edit(lambda m: m.update(format=2)), SourceError, "pip install --upgrade"),
        (_edit(lambda m: m.pop("models")), SourceError, "missing or malformed"),
        (_edit(lambda m: m.update(checkpoints=[1])), SourceError, "missing or malformed"),
        (lambda f: (f / "manifest.json").write_text("{"), SourceError, "cannot be read"),
        (lambda f: (f / "manifest.json").unlink(), SourceError, "zoo split export"),
    ],
)
def test_nothing_of_a_changed_folder_is_stored(
    exported: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[Exception],
    text: str,
) -> None:
    damage(exported)
    with open_catalog(tmp_path / "second", create=True) as second:
        with pytest.raises(error, match=text):
            import_split(second, exported)
        assert list_splits(second) == []
        assert second.check(deep=True) == []
        # A file whose hash was forged is found when it is read; what came before it is whole.
        if "content" not in text:
            assert second.sql("select count(*) as n from checkpoints").to_pylist() == [{"n": 0}]


def test_another_split_of_the_name_is_an_error_before_anything_is_stored(
    exported: Path, tmp_path: Path
) -> None:
    with open_catalog(tmp_path / "second", create=True) as second:
        second.append(sample_population("cnn"), zoo="x")
        create_split(second, "main")
        with pytest.raises(CatalogError, match="has a split 'main' with other members"):
            import_split(second, exported)
        assert second.sql("select count(*) as n from checkpoints").to_pylist() == [{"n": 8}]


def test_other_weights_under_a_members_id_are_an_error(catalog: Catalog, tmp_path: Path) -> None:
    batch = sample_population(num_models=6)
    catalog.append(batch, zoo="mlps")
    create_split(catalog, "main")
    export_split(catalog, "main", tmp_path / "out")
    with open_catalog(tmp_path / "second", create=True) as second:
        second.append(replace(batch, weights=np.ascontiguousarray(batch.weights + 1)), zoo="mlps")
        with pytest.raises(CatalogError, match="holds other weights"):
            import_split(second, tmp_path / "out")


def test_where_an_export_cannot_go(full: Catalog, exported: Path) -> None:
    with pytest.raises(CatalogError, match="not an empty folder"):
        export_split(full, "main", exported)
    with pytest.raises(CatalogError, match="not an empty folder"):
        export_split(full, "main", exported / "manifest.json")
    with pytest.raises(UnknownIdError, match="Splits: main"):
        export_split(full, "mian", exported)
    with pytest.raises(CatalogError, match="cannot be written"):
        export_split(full, "main", exported / "manifest.json" / "below")
