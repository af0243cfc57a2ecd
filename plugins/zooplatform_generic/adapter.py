"""The architecture adapter that takes any state dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from zooplatform.errors import ArchitectureError
from zooplatform_generic.families import guess_family
from zooplatform_generic.layers import layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.interfaces import CheckpointHeader, LayerSpec, Layout, StateDict

__all__ = ["GenericAdapter", "match_layout"]

# What a transformers configuration says of the class; the rest of it does not help without that library.
_KEPT = ("model_type", "architectures")


class GenericAdapter:
    """Describes any checkpoint; builds none."""

    def matches(self, header: CheckpointHeader) -> bool:
        """Always true; other adapters win by their higher specificity."""
        return True

    def describe(self, header: CheckpointHeader) -> Mapping[str, Any]:
        """The family; as name the class that a transformers configuration names, else the family."""
        family = guess_family(header.tensors, self.layers(header), header.config)
        classes = header.config.get("architectures")
        named = isinstance(classes, list) and classes and isinstance(classes[0], str)
        name = classes[0] if isinstance(classes, list) and named else family
        config = {key: header.config[key] for key in _KEPT if key in header.config}
        return {"family": family, "name": name, "config": config}

    def layers(self, header: CheckpointHeader) -> tuple[LayerSpec, ...]:
        """The layers, see `zooplatform_generic.layers.layers_of`."""
        return layers_of(header.tensors)

    def to_canonical(self, state: StateDict) -> StateDict:
        """Names and values are canonical as they are."""
        return dict(state)

    def from_canonical(self, state: StateDict, *, layout: Layout) -> StateDict:
        """The tensors in the order of `layout`; raises as `match_layout`."""
        return match_layout(state, layout)

    def build(self, config: Mapping[str, Any]) -> NoReturn:
        """Always refused: names and shapes do not tell how the layers are connected.

        Raises:
            ArchitectureError: with what to do instead.
        """
        if "model_type" in config or "architectures" in config:
            classes = config.get("architectures")
            name = classes[0] if isinstance(classes, list) and classes else config.get("model_type")
            raise ArchitectureError(
                f"{name} is a model of the transformers library, which no installed plugin builds. "
                "Run `pip install transformers`, make the model there from the repository's "
                "config.json and load catalog.state_dict(id) into it."
            )
        raise ArchitectureError(
            "No installed plugin can build this network: neither its source nor its names and "
            "shapes say how the layers are connected. Say what it is, as in "
            'catalog.build(id, config={"architecture": "resnet18"}) for a model of timm, load '
            "catalog.state_dict(id) into your own module, or add an adapter: `zoo plugins new "
            "architecture NAME`."
        )


def match_layout(state: StateDict, layout: Layout) -> StateDict:
    """The tensors of `state` in the order of `layout`.

    Raises:
        ArchitectureError: a tensor of either side has no counterpart of its name and shape.
    """
    shapes = {tensor.name: tensor.shape for tensor in layout}
    unmatched = sorted(shapes.keys() ^ state.keys())
    unmatched += [name for name in shapes if name in state and state[name].shape != shapes[name]]
    if unmatched:
        raise ArchitectureError(
            "Tensors without a counterpart of the same name and shape: "
            f"{', '.join(unmatched[:10])}{' ...' if len(unmatched) > 10 else ''}."
        )
    return {name: state[name] for name in shapes}
