"""The layers of a plain network: what each does to shapes, and their JSON form.

A shape here is the shape of one input without the batch: `(channels, height, width)` or `(features,)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from typing import Any, Literal, TypeAlias, get_args

from zooplatform.errors import ArchitectureError

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BatchNorm",
    "Conv",
    "Dropout",
    "Flatten",
    "GlobalPool",
    "Layer",
    "Linear",
    "Pool",
    "Residual",
    "Shape",
    "is_int",
    "layer_to_json",
    "layer_type",
    "layers_from_json",
    "parse_activation",
]

Shape: TypeAlias = tuple[int, ...]
PoolKind: TypeAlias = Literal["max", "avg"]

# Activation name -> default of its bracketed argument, or None where it takes none.
ACTIVATIONS: Mapping[str, float | None] = {
    "tanh": None,
    "relu": None,
    "sigmoid": None,
    "gelu": None,
    "gelu_tanh": None,
    "silu": None,
    "elu": None,
    "softplus": None,
    "identity": None,
    "leaky_relu": 0.01,
    "sine": 1.0,
}

_ACTIVATION = re.compile(r"([a-z][a-z0-9_]*)(?:\(([^()]*)\))?")


def parse_activation(text: str) -> tuple[str, float | None]:
    """Split `leaky_relu(0.1)` into name and argument; the argument is None where there is none.

    Raises:
        ArchitectureError: the activation is not known or its argument is not a finite number.
    """
    match = _ACTIVATION.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[1] not in ACTIVATIONS:
        raise ArchitectureError(
            f"Unknown activation {text!r}. Known: {', '.join(ACTIVATIONS)}; "
            "leaky_relu and sine take a number in brackets, as in leaky_relu(0.1)."
        )
    name: str = match[1]
    default = ACTIVATIONS[name]
    if match[2] is None:
        return name, default
    try:
        argument = float(match[2])
    except ValueError:
        argument = float("nan")
    if default is None or not isfinite(argument):
        raise ArchitectureError(
            f"Activation {text!r}: "
            + (f"{name} takes no argument." if default is None else f"{match[2]!r} is no number.")
        )
    return name, argument


# --- layers -----------------------------------------------------------------------------------


def _positive(layer: object, **values: int) -> None:
    for key, value in values.items():
        if value < 1:
            raise ArchitectureError(f"{key} of {layer!r} is {value}; it must be at least 1.")


def _windows(layer: object, shape: Shape, size: int, stride: int, padding: int = 0) -> Shape:
    """Height and width after windows of `size` slid by `stride`."""
    if len(shape) != 3:
        raise ArchitectureError(f"{layer!r} needs (channels, height, width), but gets {shape}.")
    if min(shape[1:]) + 2 * padding < size:
        raise ArchitectureError(
            f"{layer!r} does not fit its input of {shape[1]}x{shape[2]}: "
            "use a larger input, a smaller window or more padding."
        )
    return tuple((side + 2 * padding - size) // stride + 1 for side in shape[1:])


@dataclass(frozen=True, slots=True)
class Conv:
    """2-D convolution with a square kernel; `name` is its state-dict name."""

    out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = True
    name: str | None = None

    def shape(self, shape: Shape) -> Shape:
        _positive(self, out=self.out, kernel=self.kernel, stride=self.stride)
        if self.padding < 0:
            raise ArchitectureError(f"padding of {self!r} must not be negative.")
        return (self.out, *_windows(self, shape, self.kernel, self.stride, self.padding))


@dataclass(frozen=True, slots=True)
class Linear:
    """Affine map of the last axis."""

    out: int
    bias: bool = True
    name: str | None = None

    def shape(self, shape: Shape) -> Shape:
        _positive(self, out=self.out)
        if len(shape) != 1:
            raise ArchitectureError(
                f"{self!r} gets {shape}: put a flatten or global_pool layer before it."
            )
        return (self.out,)


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Batch normalisation over channels of images or over features."""

    name: str | None = None

    def shape(self, shape: Shape) -> Shape:
        return shape


@dataclass(frozen=True, slots=True)
class Activation:
    """Element-wise function; without `name` the default activation of the network."""

    name: str | None = None

    def shape(self, shape: Shape) -> Shape:
        if self.name is not None:
            parse_activation(self.name)
        return shape


@dataclass(frozen=True, slots=True)
class Pool:
    """Pooling without padding; `stride` None means `size`."""

    kind: PoolKind = "max"
    size: int = 2
    stride: int | None = None

    @property
    def step(self) -> int:
        return self.size if self.stride is None else self.stride

    def shape(self, shape: Shape) -> Shape:
        _positive(self, size=self.size, stride=self.step)
        windows = _windows(self, shape, self.size, self.step)
        return (shape[0], *windows)


@dataclass(frozen=True, slots=True)
class GlobalPool:
    """Pooling over all positions."""

    kind: PoolKind = "avg"

    def shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise ArchitectureError(f"{self!r} needs (channels, height, width), but gets {shape}.")
        return (shape[0],)


@dataclass(frozen=True, slots=True)
class Flatten:
    """`(C, H, W)` to `(C * H * W,)`, channels first."""

    def shape(self, shape: Shape) -> Shape:
        size = 1
        for side in shape:
            size *= side
        return (size,)


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout with probability `p`, in training mode only."""

    p: float = 0.0

    def shape(self, shape: Shape) -> Shape:
        if not 0 <= self.p < 1:
            raise ArchitectureError(f"p of {self!r} must be at least 0 and below 1.")
        return shape


@dataclass(frozen=True, slots=True)
class Residual:
    """Sum of two branches; an empty `shortcut` is the identity. Names inside are relative to `name`."""

    name: str
    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    def shape(self, shape: Shape) -> Shape:
        main, short = shape, shape
        for layer in self.layers:
            main = layer.shape(main)
        for layer in self.shortcut:
            short = layer.shape(short)
        if main != short:
            raise ArchitectureError(
                f"The branches of residual block {self.name!r} end in {main} and {short}; "
                "give a shortcut convolution that ends in the same shape."
            )
        return main


Layer: TypeAlias = (
    Conv | Linear | BatchNorm | Activation | Pool | GlobalPool | Flatten | Dropout | Residual
)

_TYPES: Mapping[str, type[Any]] = {
    "conv": Conv,
    "linear": Linear,
    "batchnorm": BatchNorm,
    "activation": Activation,
    "pool": Pool,
    "global_pool": GlobalPool,
    "flatten": Flatten,
    "dropout": Dropout,
    "residual": Residual,
}


def layer_type(layer: Layer) -> str:
    """The `type` of a layer in JSON."""
    return next(name for name, cls in _TYPES.items() if isinstance(layer, cls))


def is_int(value: object) -> bool:
    """Whether a JSON value is a whole number (`true` is not)."""
    return isinstance(value, int) and not isinstance(value, bool)


_VALUE_TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "int": (is_int, "a whole number"),
    "int | None": (
        lambda v: v is None or is_int(v),
        "a whole number",
    ),
    "float": (lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "str": (lambda v: isinstance(v, str) and bool(v), "a text"),
    "str | None": (lambda v: v is None or (isinstance(v, str) and bool(v)), "a text"),
    "PoolKind": (lambda v: v in get_args(PoolKind), "'max' or 'avg'"),
}


def _layer_from_json(data: object, where: str) -> Layer:
    """One layer from its JSON object.

    Args:
        data: the object.
        where: its place, for messages (`layers[3]`).

    Raises:
        ArchitectureError: unknown type or key, missing key, or a value of the wrong kind.
    """
    kind = data.get("type") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(kind, str) or kind not in _TYPES:
        raise ArchitectureError(
            f"{where} is {data!r}; a layer is an object whose `type` is one of {', '.join(_TYPES)}."
        )
    cls = _TYPES[kind]
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known) - {"type"})
    if unknown:
        raise ArchitectureError(
            f"{where} ({kind}) has unknown keys {', '.join(unknown)}. "
            f"Known: {', '.join(known) or 'none'}."
        )
    values: dict[str, Any] = {}
    for name, spec in known.items():
        if name not in data:
            if spec.default is MISSING:
                raise ArchitectureError(f"{where} ({kind}) needs the key {name!r}.")
            continue
        value = data[name]
        if cls is Residual and name in {"layers", "shortcut"}:
            branch = layers_from_json(value, f"{where}.{name}")
            if any(isinstance(layer, Residual) for layer in branch):
                raise ArchitectureError(f"{where}.{name}: a residual block holds no other one.")
            values[name] = branch
            continue
        check, expected = _VALUE_TYPES[str(spec.type)]
        if not check(value):
            raise ArchitectureError(f"{where}.{name} is {value!r}; it must be {expected}.")
        values[name] = value
    layer: Layer = cls(**values)
    return layer


def layers_from_json(data: object, where: str) -> tuple[Layer, ...]:
    """A list of layers from JSON; an error names the layer and the key."""
    if isinstance(data, str) or not isinstance(data, Sequence):
        raise ArchitectureError(f"{where} is {data!r}; it must be a list of layers.")
    return tuple(_layer_from_json(item, f"{where}[{i}]") for i, item in enumerate(data))


def layer_to_json(layer: Layer) -> dict[str, Any]:
    """The JSON object of a layer, every default written out."""
    result: dict[str, Any] = {"type": layer_type(layer)}
    for spec in fields(layer):
        value = getattr(layer, spec.name)
        if isinstance(layer, Residual) and spec.name in {"layers", "shortcut"}:
            value = [layer_to_json(inner) for inner in value]
        elif isinstance(layer, Pool) and spec.name == "stride":
            value = layer.step
        result[spec.name] = value
    return result
