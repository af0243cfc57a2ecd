"""Source `model-dataset:`: pickled data sets whose classes are not installed, read without running them."""

from __future__ import annotations

import pickle
import pickletools
import struct
import sys
import types
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.errors import SourceError
from zooplatform_zoos.dataset_file import ModelDataset
from zooplatform_zoos.stubs import LazyTensor, Stub, read_with_stubs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog

MODULES = ("checkpoints_to_datasets", "checkpoints_to_datasets.dataset_base")
MODULES += ("ray_like", "ray_like.tune")


def vector(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """As the zoos flatten a network: weight before bias, layer by layer."""
    return torch.cat([tensor.flatten() for tensor in state.values()])


@pytest.fixture
def classes() -> Iterator[dict[str, Any]]:
    """The classes of the authors, there while files are written and gone before they are read."""
    modules = {name: types.ModuleType(name) for name in MODULES}
    made = {}
    for module, name in (
        ("checkpoints_to_datasets.dataset_base", "ModelDatasetBase"),
        ("ray_like.tune", "Choice"),
    ):
        made[name] = type(name, (), {"__module__": module, "__qualname__": name})
        setattr(modules[module], name, made[name])
    made["DictLike"] = type("DictLike", (dict,), {"__module__": "ray_like.tune"})
    modules["ray_like.tune"].DictLike = made["DictLike"]  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def build(
    classes: dict[str, Any], runs: list[Any], *, nested: bool, states: bool
) -> dict[str, Any]:
    """Two runs without dropout for training, one with dropout for testing."""
    content = {}
    for key, chosen in (("trainset", runs[:2]), ("testset", runs[2:])):
        part = classes["ModelDatasetBase"]()
        data, labels, paths, epochs = [], [], [], []
        properties: dict[str, list[Any]] = {
            n: [] for n in ("test_acc", "model::nlin", "model::dropout")
        }
        for run in chosen:
            name = f"run_{run.config['seed']}"
            rows = [state if states else vector(state) for state in run.states]
            values = {
                "test_acc": [np.float64(r["test_acc"]) for r in run.results],
                "model::nlin": [run.config["model::nlin"]] * 3,
                "model::dropout": [run.config["model::dropout"]] * 3,
            }
            path = PosixPath("/netscratch/zoos") / name
            if nested:
                data.append(rows)
                labels.append([f"{name}#_#epoch_{e}" for e in range(3)])
                paths.append(path)
                epochs.append(list(range(3)))
                for k, v in values.items():
                    properties[k].append(v)
            else:
                data += rows
                labels += [f"{name}#_#epoch_{e}" for e in range(3)]
                paths += [path] * 3
                epochs += list(range(3))
                for k, v in values.items():
                    properties[k] += v
        part.data_in = data if nested or states else torch.stack(data)
        part.data_out = part.data_in
        part.labels, part.paths, part.epochs, part.properties = labels, paths, epochs, properties
        part.verbosity, part.transforms = 0, classes["DictLike"](a=classes["Choice"]())
        content[key] = part
    return content


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("states", [True, False], ids=["states", "vectors"])
def test_networks_and_split(
    tmp_path: Path,
    classes: dict[str, Any],
    runs: list[Any],
    rows: Any,
    same: Any,
    new: bool,
    nested: bool,
    states: bool,
) -> None:
    path = tmp_path / "dataset_train_val_test.pt"
    content = build(classes, runs, nested=nested, states=states)
    torch.save(content, path, _use_new_zipfile_serialization=new)
    for name in MODULES:
        sys.modules.pop(name)
    found = rows(list(ModelDataset().batches(str(path))))
    assert not found.failed
    assert len(found) == 9
    for run in runs:
        name = f"/netscratch/zoos/run_{run.config['seed']}"
        for epoch in range(3):
            assert same(found.state(name, epoch), run.states[epoch])
            assert found.metrics(name, epoch) == {"test_accuracy": run.results[epoch]["test_acc"]}
            config = found.record(name, epoch).model.config
            assert config["split"] == ("train" if run.config["seed"] < 2 else "test")
            assert config["model::nlin"] == run.config["model::nlin"]


def test_rebuilt_accuracy(
    tmp_path: Path, classes: dict[str, Any], runs: list[Any], zoo_catalog: Catalog, evaluate: Any
) -> None:
    path = tmp_path / "dataset.pt"
    torch.save(build(classes, runs, nested=False, states=False), path)
    zoo_catalog.ingest(f"model-dataset:{path}")
    stored = zoo_catalog.sql(
        "select c.checkpoint_id, r.value from checkpoints c join metrics r"
        " on r.checkpoint_id = c.checkpoint_id and r.name = 'test_accuracy'"
    ).to_pylist()
    assert len(stored) == 9
    for row in stored:
        assert evaluate(zoo_catalog.build(row["checkpoint_id"])) == row["value"]
    split = zoo_catalog.sql(
        "select value, count(*) n from hyperparameters where key = 'split' group by 1 order by 1"
    ).to_pylist()
    assert [row["n"] for row in split] == [1, 2]
    again = zoo_catalog.ingest(f"model-dataset:{path}")
    assert not again.checkpoint_ids


def test_percent_and_a_leaking_split(
    tmp_path: Path, classes: dict[str, Any], runs: list[Any], rows: Any
) -> None:
    content = build(classes, runs, nested=False, states=False)
    for part in content.values():
        part.properties["test_acc"] = [100 * v for v in part.properties["test_acc"]]
    content["testset"].paths = content["trainset"].paths[:3]
    content["testset"].epochs = [7, 8, 9]
    path = tmp_path / "dataset.pt"
    torch.save(content, path)
    found = rows(list(ModelDataset().batches(str(path))))
    accuracy = found.metrics("/netscratch/zoos/run_0", 2)["test_accuracy"]
    assert accuracy == pytest.approx(runs[0].results[2]["test_acc"])
    assert any("the split leaks" in note for note in found.notes)


def test_unknown_size_needs_a_layout(
    tmp_path: Path, classes: dict[str, Any], rows: Any, same: Any
) -> None:
    part = classes["ModelDatasetBase"]()
    part.data_in = torch.arange(24.0).reshape(2, 12)
    part.paths, part.epochs, part.labels = ["a", "b"], [1, 1], ["", ""]
    path = tmp_path / "dataset_x.pt"
    torch.save({"trainset": part}, path)
    found = rows(list(ModelDataset().batches(str(path))))
    assert len(found) == 0
    assert len(found.failed) == 2
    assert "no network of 12 parameters" in found.failed[0][1]
    # index_dict.json as the zoos have it: kernel sizes as the side or the area, bias behind the weight.
    (tmp_path / "index_dict.json").write_text(
        '{"layer": [[0, "conv2d"], [3, "fc"]], "idx_start": [0, 10], "idx_length": [10, 2],'
        ' "kernel_no": [2, 2], "channels_in": [1, 1], "kernel_size": [4, 1]}'
    )
    found = rows(list(ModelDataset().batches(str(path))))
    assert not found.failed
    state = found.state("b", 1)
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "module_list.0.weight": (2, 1, 2, 2),
        "module_list.0.bias": (2,),
        "module_list.3.weight": (2, 1),
    }
    assert torch.equal(vector(state), torch.arange(12.0, 24.0))


def test_large_tensors_are_located_not_read(tmp_path: Path, classes: dict[str, Any]) -> None:
    part = classes["ModelDatasetBase"]()
    part.data_in = torch.arange(3000.0).reshape(30, 100).t()
    path = tmp_path / "x.pt"
    torch.save(part, path)
    content = read_with_stubs(path)
    assert isinstance(content, Stub)
    assert content.name.endswith("ModelDatasetBase")
    tensor = content.attributes["data_in"]
    assert isinstance(tensor, LazyTensor)
    assert torch.equal(tensor[7].read(), part.data_in[7])


def legacy(payload: bytes) -> bytes:
    """A file of the old format whose object is `payload`."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + payload + pickle.dumps([], 2)


HOSTILE = {
    "extension": b"\x80\x02\x82\x01.",
    "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "long-string": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "call-result": b"\x80\x02ccollections\nOrderedDict\n)R)R.",
    "patch-function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00nameK\x01sb.",
    "tensor-out-of-range": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04NtQK\x00(J\xff\xff\xff\x7ftK\x01\x85\x89NtR."
    ),
    "deep-key": b"\x80\x02})" + b"\x85" * 3_000_000 + b"K\x01s.",
    "deep-memo": b"\x80\x02})q\x00" + b"0h\x00\x85q\x00" * 300_000 + b"K\x01s.",
    "empty": b"",
}


# What each is refused for; other guards would stop some of them too.
REASONS = {
    "extension": "extension registry",
    "memo": "memo number",
    "long-string": "not a readable torch file",
    "call-result": "not callable",
    "patch-function": "AttributeError",
    "tensor-out-of-range": "more elements than its storage",
    "deep-key": "nested more than",
    "deep-memo": "nested more than",
    "empty": "not a readable torch file",
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_hostile_pickles(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dataset.pt"
    path.write_bytes(legacy(HOSTILE[kind]))
    with pytest.raises(SourceError) as caught:
        list(ModelDataset().batches(str(path)))
    assert str(path) in str(caught.value)
    assert REASONS[kind] in str(caught.value)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_code_becomes_a_stub(
    tmp_path: Path, classes: dict[str, Any], runs: list[Any], rows: Any, bomb: Any, new: bool
) -> None:
    """A call in a pickle is kept as what it is, never made; the networks beside it are read."""
    content = build(classes, runs, nested=False, states=False)
    content["trainset"].verbosity = bomb.value
    path = tmp_path / "dataset.pt"
    torch.save(content, path, _use_new_zipfile_serialization=new)
    data = path.read_bytes()
    assert b"system" in data
    found = rows(list(ModelDataset().batches(str(path))))
    assert len(found) == 9
    assert not bomb.path.exists()


def test_every_prefix_is_refused(
    tmp_path: Path, classes: dict[str, Any], runs: list[Any], rows: Any
) -> None:
    """However a file is cut, the answer is our error."""
    content = build(classes, runs, nested=False, states=False)
    for new in (True, False):
        path = tmp_path / f"dataset_{new}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=new)
        data = path.read_bytes()
        for cut in [*range(0, 400, 7), *range(400, len(data), 4001), len(data) - 1]:
            path.write_bytes(data[:cut])
            with pytest.raises(SourceError):
                list(ModelDataset().batches(str(path)))


def test_fixture_bytes_are_pickles() -> None:
    """The hostile bytes are what they claim: all but the cut ones are well-formed pickles."""
    for kind in ("extension", "memo", "call-result", "patch-function", "tensor-out-of-range"):
        assert list(pickletools.genops(HOSTILE[kind]))[-1][0].name == "STOP"


def test_images_are_no_networks(tmp_path: Path) -> None:
    path = tmp_path / "dataset.pt"
    torch.save({"trainset": [1, 2]}, path)
    with pytest.raises(SourceError, match="hold no weights"):
        list(ModelDataset().batches(str(path)))
    with pytest.raises(SourceError, match="no such file"):
        ModelDataset().describe(str(tmp_path / "none.pt"))
