"""A network as an nn.Module, built from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zooplatform.errors import ArchitectureError
from zooplatform_cnn.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dropout,
    GlobalPool,
    Layer,
    Linear,
    Pool,
    Residual,
    Shape,
    parse_activation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zooplatform_cnn.config import NetworkConfig

__all__ = ["PlainNetwork"]


class _Sine(nn.Module):
    """`sin(w0 * x)` (SIREN, arXiv 2006.09661)."""

    def __init__(self, w0: float) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.w0 * x)


class _GlobalPool(nn.Module):
    """(B, C, H, W) to (B, C)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) if self.kind == "avg" else x.amax(dim=(2, 3))


_SIMPLE: Mapping[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def _activation(text: str) -> nn.Module:
    name, argument = parse_activation(text)
    if name == "leaky_relu":
        return nn.LeakyReLU(argument if argument is not None else 0.01)
    if name == "sine":
        return _Sine(argument if argument is not None else 1.0)
    return _SIMPLE[name]()


def _register(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register `module` in `root` under a dotted path, with plain containers in between."""
    *parents, leaf = path.split(".")
    for part in parents:
        child = root._modules.get(part)
        if child is None:
            child = nn.Module()
            _add(root, part, child, path)
        root = child
    _add(root, leaf, module, path)


def _add(parent: nn.Module, name: str, child: nn.Module, path: str) -> None:
    try:
        parent.add_module(name, child)
    except (KeyError, TypeError) as exc:
        # torch refuses empty names and those of attributes that every module has.
        raise ArchitectureError(
            f"A layer cannot be named {path!r}: {exc}. Choose another `name`."
        ) from None


class _Block(nn.Module):
    """Modules under dotted names, called in the order of their layers; the sum of two branches if it has a shortcut.

    The order is kept as names and not as references, so that copies of the block call their own modules.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        shape: Shape,
        activation: str | None,
        shortcut: tuple[Layer, ...] | None = None,
    ) -> None:
        super().__init__()
        self.main = self._fill(layers, shape, activation, "main")
        self.shortcut = (
            None if shortcut is None else self._fill(shortcut, shape, activation, "shortcut")
        )

    def _fill(
        self, layers: tuple[Layer, ...], shape: Shape, activation: str | None, branch: str
    ) -> list[str]:
        order = []
        for index, layer in enumerate(layers):
            if isinstance(layer, Conv | Linear | BatchNorm | Residual) and layer.name is not None:
                path = layer.name
            else:
                # Registered so that train() and eval() reach them; they hold no tensor, so no key.
                path = f"_plain.{branch}{index}"
            _register(self, path, _module(layer, shape, activation))
            order.append(path)
            shape = layer.shape(shape)
        return order

    def _run(self, order: list[str], x: Tensor) -> Tensor:
        for path in order:
            x = self.get_submodule(path)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        result = self._run(self.main, x)
        return result if self.shortcut is None else result + self._run(self.shortcut, x)


class PlainNetwork(_Block):
    """The network of a configuration.

    Attributes:
        config: the configuration as JSON, every default written out and every layer named.

    Raises:
        ArchitectureError: the activation is not known, or names cannot be those of modules.
    """

    def __init__(self, config: NetworkConfig) -> None:
        if config.needs_activation:
            raise ArchitectureError(
                "The activation of this network is not known: weights do not tell it. Give it in "
                "the configuration, `catalog.build(ID, config={'activation': 'relu'})`, or in the "
                "hyper-parameters of the model."
            )
        super().__init__(config.layers, config.input, config.activation)
        self.config: dict[str, Any] = config.to_json()


def _module(layer: Layer, shape: Shape, activation: str | None) -> nn.Module:
    """The module of one layer whose input has `shape`."""
    if isinstance(layer, Residual):
        return _Block(layer.layers, shape, activation, layer.shortcut)
    if isinstance(layer, Conv):
        return nn.Conv2d(
            shape[0],
            layer.out,
            layer.kernel,
            stride=layer.stride,
            padding=layer.padding,
            bias=layer.bias,
        )
    if isinstance(layer, Linear):
        return nn.Linear(shape[0], layer.out, bias=layer.bias)
    if isinstance(layer, BatchNorm):
        return nn.BatchNorm2d(shape[0]) if len(shape) == 3 else nn.BatchNorm1d(shape[0])
    if isinstance(layer, Activation):
        name = layer.name if layer.name is not None else activation
        assert name is not None  # PlainNetwork has refused an unknown activation
        return _activation(name)
    if isinstance(layer, Pool):
        pool = nn.MaxPool2d if layer.kind == "max" else nn.AvgPool2d
        return pool(layer.size, stride=layer.step)
    if isinstance(layer, GlobalPool):
        return _GlobalPool(layer.kind)
    if isinstance(layer, Dropout):
        return nn.Dropout(layer.p)
    return nn.Flatten()
