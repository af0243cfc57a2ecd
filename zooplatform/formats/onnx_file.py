"""ONNX models: initializers and the values of Constant nodes, those inside subgraphs and functions too.

A tensor of the main graph keeps its name; one of a subgraph is named by the path to it:
`node/attribute/name`. External data must lie in the folder of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zooplatform.errors import SourceError
from zooplatform.formats.extras import need
from zooplatform.formats.files import OpenFile, allowed_root, inside
from zooplatform.formats.limits import check_shape, name_notes, shown
from zooplatform.formats.reader import ReaderBase
from zooplatform.interfaces import CheckpointHeader, SourceFile, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["OnnxReader", "external_files"]

_AGAIN = "Copy or download it again, together with its data files."
_MAX_BYTES = 2 << 30
_MAX_DEPTH = 32
# TensorProto.DataType -> (name, bits of one element, field of values when raw_data is not used).
_TYPES = {
    1: ("float32", 32, "float_data"),
    2: ("uint8", 8, "int32_data"),
    3: ("int8", 8, "int32_data"),
    4: ("uint16", 16, "int32_data"),
    5: ("int16", 16, "int32_data"),
    6: ("int32", 32, "int32_data"),
    7: ("int64", 64, "int64_data"),
    9: ("bool", 8, "int32_data"),
    10: ("float16", 16, "int32_data"),
    11: ("float64", 64, "double_data"),
    12: ("uint32", 32, "uint64_data"),
    13: ("uint64", 64, "uint64_data"),
    14: ("complex64", 64, "float_data"),
    15: ("complex128", 128, "double_data"),
    16: ("bfloat16", 16, "int32_data"),
    17: ("float8_e4m3fn", 8, "int32_data"),
    18: ("float8_e4m3fnuz", 8, "int32_data"),
    19: ("float8_e5m2", 8, "int32_data"),
    20: ("float8_e5m2fnuz", 8, "int32_data"),
    21: ("onnx.uint4", 4, "int32_data"),
    22: ("onnx.int4", 4, "int32_data"),
    23: ("onnx.float4e2m1", 4, "int32_data"),
    24: ("float8_e8m0fnu", 8, "int32_data"),
    25: ("onnx.uint2", 2, "int32_data"),
    26: ("onnx.int2", 2, "int32_data"),
    27: ("onnx.float6e2m3", 6, "int32_data"),
    28: ("onnx.float6e3m2", 6, "int32_data"),
}
_STRING, _EXTERNAL = 8, 1
_FIELD_DTYPES = {
    "float_data": "<f4",
    "double_data": "<f8",
    "int32_data": "<i4",
    "int64_data": "<i8",
    "uint64_data": "<u8",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the bytes of a tensor are: in the model itself, or at an offset of another file."""

    proto: Any
    file: OpenFile | None
    offset: int


class OnnxReader(ReaderBase):
    """One `.onnx` file and the data files that it names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        model_file = self._own(OpenFile(path))
        model = _parse(model_file)
        specs: list[TensorSpec] = []
        self._places: dict[str, _Place] = {}
        notes: list[str] = []
        external: dict[str, OpenFile] = {}
        for name, proto in _tensors(model, path):
            if proto.data_type == _STRING:
                notes.append(f"left out {shown(name)}: text")
                continue
            spec = _spec(name, proto, path)
            if name in self._places:
                raise SourceError(path, f"It holds the tensor {shown(name)} twice.", _AGAIN)
            self._places[name] = self._place(spec, proto, external)
            specs.append(spec)
        if not specs:
            raise SourceError(path, "It holds no weights.", "Give the model with its weights.")
        self.header = CheckpointHeader(
            tensors=tuple(specs),
            format="onnx",
            metadata=_metadata(model, path),
            notes=(*notes[:16], *name_notes(self._places, path)),
        )
        names: dict[OpenFile, list[str]] = {file: [] for file in self.opened}
        for name, place in self._places.items():
            names[place.file or model_file].append(name)
        self.files = tuple(
            SourceFile(
                path=file.path.relative_to(path.parent).as_posix(),
                format="onnx" if file is model_file else "onnx-data",
                size_bytes=file.size,
                tensors=tuple(names[file]),
            )
            for file in self.opened
        )

    def buffer(self, name: str) -> memoryview:
        spec = self.spec(name)
        place = self._places[name]
        if place.file is not None:
            data = np.empty(spec.size_bytes, np.uint8).data
            place.file.read_into(data, place.offset)
            return data
        if place.proto.HasField("raw_data"):
            return np.frombuffer(place.proto.raw_data, np.uint8).copy().data
        return _field_bytes(place.proto, spec).data

    def close(self) -> None:
        self._places = {}
        super().close()

    def _place(self, spec: TensorSpec, proto: Any, external: dict[str, OpenFile]) -> _Place:
        """Where the bytes are, which must be exactly as many as the shape needs."""
        if proto.data_location == _EXTERNAL:
            location, offset, length = _external(proto, self._path)
            if location not in external:
                external[location] = self._own(OpenFile(_data_path(self._path, location)))
            file = external[location]
            if length is not None and length != spec.size_bytes:
                held = length
            elif offset + spec.size_bytes > file.size:
                held = max(0, file.size - offset)
            else:
                return _Place(proto, file, offset)
        elif proto.HasField("raw_data"):
            held = len(proto.raw_data)
        else:
            held = len(_field_bytes(proto, spec))
        if held != spec.size_bytes:
            raise SourceError(
                self._path,
                f"Tensor {shown(spec.name)} has {held:,} bytes where its shape {list(spec.shape)} of {spec.dtype}"
                f" needs {spec.size_bytes:,}.",
                _AGAIN,
            )
        return _Place(proto, None, 0)


def external_files(path: Path) -> tuple[Path, ...]:
    """The data files that the model at `path` names, each once, sorted."""
    with OpenFile(path) as file:
        model = _parse(file)
    names = {
        _external(proto, path)[0]
        for _, proto in _tensors(model, path)
        if proto.data_location == _EXTERNAL
    }
    return tuple(_data_path(path, name) for name in sorted(names))


def _data_path(path: Path, location: str) -> Path:
    found = inside(path.parent, location, allowed_root(path.parent), path)
    if not found.is_file():
        raise SourceError(path, f"Its data file {shown(location)} is missing.", _AGAIN)
    return found


def _parse(file: OpenFile) -> Any:
    onnx = need("onnx", "onnx", "Reading ONNX models")
    from google.protobuf.message import DecodeError

    if file.size > _MAX_BYTES:
        raise SourceError(
            file.path,
            f"It has {file.size:,} bytes; a protobuf message has at most 2 GB.",
            "Save its weights as external data.",
        )
    try:
        model = onnx.ModelProto.FromString(file.read_at(0, file.size))
    except (DecodeError, ValueError, RuntimeError, MemoryError) as exc:
        raise SourceError(file.path, f"It is no ONNX model: {str(exc)[:200]}.", _AGAIN) from exc
    if not model.HasField("graph"):
        raise SourceError(file.path, "It is no ONNX model: it has no graph.", _AGAIN)
    return model


def _text(value: str | bytes, path: Path) -> str:
    """A text of the model; protobuf hands out bytes where it is not UTF-8."""
    if isinstance(value, bytes):
        raise SourceError(path, f"It holds a name that is not UTF-8: {value[:40]!r}.", _AGAIN)
    return value


def _tensors(model: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """(qualified name, TensorProto) of every weight, in the order of the file."""
    if model.graph.sparse_initializer:
        raise SourceError(
            path, "It holds sparse initializers.", "Make them dense and export it again."
        )
    yield from _graph(model.graph, "", 0, path)
    for function in model.functions:
        where = f"{_text(function.domain, path)}.{_text(function.name, path)}/"
        yield from _nodes(function.node, where, 0, path)


def _graph(graph: Any, prefix: str, depth: int, path: Path) -> Iterator[tuple[str, Any]]:
    if depth > _MAX_DEPTH:
        raise SourceError(path, f"Its subgraphs are nested deeper than {_MAX_DEPTH}.", _AGAIN)
    if depth and graph.sparse_initializer:
        raise SourceError(
            path, "It holds sparse initializers.", "Make them dense and export it again."
        )
    for proto in graph.initializer:
        yield prefix + _text(proto.name, path), proto
    yield from _nodes(graph.node, prefix, depth, path)


def _nodes(nodes: Any, prefix: str, depth: int, path: Path) -> Iterator[tuple[str, Any]]:
    used: set[str] = set()
    for index, node in enumerate(nodes):
        name = _text(node.name, path)
        if not name or name in used:
            # Node names are optional and need not be unique; the position is.
            name = f"{name or _text(node.op_type, path)}_{index}"
        used.add(name)
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value" and attribute.HasField("t"):
                output = _text(node.output[0], path) if node.output else name
                yield prefix + output, attribute.t
            if attribute.HasField("g"):
                yield from _graph(
                    attribute.g, f"{prefix}{name}/{_text(attribute.name, path)}/", depth + 1, path
                )
            for number, graph in enumerate(attribute.graphs):
                inner = f"{prefix}{name}/{_text(attribute.name, path)}.{number}/"
                yield from _graph(graph, inner, depth + 1, path)


def _spec(name: str, proto: Any, path: Path) -> TensorSpec:
    shape = check_shape(list(proto.dims), name, path)
    if proto.data_type not in _TYPES:
        raise SourceError(
            path, f"Tensor {shown(name)} has the unknown type {proto.data_type}.", _AGAIN
        )
    if proto.HasField("segment"):
        raise SourceError(
            path, f"Tensor {shown(name)} is stored in segments.", "Export the model again."
        )
    dtype, bits, _ = _TYPES[proto.data_type]
    size = -(-prod(shape) * bits // 8)
    if dtype == "onnx.float4e2m1" and shape and shape[-1] % 2 == 0:
        # Two elements share a byte; torch's type counts the bytes of the last dimension.
        dtype, shape = "float4_e2m1fn_x2", (*shape[:-1], shape[-1] // 2)
    return TensorSpec(name, dtype, shape, size)


def _external(proto: Any, path: Path) -> tuple[str, int, int | None]:
    """Location, offset and length of external data."""
    entries = {_text(e.key, path): _text(e.value, path) for e in proto.external_data}
    numbers: dict[str, int | None] = {"offset": 0, "length": None}
    for key in numbers:
        text = entries.get(key)
        if text is None:
            continue
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise SourceError(
                path, f"Tensor {shown(proto.name)} has the {key} {shown(text)}.", _AGAIN
            )
        numbers[key] = int(text)
    if not entries.get("location"):
        raise SourceError(path, f"Tensor {shown(proto.name)} names no data file.", _AGAIN)
    return entries["location"], numbers["offset"] or 0, numbers["length"]


def _field_bytes(proto: Any, spec: TensorSpec) -> npt.NDArray[np.uint8]:
    """The little-endian bytes of values kept in a typed field, where narrow types lie in wider integers.

    Of types below 8 bits, those of 2 and 4 bits come packed, a byte to a value; those of 6 bits come one to a value.
    """
    _, bits, field = _TYPES[proto.data_type]
    values = np.asarray(getattr(proto, field), _FIELD_DTYPES[field])
    if field in ("int32_data", "uint64_data"):
        values = values.astype(f"<u{max(1, bits // 8)}")
    if bits == 6:
        values = np.packbits(
            np.unpackbits(values.reshape(-1, 1), axis=1, count=6, bitorder="little"),
            bitorder="little",
        )
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _metadata(model: Any, path: Path) -> dict[str, str]:
    found = {
        "producer_name": _text(model.producer_name, path),
        "producer_version": _text(model.producer_version, path),
        "opset": ", ".join(
            f"{_text(o.domain, path) or 'ai.onnx'} {o.version}" for o in model.opset_import
        ),
        **{_text(e.key, path): _text(e.value, path) for e in model.metadata_props},
    }
    return {key: value for key, value in found.items() if value}
