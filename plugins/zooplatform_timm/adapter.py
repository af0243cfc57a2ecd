"""The architecture adapter of timm's registered models.

timm takes seconds to import, so that happens only when a checkpoint names a model: most of what is ingested does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ArchitectureError
from zooplatform_generic.adapter import match_layout
from zooplatform_generic.layers import layers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from zooplatform.interfaces import CheckpointHeader, LayerSpec, Layout, StateDict

__all__ = ["TimmAdapter"]

# What of a configuration goes to the model; the rest of a Hub config.json describes the pretraining.
_ARGUMENTS = ("num_classes", "in_chans", "global_pool")
_KEYS = ("architecture", *_ARGUMENTS, "model_args")

# These would fetch or load weights, from wherever a stranger's configuration says.
_REFUSED = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "model_name",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
    }
)
# What models raise for arguments that they cannot be made with.
_MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

# Larger numbers among the arguments of a stranger's configuration (a depth, say) would only cost time and memory.
_MAX_ARGUMENT = 10_000
_METADATA_NAMES = ("architecture", "timm_model", "model_name")


class TimmAdapter:
    """Recognises, describes and builds models by their registered names."""

    def matches(self, header: CheckpointHeader) -> bool:
        return _recognise(header) is not None

    def describe(self, header: CheckpointHeader) -> Mapping[str, Any]:
        """The module of timm as family, the registered name, and what `build` needs.

        Raises:
            ArchitectureError: the header is not one that `matches`.
        """
        import timm

        config = _recognised(header)
        name = config["architecture"]
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        return {"family": family, "name": name, "config": config}

    def layers(self, header: CheckpointHeader) -> tuple[LayerSpec, ...]:
        """The layers in the order of the model, whatever the order of the file."""
        shapes = _shapes(json.dumps(_recognised(header)))
        by_name = {tensor.name: tensor for tensor in header.tensors}
        return layers_of([by_name[name] for name in shapes])

    def to_canonical(self, state: StateDict) -> StateDict:
        """Names and values are canonical as they are."""
        return dict(state)

    def from_canonical(self, state: StateDict, *, layout: Layout) -> StateDict:
        """The tensors in the order of `layout`.

        Raises:
            ArchitectureError: a tensor of either side has no counterpart of its name and shape.
        """
        return match_layout(state, layout)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """An initialised model; see the README for `config`.

        Raises:
            ArchitectureError: the name is not registered, or the model refuses an argument.
        """
        import timm

        name, arguments = _arguments(config)
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        except _MODEL_ERRORS as exc:
            raise ArchitectureError(
                f"timm cannot make {name!r} with {arguments}: {exc}. Compare the arguments with "
                f"timm.create_model({name!r}, ...)."
            ) from exc
        return model


def _arguments(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Model name and keyword arguments of a configuration.

    Raises:
        ArchitectureError: no registered name, or an argument that is refused.
    """
    import timm

    name = config.get("architecture")
    # Only registered names: timm would take `hf-hub:...` and `local-dir:...` and load weights.
    if not isinstance(name, str) or not timm.is_model(name):
        raise ArchitectureError(
            f"timm {timm.__version__} has no model {name!r}. Names are those of "
            "timm.list_models(); a newer timm may have it: pip install -U timm."
        )
    further = config.get("model_args") or {}
    if not isinstance(further, Mapping) or not all(isinstance(key, str) for key in further):
        raise ArchitectureError(f"model_args of {name!r} is {further!r}; it must be an object.")
    refused = sorted(_REFUSED & further.keys())
    if refused:
        raise ArchitectureError(
            f"model_args of {name!r} holds {', '.join(refused)}, which would load weights from "
            "elsewhere. Remove it; weights come from the catalog."
        )
    given = {key: config[key] for key in _ARGUMENTS if config.get(key) is not None}
    return name, given | dict(further)


@lru_cache(maxsize=32)
def _shapes(config: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, in its order; `config` is JSON.

    Raises:
        ArchitectureError: as `TimmAdapter.build`.
    """
    import torch

    with torch.device("meta"):
        state = TimmAdapter().build(json.loads(config)).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _recognised(header: CheckpointHeader) -> dict[str, Any]:
    config = _recognise(header)
    if config is None:
        raise ArchitectureError(
            f"{len(header.tensors)} tensors are not those of a timm model that the checkpoint "
            "names. Use the adapter `generic`, or give `architecture` in its configuration."
        )
    return config


def _recognise(header: CheckpointHeader) -> dict[str, Any] | None:
    """The configuration of the model that the header names, when it has exactly its tensors."""
    expected = {tensor.name: tensor.shape for tensor in header.tensors}
    for candidate in _candidates(header, expected):
        try:
            if _shapes(json.dumps(candidate)) == expected:
                return candidate
        except ArchitectureError:
            continue  # unregistered name, or arguments of another library
    return None


def _candidates(
    header: CheckpointHeader, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[dict[str, Any]]:
    """What the checkpoint says it is, then the same with the sizes that its weights show."""
    names = [header.config.get("architecture")]
    names += [header.metadata.get(key) for key in _METADATA_NAMES]
    for name in dict.fromkeys(n for n in names if isinstance(n, str)):
        import timm

        if not timm.is_model(name):
            continue
        said = {key: header.config[key] for key in _KEYS if key in header.config}
        said["architecture"] = name
        if max(_integers(said.get("model_args")), default=0) > _MAX_ARGUMENT:
            continue
        yield said
        yield said | _sizes(name, shapes)


def _integers(value: object) -> Iterator[int]:
    """All whole numbers inside a JSON value."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _integers(item)


def _sizes(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Number of classes and input channels, from the tensors that timm names for the model."""
    import timm

    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None:
        return {}
    sizes = {}
    # Some models name several layers, against timm's own annotation; all are of one size.
    places: tuple[tuple[str, Any, int], ...] = (
        ("num_classes", cfg.classifier, 0),
        ("in_chans", cfg.first_conv, 1),
    )
    for argument, layers, axis in places:
        layer = layers[0] if isinstance(layers, tuple | list) and layers else layers
        shape = shapes.get(f"{layer}.weight", ())
        if isinstance(layer, str) and len(shape) > axis:
            sizes[argument] = shape[axis]
    if cfg.classifier and "num_classes" not in sizes:
        sizes["num_classes"] = 0  # a network without its head
    return sizes
