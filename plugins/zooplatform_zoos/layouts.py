"""Layouts for files that hold bare vectors: read from a file beside them, or known by the number of parameters.

Legend: P parameters of one network.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt, prod
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError
from zooplatform_zoos.small_cnn_layout import read_layout

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from zooplatform.interfaces import StateDict

__all__ = ["GivenLayout", "find_layout", "known_layout", "parse_layout"]

# What helps with each kind of layout file.
_OTHER_LAYOUT = (
    "Put the layout of these networks beside the file: names and shapes of their tensors, in order."
)
_JSON = 'Write {"tensors": [{"name": "conv1.weight", "shape": [8, 1, 5, 5]}, ...]}, in the order of the values.'
_INDEX = "Fetch it again, or write a layout.json with names and shapes of the tensors in its place."
_MAX_RANK = 8
_MAX_TENSORS = 100_000


@dataclass(frozen=True)
class GivenLayout:
    """Names and shapes in the order of the vector, and what builds the network."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    family: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        return sum(prod(shape) for _, shape in self.tensors)

    def split(self, vector: torch.Tensor, ref: object) -> StateDict:
        """The tensors of `vector`; what follows the P parameters has to be padding (zero or NaN) and is removed.

        Raises:
            SourceError: the vector is too short, or the padding is not.
        """
        size = self.num_parameters
        if vector.numel() < size:
            raise SourceError(
                ref, f"the vector has {vector.numel()} values, the layout {size}.", _OTHER_LAYOUT
            )
        padding = vector[size:]
        if padding.numel() and not bool(((padding == 0) | padding.isnan()).all()):
            raise SourceError(
                ref,
                f"behind the {size} values of the layout there are others than padding.",
                _OTHER_LAYOUT,
            )
        state, at = {}, 0
        for name, shape in self.tensors:
            state[name] = vector[at : at + prod(shape)].reshape(shape)
            at += prod(shape)
        return state


def find_layout(path: Path) -> Path | None:
    """The layout beside `path`: `<stem>.layout.json|csv`, `layout.json|csv` or `index_dict.json`."""
    names = [f"{path.stem}.layout.json", f"{path.stem}.layout.csv"]
    names += ["layout.json", "layout.csv", "index_dict.json"]
    return next((found for name in names if (found := path.parent / name).is_file()), None)


def parse_layout(path: Path) -> Mapping[str, Any] | GivenLayout:
    """Read a layout file; JSON that holds one layout per data set under `layouts` is returned as it is.

    Raises:
        SourceError: the file is malformed.
    """
    if path.suffix == ".csv":
        return _from_csv(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(path, f"not a readable JSON file: {error}", _JSON) from error
    if not isinstance(content, Mapping):
        raise SourceError(path, "it is no JSON object.", _JSON)
    if "idx_start" in content:
        return _from_index_dict(path, content)
    if "layouts" in content:
        return content
    return layout_from_json(content, path)


def layout_from_json(content: Mapping[str, Any], subject: object) -> GivenLayout:
    """`{"tensors": [{"name", "shape"}, ...], "family": ..., "config": {...}}`."""
    listed = content.get("tensors")
    if not isinstance(listed, list) or not 0 < len(listed) <= _MAX_TENSORS:
        raise SourceError(subject, 'it has no list "tensors".', _JSON)
    tensors = []
    for entry in listed:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise SourceError(subject, f"the tensor {str(entry)[:80]} has no name.", _JSON)
        tensors.append((entry["name"], _shape(entry.get("shape"), entry["name"], subject)))
    if len({name for name, _ in tensors}) != len(tensors):
        raise SourceError(
            subject, "two tensors have one name.", "Give every tensor a name of its own."
        )
    config = content.get("config", {})
    return GivenLayout(
        tuple(tensors),
        str(content.get("family", "")),
        config if isinstance(config, Mapping) else {},
    )


def _shape(given: object, name: str, subject: object) -> tuple[int, ...]:
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or len(given) > _MAX_RANK
        or not all(type(size) is int and 0 <= size < 1 << 40 for size in given)
    ):
        raise SourceError(subject, f"{name}: {str(given)[:80]} is no shape.", _JSON)
    return tuple(given)


def _from_csv(path: Path) -> GivenLayout:
    """`name,shape` with shapes as `8x1x5x5` or `(8, 1, 5, 5)`, or the columns of the Small CNN Zoo as they stand."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = list(csv.DictReader(file))
    if lines and "varname" in lines[0]:
        columns = read_layout(path)
        return GivenLayout(tuple((v.name, v.shape) for v in columns.variables))
    tensors = []
    for line in lines:
        text = (line.get("shape") or "").strip("()[] ").replace("x", ",")
        try:
            shape = [int(size) for size in text.split(",") if size.strip()]
        except ValueError:
            raise SourceError(
                path,
                f"{line} has no shape.",
                "Write name,shape lines such as conv1.weight,8x1x5x5.",
            ) from None
        tensors.append({"name": line.get("name"), "shape": shape})
    return layout_from_json({"tensors": tensors}, path)


def _from_index_dict(path: Path, content: Mapping[str, Any]) -> GivenLayout:
    """`index_dict.json` of the hyper-representation zoos: parallel lists, one entry per layer, weight before bias."""
    keys = ("layer", "idx_start", "idx_length", "kernel_no", "channels_in", "kernel_size")
    lists = [content.get(key) for key in keys]
    if not all(isinstance(values, list) and len(values) == len(lists[0] or ()) for values in lists):
        raise SourceError(path, f"it needs lists of one length under {', '.join(keys)}.", _INDEX)
    tensors: list[tuple[str, tuple[int, ...]]] = []
    at = 0
    for layer, start, length, outputs, inputs, kernel in zip(*lists, strict=True):
        number = layer[0] if isinstance(layer, list) and layer else layer
        if any(
            type(value) is not int or value < 0
            for value in (start, length, outputs, inputs, kernel)
        ):
            raise SourceError(path, f"layer {number}: the entries are not whole numbers.", _INDEX)
        if start != at:
            raise SourceError(path, f"layer {number} starts at {start}, expected {at}.", _INDEX)
        at = start + length
        # kernel_size is the side in some files and the area in others; the length tells which.
        shapes = [
            (outputs, inputs, kernel, kernel),
            (outputs, inputs, isqrt(kernel), isqrt(kernel)),
        ]
        for shape in shapes if kernel > 1 else [(outputs, inputs)]:
            if prod(shape) in (length, length - outputs):
                tensors.append((f"module_list.{number}.weight", shape))
                if prod(shape) != length:
                    tensors.append((f"module_list.{number}.bias", (outputs,)))
                break
        else:
            raise SourceError(
                path, f"layer {number}: {length} values fit no kernel of its sizes.", _INDEX
            )
    return GivenLayout(tuple(tensors))


def known_layout(num_parameters: int, *, dropout: bool) -> GivenLayout | None:
    """The layout of the published convolutional zoos by their number of parameters, weight before bias."""
    places = (0, 4, 8, 11, 14) if dropout else (0, 3, 6, 9, 11)
    networks = {
        2464: (places, [(8, 1, 5, 5), (6, 8, 5, 5), (4, 6, 2, 2), (20, 36), (10, 20)]),
        2864: (places, [(8, 3, 5, 5), (6, 8, 5, 5), (4, 6, 2, 2), (20, 36), (10, 20)]),
        10853: (
            (0, 4, 8, 13, 16),
            [(16, 3, 3, 3), (32, 16, 3, 3), (15, 32, 3, 3), (20, 60), (10, 20)],
        ),
    }
    if num_parameters not in networks:
        return None
    numbers, shapes = networks[num_parameters]
    tensors: list[tuple[str, tuple[int, ...]]] = []
    for number, shape in zip(numbers, shapes, strict=True):
        tensors.append((f"module_list.{number}.weight", tuple(shape)))
        tensors.append((f"module_list.{number}.bias", (shape[0],)))
    return GivenLayout(tuple(tensors))
