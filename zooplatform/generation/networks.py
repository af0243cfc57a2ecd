"""Vectors of weights as networks again.

Legend for shapes: P values of one network, E bytes of it kept aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zooplatform.catalog.population import split_vector
from zooplatform.errors import ArchitectureError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zooplatform.fitting import Blueprint
    from zooplatform.interfaces import StateDict
    from zooplatform.recognise import Recogniser

__all__ = ["Builder", "state_of"]


class Builder:
    """Builds networks of blueprints; call it for one whose weights its constructor drew.

    Args:
        recogniser: gives the architecture adapters (`Catalog.recogniser`).
    """

    def __init__(self, recogniser: Recogniser) -> None:
        self._recogniser = recogniser

    def __call__(self, blueprint: Blueprint) -> nn.Module:
        """A new network.

        Raises:
            ArchitectureError: the adapter refuses the configuration.
            PluginError: the adapter is not there.
        """
        return self._recogniser.adapter(blueprint.family).build(blueprint.config)

    def load(self, blueprint: Blueprint, weights: torch.Tensor) -> nn.Module:
        """The network that has these weights (P,), loaded strictly, in evaluation mode.

        Raises:
            ArchitectureError: the weights do not fit what the adapter builds.
        """
        module = self(blueprint)
        adapter = self._recogniser.adapter(blueprint.family)
        try:
            state = adapter.to_canonical(state_of(blueprint, weights))
            module.load_state_dict(state, strict=True)
        except RuntimeError as exc:
            raise ArchitectureError(
                f"The weights of {blueprint.name or blueprint.architecture_id} do not fit the network that adapter "
                f"{blueprint.family!r} built: {exc}"
            ) from exc
        return module.eval()


def state_of(blueprint: Blueprint, weights: torch.Tensor) -> StateDict:
    """A vector of weights (P,) as a state dict in fresh memory, its bytes aside those of the blueprint.

    Raises:
        ArchitectureError: it has not P values, or the blueprint not E bytes.
    """
    vector = blueprint.vector
    if weights.shape != (vector.width,) or len(blueprint.aside) != vector.aside_bytes:
        raise ArchitectureError(
            f"{tuple(weights.shape)} values and {len(blueprint.aside)} bytes aside are no network of "
            f"{blueprint.name or blueprint.architecture_id}, which has {vector.width:,} values and "
            f"{vector.aside_bytes} bytes aside."
        )
    values = weights.detach().cpu().numpy().astype(vector.dtype, copy=True)
    aside = np.frombuffer(blueprint.aside, np.uint8).copy() if vector.aside_bytes else None
    return split_vector(vector, values, aside)
