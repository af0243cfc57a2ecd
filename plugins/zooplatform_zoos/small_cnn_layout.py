"""The columns of a Small CNN Zoo: TensorFlow order in the file, torch order in the catalog.

Legend: P parameters; kernels are HWIO and (in, out) in the file, OIHW and (out, in) here.
"""

from __future__ import annotations

import ast
import csv
import itertools
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import SourceError
from zooplatform.interfaces import Layout, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["FileColumns", "Variable", "network_config", "read_layout", "standard_variables"]

_MAX_RANK = 8
_WRITE = (
    "The columns are varname (NAME/kernel:0 or NAME/bias:0), start_idx, end_idx without a hole, and shape, a tuple such"
    " as (3, 3, 1, 16)."
)


@dataclass(frozen=True, slots=True)
class Variable:
    """One line of `layout.csv`: columns `start` to `end` hold `name` in TensorFlow's shape."""

    name: str
    start: int
    end: int
    shape: tuple[int, ...]

    @property
    def layer(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def kind(self) -> str:
        """`kernel` or `bias`."""
        return self.name.rpartition("/")[2].partition(":")[0]


@dataclass(frozen=True)
class FileColumns:
    """How the P columns of `weights.npy` become the tensors of a torch network.

    `order` (P,) is the file's column for each column here: `ours = file[:, order]` and `file[:, order] = ours`.
    """

    variables: tuple[Variable, ...]

    @property
    def num_parameters(self) -> int:
        return self.variables[-1].end

    def layers(self) -> list[tuple[Variable, Variable | None]]:
        """(kernel, bias) of every layer from the input to the output."""
        found: dict[str, dict[str, Variable]] = {}
        for variable in self.variables:
            found.setdefault(variable.layer, {})[variable.kind] = variable
        return [(parts["kernel"], parts.get("bias")) for parts in found.values()]

    def layout(self, dtype: np.dtype[Any]) -> Layout:
        """The tensors in torch's order and shapes, weight before bias."""
        specs = []
        for number, (kernel, bias) in enumerate(self.layers()):
            named = [
                ("weight", kernel.shape[::-1] if len(kernel.shape) == 2 else _oihw(kernel.shape))
            ]
            if bias is not None:
                named.append(("bias", bias.shape))
            specs += [
                TensorSpec(
                    f"layers.{number}.{name}", dtype.name, shape, prod(shape) * dtype.itemsize
                )
                for name, shape in named
            ]
        return tuple(specs)

    def order(self) -> npt.NDArray[np.int64]:
        parts = []
        for kernel, bias in self.layers():
            axes = (1, 0) if len(kernel.shape) == 2 else (3, 2, 0, 1)
            parts.append(_columns(kernel).reshape(kernel.shape).transpose(axes).reshape(-1))
            if bias is not None:
                parts.append(_columns(bias))
        return np.concatenate(parts)


def _columns(variable: Variable) -> npt.NDArray[np.int64]:
    return np.arange(variable.start, variable.end, dtype=np.int64)


def _oihw(shape: tuple[int, ...]) -> tuple[int, ...]:
    height, width, inputs, outputs = shape
    return (outputs, inputs, height, width)


def read_layout(path: Path) -> FileColumns:
    """Read `layout.csv`.

    Raises:
        SourceError: a line is malformed, the columns leave holes or overlap, or a layer is none of
            convolution and dense.
    """
    variables = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                variables.append(_variable(path, line))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(path, f"not a readable CSV file: {error}", _WRITE) from error
    return _checked(path, variables)


def _variable(path: Path, line: Mapping[str, str | None]) -> Variable:
    try:
        # Written by Python's str(tuple); other loaders use eval, which would run whatever stands there.
        shape = ast.literal_eval(line["shape"] or "")
        variable = Variable(
            str(line["varname"]), int(line["start_idx"] or ""), int(line["end_idx"] or ""), shape
        )
    except (KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise SourceError(
            path,
            f"line {dict(line)} is not a variable: {error}",
            _WRITE,
        ) from error
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_RANK
        or not all(type(size) is int and size > 0 for size in shape)
        or prod(shape) != variable.end - variable.start
    ):
        raise SourceError(
            path,
            f"{variable.name}: shape {shape} does not fill columns {variable.start} to {variable.end}.",
            _WRITE,
        )
    return variable


def _checked(path: Path, variables: Sequence[Variable]) -> FileColumns:
    if not variables:
        raise SourceError(path, "it lists no variables.", _WRITE)
    ordered = sorted(variables, key=lambda variable: variable.start)
    at = 0
    for variable in ordered:
        if variable.start != at:
            raise SourceError(
                path, f"{variable.name} starts at {variable.start}, expected {at}.", _WRITE
            )
        at = variable.end
    seen: dict[str, dict[str, Variable]] = {}
    for variable in ordered:
        kinds = seen.setdefault(variable.layer, {})
        if variable.kind not in ("kernel", "bias") or variable.kind in kinds:
            raise SourceError(
                path, f"{variable.name}: expected one kernel and one bias per layer.", _WRITE
            )
        kinds[variable.kind] = variable
    for layer, kinds in seen.items():
        kernel, bias = kinds.get("kernel"), kinds.get("bias")
        if kernel is None or len(kernel.shape) not in (2, 4):
            raise SourceError(
                path, f"layer {layer!r} is neither a 2-D convolution nor dense.", _WRITE
            )
        if bias is not None and bias.shape != kernel.shape[-1:]:
            raise SourceError(
                path, f"layer {layer!r}: bias {bias.shape}, kernel {kernel.shape}.", _WRITE
            )
    return FileColumns(tuple(ordered))


def standard_variables(widths: Sequence[int]) -> FileColumns:
    """The layout of the published zoos: 3x3 convolutions and a dense layer, bias first.

    Args:
        widths: input channels, filters of each convolution, classes.
    """
    variables, at = [], 0
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        dense = number == len(widths) - 2
        name = "dense" if dense else "conv2d" + (f"_{number}" if number else "")
        kernel = (inputs, outputs) if dense else (3, 3, inputs, outputs)
        for kind, shape in (("bias", (outputs,)), ("kernel", kernel)):
            variables.append(
                Variable(f"sequential/{name}/{kind}:0", at, at + prod(shape), tuple(shape))
            )
            at += prod(shape)
    return FileColumns(tuple(variables))


def network_config(columns: FileColumns, activation: str | None, dataset: str) -> dict[str, Any]:
    """The configuration of the `cnn` adapter: strided convolutions, global average, dense layers.

    The weights do not tell the size of the images; the global average makes the network independent of it, so it only
    has to be large enough.
    """
    layers: list[dict[str, Any]] = []
    convolutions = [kernel for kernel, _ in columns.layers() if len(kernel.shape) == 4]
    kernels = columns.layers()
    for number, (kernel, bias) in enumerate(kernels):
        shape: dict[str, Any] = {"out": kernel.shape[-1], "bias": bias is not None}
        if len(kernel.shape) == 4:
            layers.append({"type": "conv", "kernel": kernel.shape[0], "stride": 2, **shape})
        else:
            layers.append({"type": "linear", **shape})
        if number < len(kernels) - 1:
            layers.append({"type": "activation"})
        if convolutions and kernel is convolutions[-1]:
            layers.append({"type": "global_pool"})
    first = kernels[0][0].shape
    size = 28 if "mnist" in dataset else 32
    shape_in = [first[2], size, size] if convolutions else [first[0]]
    return {"input": shape_in, "layers": layers, "activation": activation}
