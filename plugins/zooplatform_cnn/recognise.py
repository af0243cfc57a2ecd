"""From the names and shapes of tensors to the configuration of the network that they belong to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ArchitectureError
from zooplatform_cnn.config import NetworkConfig
from zooplatform_cnn.presets import cnn3, expand_preset, resnet_small, tiny_zoo

if TYPE_CHECKING:
    from zooplatform.interfaces import CheckpointHeader

__all__ = ["recognise"]

Shapes = Mapping[str, tuple[int, ...]]

# The output layer of a published zoo network tells which one it is. With dropout the names shift; its
# probability leaves no trace and matters in training only, and 0.5 is what those zoos used.
_PUBLISHED: tuple[tuple[str, Callable[..., dict[str, Any]], dict[str, Any]], ...] = (
    ("module_list.11.weight", tiny_zoo, {}),
    ("module_list.14.weight", tiny_zoo, {"dropout": 0.5}),
    ("module_list.16.weight", cnn3, {}),
)

# Matrices under these names are no layers that follow each other, whatever their shapes.
_NOT_A_CHAIN = re.compile(
    r"(^|[._])(q|k|v|qkv|query|key|value|attn|attention|emb|embed|embedding|embeddings|wte|wpe|"
    r"lora|gate|router|rnn|lstm|gru)([._]|_?proj|$)"
)


def recognise(header: CheckpointHeader) -> tuple[str, NetworkConfig] | None:
    """Name and configuration of the network of a header, or None when it is none of this plugin.

    The activation of the configuration is None where the header's configuration does not tell it.
    """
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    if not shapes:
        return None
    for name, candidate in _candidates(header.config, shapes):
        try:
            config = NetworkConfig.from_json(expand_preset(candidate))
        except ArchitectureError:
            continue  # another kind of configuration, or shapes that only look like this one
        if config.tensors() == shapes:
            return name or _signature(config), config
    return None


def _candidates(config: Mapping[str, Any], shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configurations that might explain the shapes, best first; the caller compares the shapes."""
    if "preset" in config or ("layers" in config and "input" in config):
        yield str(config.get("preset", "")), dict(config)
    activation = config.get("activation")
    for name, found in _derived(shapes):
        if isinstance(activation, str):
            yield name, {**found, "activation": activation}
        yield name, found


def _derived(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """What names and shapes alone suggest; the activation is not among it."""
    stem = shapes.get("module_list.0.weight", ())
    for head, preset, arguments in _PUBLISHED:
        if len(stem) == 4 and len(shapes.get(head, ())) == 2:
            found = preset(channels=stem[1], classes=shapes[head][0], **arguments)
            yield preset.__name__, found
    if "layer1.0.conv1.weight" in shapes and "fc.weight" in shapes:
        yield from _residual(shapes)
    # Files may list their tensors by name, so the order of the numbers in the names is tried too.
    for names in (list(shapes), sorted(shapes, key=_natural)):
        chain = _linear_chain({name: shapes[name] for name in names})
        if chain is not None:
            yield "", chain


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which `layers.10` comes after `layers.2`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _residual(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The residual network for small images with the stages that the names count."""
    stem, blocks, widths = shapes.get("conv1.weight", ()), list[int](), list[int]()
    while (first := f"layer{len(blocks) + 1}.0.conv1.weight") in shapes:
        stage = f"layer{len(blocks) + 1}."
        widths.append(shapes[first][0])
        blocks.append(sum(f"{stage}{i}.conv1.weight" in shapes for i in range(len(shapes))))
    if len(stem) == 4:
        config = resnet_small(
            channels=stem[1], classes=shapes["fc.weight"][0], blocks=blocks, widths=widths
        )
        yield f"resnet{2 * sum(blocks) + 2}", config


def _linear_chain(shapes: Shapes) -> dict[str, Any] | None:
    """A multi-layer perceptron, when every tensor is a matrix or its bias and the sizes follow each other."""
    layers: list[dict[str, Any]] = []
    before: int | None = None
    for name, shape in shapes.items():
        prefix, _, suffix = name.rpartition(".")
        if not prefix or _NOT_A_CHAIN.search(prefix.lower()):
            return None
        if suffix == "bias":
            continue  # compared with the matrix of its name by the caller
        if suffix != "weight" or len(shape) != 2 or (before is not None and shape[1] != before):
            return None
        if layers:
            layers.append({"type": "activation"})
        has_bias = f"{prefix}.bias" in shapes
        layers.append({"type": "linear", "out": shape[0], "bias": has_bias, "name": prefix})
        before = shape[0]
    if not layers:
        return None
    return {"input": [shapes[f"{layers[0]['name']}.weight"][1]], "layers": layers}


def _signature(config: NetworkConfig) -> str:
    """A readable name: `mlp-784-32-10`, `conv16-conv16-linear10`."""
    layers = config.named_layers()
    if all(layer.type == "linear" for layer in layers):
        sizes = [config.input[-1] if len(config.input) == 1 else layers[0].tensors["weight"][1]]
        return "-".join(
            ["mlp", *(str(n) for n in sizes + [x.tensors["weight"][0] for x in layers])]
        )
    parts = [f"{x.type}{x.tensors['weight'][0]}" for x in layers if x.type != "norm"]
    return "-".join(parts[:8]) + (f"-and-{len(parts) - 8}-more" if len(parts) > 8 else "")
