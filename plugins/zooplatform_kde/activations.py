"""A normal distribution on principal components of what networks do, and networks that do what is drawn.

Legend for shapes: N training networks of a group, B networks, P values of one, m images, D activations of a network
(see `zooplatform.activations`), K components, k clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from zooplatform.activations import ActivationSpace
from zooplatform.errors import ConfigError
from zooplatform_kde.baseline import Baseline, Learned
from zooplatform_kde.clusters import pick_cluster
from zooplatform_kde.config import ActivationSettings
from zooplatform_kde.kmeans import find_clusters
from zooplatform_kde.measuring import adapter_of, quietly
from zooplatform_kde.principal import Principal, chosen_components, principal_components
from zooplatform_kde.simple import nearest_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_kde.baseline import Group, Request
    from zooplatform_kde.networks import Networks

__all__ = ["ActivationPca"]

_MOST_COMPONENTS = 128  # that `auto` compares


class ActivationPca(Baseline[ActivationSettings]):
    """A normal distribution on the first principal components of the activations of a cluster, on unlabelled images.

    By default a group is one cluster. Hidden units are matched by their activations, within a cluster. What is drawn
    becomes a network layer by layer, by ridge regression from what the layers before put out.
    """

    NAME = "activation-pca"
    SETTINGS = ActivationSettings
    OPTIONS = ("ridge",)
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"components": 4, "images": 64},
        "default": {},
        "clusters": {"clusters": "auto", "components": 8},
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
        if settings.clusters == 1:
            of, silhouette = torch.zeros(len(networks.weights), dtype=torch.int64), 0.0
        else:
            of, silhouette = find_clusters(networks, settings.clusters, settings.max_clusters, seed)
        number = int(of.max()) + 1
        typical = torch.stack([networks.weights[of == at].mean(dim=0) for at in range(number)])
        nearest = nearest_rows(networks.held_out, typical)
        learnt, likelihoods = [], []
        for at in range(number):
            own = of == at
            best = networks.order[own[networks.order]][0]
            first = int(own[:best].sum())  # its place among those of the cluster
            held_out = networks.held_out[nearest == at]
            one, likelihood = _learnt(space, networks.weights[own], held_out, first, settings)
            learnt.append(one)
            if likelihood is not None:
                likelihoods.append(likelihood * len(held_out))
        counts = [len(one.principal.std) for one in learnt]
        tensors = {
            "sizes": of.bincount(),
            "mean": torch.stack([one.principal.mean for one in learnt]),
            "axes": torch.cat([one.principal.axes for one in learnt]),
            "std": torch.cat([one.principal.std for one in learnt]),
            "scale": torch.stack([one.scale for one in learnt]),
            "middle": torch.stack([one.middle for one in learnt]),
            "typical": typical,
            "x": x,
        }
        metrics = {
            "num_clusters": float(number),
            "silhouette": silhouette,
            "components": sum(counts) / number,
            "explained_variance": sum(one.principal.explained for one in learnt) / number,
        }
        if likelihoods:
            metrics["validation_log_likelihood"] = sum(likelihoods) / len(networks.held_out)
        return Learned(tensors, {"positions": settings.positions, "components": counts}, metrics)

    def draw(
        self, group: Group, request: Request[ActivationSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        sizes = group.tensors["sizes"]
        several = len(sizes) > 1
        among = sizes[: request.among(len(sizes))]
        # One cluster takes no number of the generator, so that what is drawn does not depend on there being clusters.
        at = pick_cluster(among, request.temperature, random) if several else 0
        found = _of_cluster(group, at).principal
        along = request.temperature * found.std * torch.randn(len(found.std), generator=random)
        made = self._made(group, at, found.networks(along[None]), request.settings.ridge)
        return made[0], {"cluster": at} if several else {}

    def reconstruct(self, weights: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
        """(B, P) networks that do what is left of the given ones on the components of the nearest cluster."""
        settings = self._fitted()
        best, error = weights.float().clone(), torch.full((len(weights),), torch.inf)
        for group in self._groups_of(blueprint):
            found = _again(group).record(weights)
            for at in range(len(group.tensors["sizes"])):
                one = _of_cluster(group, at)
                own = _again(group).match(found, one.middle) * one.scale
                kept = one.principal.networks(one.principal.coordinates(own))
                left = (kept - own).square().sum(dim=1)
                nearer = left < error
                made = self._made(group, at, kept[nearer], settings.ridge)
                best[nearer], error[nearer] = made, left[nearer]
        return best

    def _made(self, group: Group, at: int, wanted: torch.Tensor, ridge: float) -> torch.Tensor:
        """(B, P) networks from scaled activations (B, D)."""
        tensors = group.tensors
        return _again(group).solve(
            wanted / tensors["scale"][at], ridge, typical=tensors["typical"][at]
        )


class _Cluster(NamedTuple):
    """What was learnt of a cluster: components of scaled activations, their scale (D,) and mean before it (D,)."""

    principal: Principal
    scale: torch.Tensor
    middle: torch.Tensor


def _learnt(
    space: ActivationSpace,
    weights: torch.Tensor,
    held_out: torch.Tensor,
    first: int,
    settings: ActivationSettings,
) -> tuple[_Cluster, float | None]:
    """A cluster, and the mean log-likelihood of the validation networks that are of it."""
    found, middle = space.align(space.record(weights), first=first)
    scale = space.scale(found)
    most = _MOST_COMPONENTS if settings.components == "auto" else int(settings.components)
    principal = principal_components(found * scale, most)
    others = space.match(space.record(held_out), middle) * scale
    principal, likelihood = chosen_components(principal, settings.components, others)
    return _Cluster(principal, scale, middle), likelihood


def _of_cluster(group: Group, at: int) -> _Cluster:
    counts, tensors = group.values["components"], group.tensors
    own = slice(sum(counts[:at]), sum(counts[: at + 1]))
    principal = Principal(tensors["mean"][at], tensors["axes"][own], tensors["std"][own], 0.0, 0.0)
    return _Cluster(principal, tensors["scale"][at], tensors["middle"][at])


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
