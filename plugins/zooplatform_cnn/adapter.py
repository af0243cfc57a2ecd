"""The architecture adapter of plain zoo networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zooplatform.errors import ArchitectureError
from zooplatform.interfaces import CheckpointHeader, LayerSpec, Layout, StateDict
from zooplatform_cnn.config import NetworkConfig
from zooplatform_cnn.presets import expand_preset
from zooplatform_cnn.recognise import recognise
from zooplatform_generic.adapter import match_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform_cnn.network import PlainNetwork

__all__ = ["CnnAdapter"]


class CnnAdapter:
    """Builds and recognises the networks that the README of this plugin describes."""

    def matches(self, header: CheckpointHeader) -> bool:
        return recognise(header) is not None

    def describe(self, header: CheckpointHeader) -> Mapping[str, Any]:
        """Family `mlp` where every layer is linear, else `cnn`; the configuration written out.

        Raises:
            ArchitectureError: the header is not one that `matches`.
        """
        name, config = self._recognised(header)
        linear = all(layer.type == "linear" for layer in config.named_layers())
        return {"family": "mlp" if linear else "cnn", "name": name, "config": config.to_json()}

    def layers(self, header: CheckpointHeader) -> tuple[LayerSpec, ...]:
        """The layers in the order of the forward pass, main branches before shortcuts."""
        _, config = self._recognised(header)
        return tuple(
            LayerSpec(
                index, layer.name, layer.type, tuple(f"{layer.name}.{t}" for t in layer.tensors)
            )
            for index, layer in enumerate(config.named_layers())
        )

    def to_canonical(self, state: StateDict) -> StateDict:
        """Names and values are canonical as they are."""
        return dict(state)

    def from_canonical(self, state: StateDict, *, layout: Layout) -> StateDict:
        """The tensors in the order of `layout`.

        Raises:
            ArchitectureError: a tensor of either side has no counterpart, or another shape.
        """
        return match_layout(state, layout)

    def build(self, config: Mapping[str, Any]) -> PlainNetwork:
        """An initialised network; see the README for `config`.

        Raises:
            ArchitectureError: the configuration is not one, or its activation is not known.
        """
        if not config:
            raise ArchitectureError(
                "The configuration of this network is not known: names and shapes of the weights "
                "do not tell strides, padding and pooling. Store it with a configuration "
                "(plugins/zooplatform_cnn/README.md), or give one to build()."
            )
        # torch is imported when a network is built: matching headers needs none of it.
        from zooplatform_cnn.network import PlainNetwork

        return PlainNetwork(NetworkConfig.from_json(expand_preset(config)))

    def _recognised(self, header: CheckpointHeader) -> tuple[str, NetworkConfig]:
        found = recognise(header)
        if found is None:
            raise ArchitectureError(
                f"{len(header.tensors)} tensors are not those of a plain zoo network. "
                "Use the adapter `generic`, or give a configuration that fits them."
            )
        return found
