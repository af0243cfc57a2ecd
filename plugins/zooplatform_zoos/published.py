"""The two convolutional networks of the published zoos, told from the shapes of their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.interfaces import StateDict

__all__ = ["activation_of", "published_config"]

_TINY: list[tuple[int | None, ...]] = [
    (8, None, 5, 5),
    (6, 8, 5, 5),
    (4, 6, 2, 2),
    (20, 36),
    (None, 20),
]
_CNN3: list[tuple[int | None, ...]] = [
    (16, None, 3, 3),
    (32, 16, 3, 3),
    (15, 32, 3, 3),
    (20, 60),
    (None, 20),
]
_PRESETS = {"tiny_zoo": _TINY, "cnn3": _CNN3}
_ACTIVATIONS = {"tanh", "relu", "sigmoid", "gelu", "silu", "elu", "leaky_relu"}
_OTHER_NAMES = {"leakyrelu": "leaky_relu", "swish": "silu"}


def activation_of(config: Mapping[str, Any]) -> str | None:
    """The activation that the hyper-parameters name, or None."""
    for key in ("model::nlin", "nlin", "activation", "model::activation"):
        value = config.get(key)
        if isinstance(value, str):
            name = _OTHER_NAMES.get(value.lower(), value.lower())
            return name if name in _ACTIVATIONS else None
    return None


def published_config(state: StateDict, hyperparameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `cnn` configuration of a state dict, or None when it is none of the published networks.

    Channels, classes and the shift of the names by dropout layers are read from the tensors: the zoos' own `o_dim` and
    `use_bias` are wrong in places.
    """
    names = list(state)
    if len(names) != 10 or any(not name.startswith("module_list.") for name in names):
        return None
    weights = [tuple(state[name].shape) for name in names if name.endswith(".weight")]
    preset = next((name for name, shapes in _PRESETS.items() if _fits(weights, shapes)), None)
    if preset is None:
        return None
    dropout = hyperparameters.get("model::dropout", hyperparameters.get("dropout"))
    rate = float(dropout) if isinstance(dropout, int | float) else 0.0
    shifted = preset == "tiny_zoo" and "module_list.4.weight" in state
    if preset == "tiny_zoo" and not shifted:
        rate = 0.0  # the names say that the network has no dropout layers
    elif shifted and not rate:
        rate = (
            0.5  # it has them, at a rate that nobody wrote down; they do nothing outside training
        )
    return {
        "preset": preset,
        "channels": weights[0][1],
        "size": 28 if preset == "tiny_zoo" else 32,
        "classes": weights[-1][0],
        "dropout": rate,
        "activation": activation_of(hyperparameters),
    }


def _fits(weights: list[tuple[int, ...]], shapes: list[tuple[int | None, ...]]) -> bool:
    """Whether the shapes agree; None stands for any size."""
    return len(weights) == len(shapes) and all(
        len(have) == len(want)
        and all(size in (None, found) for found, size in zip(have, want, strict=True))
        for have, want in zip(weights, shapes, strict=True)
    )
