"""The mean of a cluster of networks: all that is needed where networks share a few initialisations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from zooplatform_kde.baseline import Baseline, Learned
from zooplatform_kde.config import ClusterSettings
from zooplatform_kde.kmeans import find_clusters
from zooplatform_kde.simple import nearest_rows

if TYPE_CHECKING:
    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_kde.baseline import Group, Request
    from zooplatform_kde.networks import Networks

__all__ = ["ClusterMean", "pick_cluster"]


class ClusterMean(Baseline[ClusterSettings]):
    """The mean of a cluster of training networks; clusters are drawn by their size."""

    NAME = "cluster-mean"
    SETTINGS = ClusterSettings
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {"debug": {"max_clusters": 8}, "default": {}}

    def learn(
        self, networks: Networks, settings: ClusterSettings, data: GeneratorData, seed: int
    ) -> Learned:
        found = find_clusters(networks, settings.clusters, settings.max_clusters, seed)
        weights = networks.weights
        means = torch.stack(
            [weights[found.of == at].double().mean(dim=0).float() for at in range(found.number)]
        )
        within = (weights - means[found.of]).square().sum(dtype=torch.float64)
        total = (weights - weights.mean(dim=0)).square().sum(dtype=torch.float64)
        metrics = {
            "num_clusters": float(found.number),
            "silhouette": found.silhouette,
            "explained_variance": float(1 - within / total.clamp_min(1e-30)),
        }
        return Learned({"means": means, "sizes": found.of.bincount()}, {}, metrics)

    def draw(
        self, group: Group, request: Request[ClusterSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        sizes = group.tensors["sizes"]
        at = pick_cluster(sizes[: request.among(len(sizes))], request.temperature, random)
        return group.tensors["means"][at], {"cluster": at}

    def reconstruct(self, weights: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
        """(B, P) the nearest mean of a cluster."""
        means = torch.cat([group.tensors["means"] for group in self._groups_of(blueprint)])
        return means[nearest_rows(weights, means)]


def pick_cluster(sizes: torch.Tensor, temperature: float, random: torch.Generator) -> int:
    """One of the clusters by its size; the first, which is the largest, at temperature 0."""
    at = int(torch.multinomial(sizes.double(), 1, generator=random))
    return at if temperature > 0 else 0
