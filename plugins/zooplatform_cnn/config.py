"""The configuration of a plain network: input, layers, names; its JSON form and its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zooplatform.errors import ArchitectureError
from zooplatform_cnn.layers import (
    Activation,
    BatchNorm,
    Conv,
    Layer,
    Linear,
    Residual,
    Shape,
    is_int,
    layer_to_json,
    layer_type,
    layers_from_json,
    parse_activation,
)

__all__ = ["DEFAULT_NAMES", "NamedLayer", "NetworkConfig"]

DEFAULT_NAMES = "layers.{n}"

# Where model zoos keep the activation among the hyper-parameters of a run.
_ACTIVATION_KEYS = ("activation", "config.activation", "model::nlin", "model.activation", "nlin")


class NamedLayer(NamedTuple):
    """A layer with parameters: state-dict name, type (`conv linear norm`) and the shapes of its tensors by suffix."""

    name: str
    type: str
    tensors: dict[str, Shape]


# --- the network ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """A network: input shape, layers in order, default activation (None = unknown), names."""

    input: Shape
    layers: tuple[Layer, ...]
    activation: str | None = None
    names: str | Mapping[str, str] = DEFAULT_NAMES

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> NetworkConfig:
        """Read and check a configuration as the README describes it (presets excepted).

        An unknown activation is filled from `hyperparameters` where they name one.

        Raises:
            ArchitectureError: the configuration cannot be a network; the text says which part.
        """
        known = {"input", "layers", "activation", "names", "hyperparameters"}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ArchitectureError(
                f"Unknown keys {', '.join(unknown)} in the configuration of a network. "
                f"Known: {', '.join(sorted(known))}, or preset."
            )
        for key in ("input", "layers"):
            if key not in config:
                raise ArchitectureError(f"The configuration of a network needs {key!r}.")
        shape = config["input"]
        if (
            isinstance(shape, str)
            or not isinstance(shape, Sequence)
            or len(shape) not in {1, 3}
            or not all(is_int(side) and side > 0 for side in shape)
        ):
            raise ArchitectureError(
                f"input is {shape!r}; it must be [channels, height, width] or [features]."
            )
        names = config.get("names", DEFAULT_NAMES)
        if not isinstance(names, str | Mapping):
            raise ArchitectureError(f"names is {names!r}; it must be a template or a mapping.")
        activation = config.get("activation")
        if activation is None:
            hyper = config.get("hyperparameters", {})
            if not isinstance(hyper, Mapping):
                raise ArchitectureError(f"hyperparameters is {hyper!r}; it must be an object.")
            activation = next((hyper[k] for k in _ACTIVATION_KEYS if hyper.get(k)), None)
        if activation is not None:
            parse_activation(activation)
        network = cls(
            input=tuple(shape),
            layers=layers_from_json(config["layers"], "layers"),
            activation=activation,
            names=names,
        )
        return network.resolve()

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain JSON, every default written out."""
        return {
            "input": list(self.input),
            "layers": [layer_to_json(layer) for layer in self.layers],
            "activation": self.activation,
            "names": self.names if isinstance(self.names, str) else dict(self.names),
        }

    def shapes(self) -> tuple[Shape, ...]:
        """The shape after each layer.

        Raises:
            ArchitectureError: a layer does not fit what comes before it.
        """
        shape, result = self.input, []
        for index, layer in enumerate(self.layers):
            try:
                shape = layer.shape(shape)
            except ArchitectureError as exc:
                raise ArchitectureError(f"layers[{index}]: {exc}") from None
            result.append(shape)
        return tuple(result)

    def resolve(self) -> NetworkConfig:
        """Check the shapes and name every layer with parameters.

        Raises:
            ArchitectureError: shapes or names do not fit.
        """
        self.shapes()
        layers = _named(self.layers, self.names)
        seen: set[str] = set()
        for name in (layer.name for layer in _walk(layers, self.input, "")):
            if name in seen:
                raise ArchitectureError(
                    f"Two layers are named {name!r}. Give one of them another `name`, "
                    "or use a template with {n}, {i} or {k}."
                )
            seen.add(name)
        return replace(self, layers=layers)

    def named_layers(self) -> tuple[NamedLayer, ...]:
        """The layers with parameters of a resolved configuration, in the order of the forward pass."""
        return tuple(_walk(self.layers, self.input, ""))

    def tensors(self) -> dict[str, Shape]:
        """Shape of every tensor of the state dict of a resolved configuration, by name."""
        return {
            f"{layer.name}.{suffix}": shape
            for layer in self.named_layers()
            for suffix, shape in layer.tensors.items()
        }

    @property
    def needs_activation(self) -> bool:
        """Whether a layer uses the default activation, but there is none."""
        return self.activation is None and _uses_default(self.layers)


def _named(layers: tuple[Layer, ...], names: str | Mapping[str, str]) -> tuple[Layer, ...]:
    """Give every layer with parameters its name; `names` is described in the README."""
    result: list[Layer] = []
    number = 0
    of_type: dict[str, int] = {}
    for index, layer in enumerate(layers):
        if isinstance(layer, Residual):
            layer = replace(
                layer,
                layers=_named(layer.layers, names),
                shortcut=_named(layer.shortcut, _shortcut_names(names)),
            )
            number += 1
        elif isinstance(layer, Conv | Linear | BatchNorm):
            kind = layer_type(layer)
            of_type[kind] = of_type.get(kind, 0) + 1
            if layer.name is None:
                template = names if isinstance(names, str) else names.get(kind, DEFAULT_NAMES)
                try:
                    name = template.format(i=index, n=number, k=of_type[kind])
                except (AttributeError, KeyError, IndexError, ValueError) as exc:
                    raise ArchitectureError(
                        f"names: template {template!r} is not usable ({exc!r}); "
                        "it may hold {i}, {n} and {k}."
                    ) from None
                layer = replace(layer, name=name)
            number += 1
        result.append(layer)
    return tuple(result)


def _shortcut_names(names: str | Mapping[str, str]) -> str | Mapping[str, str]:
    """Templates for the shortcut branch, so that they cannot meet those of the main branch."""
    if isinstance(names, str):
        return f"shortcut.{names}"
    return {kind: f"shortcut.{template}" for kind, template in names.items()}


def _walk(layers: tuple[Layer, ...], shape: Shape, prefix: str) -> Iterator[NamedLayer]:
    """The layers with parameters in the order of the forward pass, main branches before shortcuts."""
    for layer in layers:
        if isinstance(layer, Residual):
            inner = f"{prefix}{layer.name}."
            yield from _walk(layer.layers, shape, inner)
            yield from _walk(layer.shortcut, shape, inner)
        elif isinstance(layer, BatchNorm):
            vectors = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), shape[:1])
            yield NamedLayer(f"{prefix}{layer.name}", "norm", vectors | {"num_batches_tracked": ()})
        elif isinstance(layer, Conv | Linear):
            window = (layer.kernel, layer.kernel) if isinstance(layer, Conv) else ()
            tensors: dict[str, Shape] = {"weight": (layer.out, shape[0], *window)}
            if layer.bias:
                tensors["bias"] = (layer.out,)
            yield NamedLayer(f"{prefix}{layer.name}", layer_type(layer), tensors)
        shape = layer.shape(shape)


def _uses_default(layers: tuple[Layer, ...]) -> bool:
    for layer in layers:
        if isinstance(layer, Activation) and layer.name is None:
            return True
        if isinstance(layer, Residual) and _uses_default(layer.layers + layer.shortcut):
            return True
    return False
