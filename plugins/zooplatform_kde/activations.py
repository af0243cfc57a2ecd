"""A normal distribution on principal components of what networks do, and networks that do what is drawn.

Legend for shapes: N training networks of a group, B networks, P values of one, m images, D activations of a network
(see `zooplatform.activations`), K components.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from zooplatform.activations import ActivationSpace
from zooplatform.errors import ConfigError
from zooplatform_kde.baseline import Baseline, Learned
from zooplatform_kde.config import ActivationSettings
from zooplatform_kde.gaussian import principal_of, principal_tensors
from zooplatform_kde.measuring import adapter_of, quietly
from zooplatform_kde.principal import chosen_components, principal_components

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_kde.baseline import Group, Request
    from zooplatform_kde.networks import Networks

__all__ = ["ActivationPca"]

_MOST_COMPONENTS = 128  # that `auto` compares


class ActivationPca(Baseline[ActivationSettings]):
    """A normal distribution on the first principal components of the activations of a group, on unlabelled images.

    Hidden units are matched by their activations. What is drawn becomes a network layer by layer, by ridge regression
    from what the layers before put out.
    """

    NAME = "activation-pca"
    SETTINGS = ActivationSettings
    OPTIONS = ("ridge",)
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"components": 4, "images": 64},
        "default": {},
    }

    def learn(
        self, networks: Networks, settings: ActivationSettings, data: GeneratorData, seed: int
    ) -> Learned:
        images = data.images.get(networks.dataset)
        if images is None:
            raise ConfigError(
                "activation-pca looks at what networks do with images, and those of the data set "
                f"{networks.dataset!r} are not there. Say where they are (--data-folder), leave its networks out of "
                "the query, or take pca."
            )
        x = images.x[: settings.images].clone()
        space = _space(networks.blueprint, x, settings.positions, data.build)
        found = space.record(networks.weights)
        found, middle = space.align(found, first=int(networks.order[0]))
        scale = space.scale(found)
        most = _MOST_COMPONENTS if settings.components == "auto" else int(settings.components)
        principal = principal_components(found * scale, most)
        held_out = space.match(space.record(networks.held_out), middle) * scale
        principal, likelihood = chosen_components(principal, settings.components, held_out)
        metrics = {
            "components": float(len(principal.std)),
            "explained_variance": principal.explained,
        }
        if likelihood is not None:
            metrics["validation_log_likelihood"] = likelihood
        tensors = principal_tensors(principal) | {"scale": scale, "middle": middle, "x": x}
        tensors["typical"] = networks.weights.mean(dim=0)
        return Learned(tensors, {"positions": settings.positions}, metrics)

    def draw(
        self, group: Group, request: Request[ActivationSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        found = principal_of(group.tensors)
        along = request.temperature * found.std * torch.randn(len(found.std), generator=random)
        wanted = found.networks(along[None]) / group.tensors["scale"]
        space, typical = _again(group), group.tensors["typical"]
        return space.solve(wanted, request.settings.ridge, typical=typical)[0], {}

    def reconstruct(self, weights: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
        """(B, P) networks that do what is left of the given ones on the components of the nearest group."""
        settings = self._fitted()
        best, error = weights.float(), torch.full((len(weights),), torch.inf)
        for group in self._groups_of(blueprint):
            space, scale, found = _again(group), group.tensors["scale"], principal_of(group.tensors)
            own = space.match(space.record(weights), group.tensors["middle"]) * scale
            kept = found.networks(found.coordinates(own))
            left = (kept - own).square().sum(dim=1)
            made = space.solve(kept / scale, settings.ridge, typical=group.tensors["typical"])
            best = torch.where((left < error)[:, None], made, best)
            error = torch.minimum(left, error)
        return best


def _space(
    blueprint: Blueprint,
    images: torch.Tensor,
    positions: int,
    build: Callable[[Blueprint], nn.Module],
) -> ActivationSpace:
    module = quietly(build, blueprint)
    return ActivationSpace(module, blueprint.vector, images, positions=positions)


def _again(group: Group) -> ActivationSpace:
    """The space that a group was learnt in, with a network built by the architecture adapter."""

    def build(blueprint: Blueprint) -> nn.Module:
        module: nn.Module = adapter_of(blueprint).build(blueprint.config)
        return module

    def make() -> ActivationSpace:
        return _space(group.blueprint, group.tensors["x"], group.values["positions"], build)

    space: ActivationSpace = group.once("space", make)
    return space
