"""Sources `nws-zoo:` and `vector-zoo:`: bare vectors, split by what is known of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.errors import SourceError
from zooplatform_zoos.nws import NwsZoo
from zooplatform_zoos.vectors import VectorZoo

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog


@pytest.fixture
def nws(tmp_path: Path, runs: list[Any]) -> tuple[Path, np.ndarray[Any, Any]]:
    """Two networks of two checkpoints in float64, with values that float32 cannot hold."""
    root = tmp_path / "nws"
    vectors = []
    for number in range(2):
        folder = root / "data" / f"net_{number}"
        (folder / "weights").mkdir(parents=True)
        for epoch in range(2):
            state = runs[number].states[epoch]
            vector = torch.cat([t.flatten() for t in state.values()]).double().numpy() / 3
            vector.astype("<f8").tofile(folder / "weights" / f"{epoch:03d}.bin")
            vectors.append(vector)
        np.arange(10, dtype="<f8").tofile(folder / "error.bin")
    lines = ["path,dataset,lr,weightn_conv,weightn_fc"]
    lines += [f"data/net_{n},mnist,0.0{n + 1},1514,950" for n in range(2)]
    lines += ["../../etc,mnist,1,1,1", "data/gone,mnist,1,1,1"]
    (root / "nws_main.csv").write_text("\n".join(lines) + "\n")
    return root, np.stack(vectors)


def test_nws_keeps_float64(nws: Any, rows: Any, zoo_catalog: Catalog) -> None:
    root, vectors = nws
    found = rows(list(NwsZoo().batches(str(root))))
    assert len(found) == 4
    for number in range(2):
        for epoch in range(2):
            state = found.state(f"data/net_{number}", epoch)
            assert {k: tuple(v.shape) for k, v in state.items()} == {
                "conv.weights": (1514,),
                "fc.weights": (950,),
            }
            joined = torch.cat(list(state.values())).numpy()
            assert joined.tobytes() == vectors[2 * number + epoch].tobytes()
            assert found.metrics(f"data/net_{number}", epoch)["error_2"] == 5 * epoch + 2
    assert found.record("data/net_1", 0).model.config["lr"] == 0.02
    reasons = sorted(text for _, text in found.failed)
    assert reasons == [
        "its folder '../../etc' leads out of the zoo",
        "its folder 'data/gone' is not there",
    ]
    report = zoo_catalog.ingest(f"nws-zoo:{root}")
    assert len(report.checkpoint_ids) == 4
    state = zoo_catalog.state_dict(report.checkpoint_ids[0])
    assert torch.cat(list(state.values())).numpy().tobytes() in {v.tobytes() for v in vectors}


def test_nws_damage_is_reported(nws: Any, rows: Any) -> None:
    root, _ = nws
    first = root / "data" / "net_0" / "weights" / "000.bin"
    first.write_bytes(first.read_bytes()[:-3])
    second = root / "data" / "net_1" / "weights" / "001.bin"
    second.write_bytes(second.read_bytes()[:-8])
    (root / "data" / "net_1" / "error.bin").write_bytes(b"1234")
    found = rows(list(NwsZoo().batches(str(root))))
    assert len(found) == 2
    texts = [text for _, text in found.failed if "bin" in text]
    assert any("no float64 vector" in text for text in texts)
    assert any("it has 2463 values" in text for text in texts)
    assert any("error.bin" in note for note in found.notes)


def test_nws_with_a_layout(nws: Any, runs: list[Any], rows: Any, zoo_catalog: Catalog) -> None:
    root, _ = nws
    lines = [f"{k},{'x'.join(map(str, v.shape))}" for k, v in runs[0].states[0].items()]
    (root / "layout.csv").write_text("name,shape\n" + "\n".join(lines) + "\n")
    found = rows(list(NwsZoo().batches(str(root))))
    state = found.state("data/net_1", 1)
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in runs[0].states[0].items()
    }
    assert torch.equal(
        state["module_list.0.weight"], runs[1].states[1]["module_list.0.weight"].double() / 3
    )


def test_nws_needs_a_table(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="column 'path'"):
        list(NwsZoo().batches(str(tmp_path)))


@pytest.fixture
def vectors(tmp_path: Path, runs: list[Any]) -> Path:
    """Vectors of two data sets, padded with zeros or NaN to one length."""
    path = tmp_path / "train_data.pt"
    parts = {}
    for number, pad in ((0, 0.0), (1, float("nan"))):
        stacked = torch.stack(
            [torch.cat([t.flatten() for t in state.values()]) for state in runs[number].states]
        )
        padded = torch.nn.functional.pad(stacked, (0, 36), value=pad)
        accuracies = torch.tensor([r["test_acc"] for r in runs[number].results])
        parts[f"set_{number}"] = (padded, accuracies, "unnamed")
    torch.save(parts, path)
    tensors = [{"name": k, "shape": list(v.shape)} for k, v in runs[0].states[0].items()]
    layout = {
        "tensors": tensors,
        "family": "cnn",
        "config": {"preset": "tiny_zoo", "activation": "tanh"},
        "columns": ["vectors", "test_acc"],
    }
    (tmp_path / "train_data.layout.json").write_text(json.dumps(layout))
    return path


def test_padding_is_removed(
    vectors: Path, runs: list[Any], rows: Any, same: Any, zoo_catalog: Catalog, evaluate: Any
) -> None:
    found = rows(list(VectorZoo().batches(str(vectors))))
    assert len(found) == 6
    for number in range(2):
        for row in range(3):
            name = f"set_{number}/{row}"
            assert same(found.state(name, None), runs[number].states[row])
            accuracy = found.metrics(name, None)["test_accuracy"]
            assert accuracy == pytest.approx(runs[number].results[row]["test_acc"], abs=1e-6)
    assert any("does not name" in note for note in found.notes)
    report = zoo_catalog.ingest(f"vector-zoo:{vectors}")
    assert len(report.checkpoint_ids) == 6
    rebuilt = zoo_catalog.build(report.checkpoint_ids[2])
    assert evaluate(rebuilt) == runs[0].results[2]["test_acc"]
    assert not zoo_catalog.ingest(f"vector-zoo:{vectors}").checkpoint_ids


def test_what_is_no_padding_is_reported(vectors: Path, rows: Any) -> None:
    content = torch.load(vectors, weights_only=True)
    content["set_0"][0][1, -1] = 1.0
    torch.save(content, vectors)
    found = rows(list(VectorZoo().batches(str(vectors))))
    assert len(found) == 5
    assert "others than padding" in found.failed[0][1]


def test_layouts_per_data_set(vectors: Path, rows: Any) -> None:
    path = vectors.with_name("train_data.layout.json")
    one = json.loads(path.read_text())
    one.pop("columns")
    path.write_text(json.dumps({"layouts": {"set_1": one}}))
    found = rows(list(VectorZoo().batches(str(vectors))))
    assert len(found) == 3
    assert found.failed[0][0].endswith("(set_0)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "train_data.layout.json"),
        ("[]", "no JSON object"),
        ('{"tensors": []}', "no list"),
        ('{"tensors": [{"name": "a", "shape": [-1]}]}', "no shape"),
        ('{"tensors": [{"name": "a", "shape": [1]}, {"name": "a", "shape": [1]}]}', "one name"),
        ("{", "JSON"),
    ],
)
def test_layouts_are_checked(vectors: Path, text: str | None, words: str) -> None:
    path = vectors.with_name("train_data.layout.json")
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(SourceError, match=words) as error:
        list(VectorZoo().batches(str(vectors)))
    # Whoever wrote the layout is told how to write it; another copy would not help.
    assert "download it again" not in error.value.remedy


def test_vectors_with_code(vectors: Path, bomb: Any) -> None:
    torch.save({"set_0": bomb.value}, vectors)
    with pytest.raises(SourceError, match="refused"):
        list(VectorZoo().batches(str(vectors)))
    assert not bomb.path.exists()
