"""ONNX models: weights wherever they are kept, external data only in the folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

CODES = [
    code
    for code in TensorProto.DataType.values()
    if code not in (TensorProto.UNDEFINED, TensorProto.STRING)
]


def write(path: Path, tensors: list[Any], nodes: list[Any] = [], functions: list[Any] = []) -> Path:  # noqa: B006
    graph = helper.make_graph(nodes, "g", [], [], initializer=tensors)
    path.write_bytes(helper.make_model(graph, functions=functions).SerializeToString())
    return path


def floats(name: str, values: list[float]) -> Any:
    return numpy_helper.from_array(np.array(values, "<f4"), name)


@pytest.mark.parametrize("code", CODES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("raw", [True, False])
def test_every_type(code: int, raw: bool, tmp_path: Path, read) -> None:
    """Values in raw bytes and in typed fields, against the library's own reading."""
    kind = helper.tensor_dtype_to_np_dtype(code)
    values = np.array([0, 1, 1, 0, 1, 1, 1, 0], dtype=kind).reshape(2, 4)
    if raw:
        tensor = numpy_helper.from_array(values, "w")
    else:
        tensor = helper.make_tensor("w", code, (2, 4), values.astype(kind).flatten().tolist())
        assert not tensor.HasField("raw_data")
    assert tensor.data_type == code
    packed = numpy_helper.from_array(values, "w").raw_data
    assert read(write(tmp_path / "m.onnx", [tensor]))[1] == {"w": packed}


def test_subgraphs_constants_and_functions(tmp_path: Path, read) -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=floats("", [3]))],
        "then",
        [],
        [],
        initializer=[floats("w", [2])],
    )
    other = helper.make_graph([], "else", [], [], initializer=[floats("w", [4])])
    branch = helper.make_node("If", ["c"], ["y"], name="If_0", then_branch=inner, else_branch=other)
    outer = helper.make_graph([branch], "body", [], [])
    nameless = helper.make_node("Loop", [], [], body=outer)
    function = helper.make_function(
        "d", "f", [], ["k"], [helper.make_node("Constant", [], ["k"], value=floats("", [5]))], []
    )
    path = write(tmp_path / "m.onnx", [floats("w", [1])], [nameless, branch, branch], [function])
    _, values = read(path)
    assert {name: np.frombuffer(raw, "<f4").tolist() for name, raw in values.items()} == {
        "w": [1],
        "Loop_0/body/If_0/then_branch/w": [2],
        "Loop_0/body/If_0/then_branch/k": [3],
        "Loop_0/body/If_0/else_branch/w": [4],
        "If_0/then_branch/w": [2],
        "If_0/then_branch/k": [3],
        "If_0/else_branch/w": [4],
        "If_0_2/then_branch/w": [2],
        "If_0_2/then_branch/k": [3],
        "If_0_2/else_branch/w": [4],
        "d.f/k": [5],
    }


def external(location: str, **more: str) -> Any:
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_external_data(tmp_path: Path, read) -> None:
    data = np.arange(4, dtype="<f4").tobytes()
    (tmp_path / "m.onnx.data").write_bytes(data)
    path = write(tmp_path / "m.onnx", [external("m.onnx.data", offset="4", length="8")])
    first, values = read(path)
    assert values == {"w": data[4:12]}
    assert [file.path for file in first.files] == ["m.onnx", "m.onnx.data"]
    # The data is part of what the model is.
    (tmp_path / "m.onnx.data").write_bytes(data[::-1])
    assert read(path)[0].info.revision != first.info.revision


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"location": "../secret"}, "not a plain name inside its folder"),
        ({"location": "/etc/hostname"}, "not a plain name inside its folder"),
        ({"location": "a/../../secret"}, "not a plain name inside its folder"),
        ({"location": ""}, "names no data file"),
        ({"location": "nowhere"}, "is missing"),
        ({"location": "link"}, "a link out of"),
        ({"location": "data", "offset": "4"}, "has 4 bytes"),
        ({"location": "data", "offset": "99"}, "has 0 bytes"),
        ({"location": "data", "length": "4"}, "has 4 bytes"),
        ({"location": "data", "offset": "-1"}, "the offset '-1'"),
        ({"location": "data", "offset": "9" * 30}, "the offset"),
        ({"location": "pipe"}, "is missing"),
    ],
)
def test_external_data_that_is_refused(
    more: dict[str, str], text: str, tmp_path: Path, refusal
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(8))
    (folder / "data").write_bytes(bytes(8))
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    assert text in refusal(write(folder / "m.onnx", [external(**more)]))


def test_lying_sizes(tmp_path: Path, refusal) -> None:
    tensor = floats("w", [1, 2])
    tensor.dims[0] = 2**40
    assert "has 8 bytes where its shape" in refusal(write(tmp_path / "m.onnx", [tensor]))
    tensor.dims[0] = 2**60
    assert "beyond 2^48" in refusal(write(tmp_path / "m.onnx", [tensor]))
    tensor = helper.make_tensor("w", TensorProto.FLOAT, (2,), [1.0, 2.0])
    tensor.float_data.append(3)
    assert "has 12 bytes where" in refusal(write(tmp_path / "m.onnx", [tensor]))


def test_the_same_name_twice(tmp_path: Path, refusal) -> None:
    assert "'w' twice" in refusal(write(tmp_path / "m.onnx", [floats("w", [1]), floats("w", [2])]))


def test_sparse_initializers(tmp_path: Path, refusal) -> None:
    path = write(tmp_path / "m.onnx", [floats("w", [1])])
    model = onnx.load(path)
    model.graph.sparse_initializer.add()
    path.write_bytes(model.SerializeToString())
    assert "sparse initializers" in refusal(path)


def test_text_is_left_out(tmp_path: Path, read) -> None:
    names = helper.make_tensor("labels", TensorProto.STRING, (1,), [b"cat"])
    checkpoint, values = read(write(tmp_path / "m.onnx", [floats("w", [1]), names]))
    assert list(values) == ["w"]
    assert checkpoint.header.notes == ("left out 'labels': text",)


@pytest.mark.parametrize("content", [b"\x08\x07", b"hello", b"\x08\x07\x3a\xff\xff\xff\x7f"])
def test_no_model(content: bytes, tmp_path: Path, refusal) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert "It is no ONNX model" in refusal(tmp_path / "m.onnx")


def test_deep_subgraphs(tmp_path: Path, refusal) -> None:
    graph = helper.make_graph([], "g", [], [], initializer=[floats("w", [1])])
    for _ in range(33):
        graph = helper.make_graph([helper.make_node("If", [], [], then_branch=graph)], "g", [], [])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert "deeper" in refusal(path) or "no ONNX model" in refusal(path)
