"""The networks that the public zoos of this field are made of, as configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zooplatform.errors import ArchitectureError
from zooplatform_cnn.config import DEFAULT_NAMES

__all__ = [
    "PRESETS",
    "cnn3",
    "expand_preset",
    "mlp",
    "resnet_small",
    "siren",
    "sne_arch2",
    "tiny_zoo",
    "unterthiner",
]

Config = dict[str, Any]
Names = str | Mapping[str, str]

_ACTIVATION = {"type": "activation"}
_MAX_DEPTH = 10_000
_MODULE_LIST = "module_list.{i}"


def _network(
    shape: Sequence[int], layers: list[Config], activation: str | None, names: Names
) -> Config:
    return {"input": list(shape), "layers": layers, "activation": activation, "names": names}


def _dropout(p: float, always: bool = False) -> list[Config]:
    return [{"type": "dropout", "p": p}] if p > 0 or always else []


def _check_depth(preset: str, depth: int) -> None:
    # A configuration may come from a stranger's repository; it must not be able to fill the memory.
    if not 1 <= depth <= _MAX_DEPTH:
        raise ArchitectureError(f"{preset}: depth {depth} must lie between 1 and {_MAX_DEPTH}.")


def unterthiner(
    *,
    channels: int = 1,
    size: int = 28,
    classes: int = 10,
    width: int = 16,
    depth: int = 3,
    padding: int = 0,
    activation: str | None = None,
    names: Names = DEFAULT_NAMES,
) -> Config:
    """The network of the Small CNN Zoo (arXiv 2002.11448): strided convolutions, mean, dense.

    Args:
        channels: channels of the images.
        size: height and width of the images.
        classes: outputs.
        width: filters of each convolution.
        depth: number of convolutions, 3x3 with stride 2.
        padding: of each convolution.
        activation: after each convolution.
        names: template of the state-dict names.
    """
    _check_depth("unterthiner", depth)
    layers: list[Config] = []
    for _ in range(depth):
        layers.append({"type": "conv", "out": width, "kernel": 3, "stride": 2, "padding": padding})
        layers.append(_ACTIVATION)
    layers += [{"type": "global_pool", "kind": "avg"}, {"type": "linear", "out": classes}]
    return _network((channels, size, size), layers, activation, names)


def tiny_zoo(
    *,
    channels: int = 1,
    size: int = 28,
    classes: int = 10,
    dropout: float = 0.0,
    activation: str | None = None,
    names: Names = _MODULE_LIST,
) -> Config:
    """The small CNN of the zoos of Schürholt et al. (arXiv 2209.14764), used by SANE and IGPG.

    The published names count every module, so that dropout shifts them: `module_list.{0,3,6,9,11}`
    becomes `module_list.{0,4,8,11,14}`.
    """
    drop = _dropout(dropout)
    pool = {"type": "pool"}
    layers: list[Config] = [
        {"type": "conv", "out": 8, "kernel": 5},
        pool,
        _ACTIVATION,
        *drop,
        {"type": "conv", "out": 6, "kernel": 5},
        pool,
        _ACTIVATION,
        *drop,
        {"type": "conv", "out": 4, "kernel": 2},
        _ACTIVATION,
        {"type": "flatten"},
        {"type": "linear", "out": 20},
        _ACTIVATION,
        *drop,
        {"type": "linear", "out": classes},
    ]
    return _network((channels, size, size), layers, activation, names)


def cnn3(
    *,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    dropout: float = 0.0,
    activation: str | None = None,
    names: Names = _MODULE_LIST,
) -> Config:
    """The larger CNN of the zoos of Schürholt et al.; its names are those with dropout in any case."""
    drop = _dropout(dropout, always=True)
    layers: list[Config] = []
    for out in (16, 32, 15):
        layers += [{"type": "conv", "out": out, "kernel": 3}, {"type": "pool"}, _ACTIVATION, *drop]
    layers += [
        {"type": "flatten"},
        {"type": "linear", "out": 20},
        _ACTIVATION,
        *drop,
        {"type": "linear", "out": classes},
    ]
    return _network((channels, size, size), layers, activation, names)


def sne_arch2(
    *,
    channels: int = 1,
    size: int = 28,
    classes: int = 10,
    widths: Sequence[int] = (8, 16, 16),
    hidden: int = 32,
    padding: int = 1,
    dropout: float = 0.0,
    activation: str | None = None,
    names: Names = DEFAULT_NAMES,
) -> Config:
    """The kind of network of the second architecture of SNE: convolutions with max-pooling, two linear layers.

    The paper's sizes are not public, so all of them are arguments.
    """
    layers: list[Config] = []
    for out in widths:
        layers += [
            {"type": "conv", "out": out, "kernel": 3, "padding": padding},
            _ACTIVATION,
            {"type": "pool"},
        ]
    layers += [
        {"type": "flatten"},
        {"type": "linear", "out": hidden},
        _ACTIVATION,
        *_dropout(dropout),
        {"type": "linear", "out": classes},
    ]
    return _network((channels, size, size), layers, activation, names)


def mlp(
    widths: Sequence[int],
    *,
    input: Sequence[int] | None = None,
    dropout: float = 0.0,
    activation: str | None = None,
    names: Names = DEFAULT_NAMES,
) -> Config:
    """A multi-layer perceptron.

    Args:
        widths: sizes from the input to the output.
        input: shape of images of `widths[0]` values, which are flattened first.
        dropout: after each activation.
        activation: between the layers.
        names: template of the state-dict names.
    """
    if len(widths) < 2:
        raise ArchitectureError(
            f"widths of mlp is {list(widths)!r}; give at least input and output."
        )
    layers: list[Config] = [] if input is None else [{"type": "flatten"}]
    if input is not None:
        values = 1
        for side in input:
            values *= side
        if values != widths[0]:
            raise ArchitectureError(
                f"mlp: images of {list(input)} hold {values} values, "
                f"but the first of widths is {widths[0]}."
            )
    for number, out in enumerate(widths[1:]):
        if number:
            layers += [_ACTIVATION, *_dropout(dropout)]
        layers.append({"type": "linear", "out": out})
    return _network(input or [widths[0]], layers, activation, names)


def siren(
    *,
    inputs: int = 2,
    hidden: int = 32,
    depth: int = 3,
    outputs: int = 1,
    w0: float = 30.0,
    activation: str | None = None,
    names: Names = DEFAULT_NAMES,
) -> Config:
    """An implicit representation of a signal: coordinates in, values out, sines between (arXiv 2006.09661).

    Args:
        inputs: number of coordinates.
        hidden: width of the inner layers.
        depth: number of linear layers.
        outputs: number of values.
        w0: frequency of the sines.
        activation: in place of `sine(w0)`.
        names: template of the state-dict names.
    """
    _check_depth("siren", depth)
    widths = [inputs, *[hidden] * (depth - 1), outputs]
    return mlp(widths, activation=activation or f"sine({w0:g})", names=names)


def resnet_small(
    *,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    blocks: Sequence[int] = (3, 3, 3),
    widths: Sequence[int] = (16, 32, 64),
    activation: str | None = "relu",
) -> Config:
    """A residual network for small images (He et al. 2015, section 4.2) with projection shortcuts.

    State-dict names are those of torchvision: `conv1 bn1 layer1.0.conv1 ... layer2.0.downsample.0 ... fc`.

    Args:
        channels: channels of the images.
        size: height and width of the images.
        classes: outputs.
        blocks: residual blocks of each stage.
        widths: filters of each stage; every stage but the first halves height and width.
        activation: after each normalisation.
    """
    if len(blocks) != len(widths):
        raise ArchitectureError(
            f"resnet_small: blocks {list(blocks)} and widths {list(widths)} must be of one length."
        )
    _check_depth("resnet_small", sum(blocks))
    layers = [*_conv_norm(widths[0], 3, 1, "conv1", "bn1"), _ACTIVATION]
    before = widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for block in range(count):
            stride = 2 if stage and not block else 1
            shortcut = (
                _conv_norm(width, 1, stride, "downsample.0", "downsample.1")
                if stride != 1 or before != width
                else []
            )
            main = [
                *_conv_norm(width, 3, stride, "conv1", "bn1"),
                _ACTIVATION,
                *_conv_norm(width, 3, 1, "conv2", "bn2"),
            ]
            name = f"layer{stage + 1}.{block}"
            layers.append({"type": "residual", "name": name, "layers": main, "shortcut": shortcut})
            layers.append(_ACTIVATION)
            before = width
    layers += [{"type": "global_pool"}, {"type": "linear", "out": classes, "name": "fc"}]
    return _network((channels, size, size), layers, activation, DEFAULT_NAMES)


def _conv_norm(out: int, kernel: int, stride: int, conv: str, norm: str) -> list[Config]:
    return [
        {
            "type": "conv",
            "out": out,
            "kernel": kernel,
            "stride": stride,
            "padding": kernel // 2,
            "bias": False,
            "name": conv,
        },
        {"type": "batchnorm", "name": norm},
    ]


PRESETS: Mapping[str, Callable[..., Config]] = {
    function.__name__: function
    for function in (unterthiner, tiny_zoo, cnn3, sne_arch2, mlp, siren, resnet_small)
}


def expand_preset(config: Mapping[str, Any]) -> Config:
    """Write out `{"preset": NAME, ...arguments}`; a configuration without preset comes back as it is.

    Raises:
        ArchitectureError: unknown preset, or an argument that it does not take.
    """
    if "preset" not in config:
        return dict(config)
    arguments = dict(config)
    name = arguments.pop("preset")
    hyperparameters = arguments.pop("hyperparameters", None)
    if not isinstance(name, str) or name not in PRESETS:
        raise ArchitectureError(f"Unknown preset {name!r}. Known: {', '.join(PRESETS)}.")
    known = inspect.signature(PRESETS[name]).parameters
    unknown = sorted(set(arguments) - set(known))
    required = [k for k, p in known.items() if p.default is p.empty and k not in arguments]
    if unknown or required:
        raise ArchitectureError(
            f"Preset {name!r} "
            + (f"does not take {', '.join(unknown)}" if unknown else f"needs {', '.join(required)}")
            + f". Its arguments: {', '.join(known)}."
        )
    try:
        expanded = PRESETS[name](**arguments)
    except ArchitectureError:
        raise
    except (TypeError, ValueError) as exc:
        raise ArchitectureError(
            f"Preset {name!r}: an argument is of the wrong kind ({exc})."
        ) from None
    if hyperparameters is not None:
        expanded["hyperparameters"] = hyperparameters
    return expanded
