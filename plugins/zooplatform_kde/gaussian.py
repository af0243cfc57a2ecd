"""Normal distributions on principal components: of all networks of a group, and of each cluster.

Legend for shapes: N training networks of a group, B networks, P values of one, K components, k clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from zooplatform_kde.baseline import Baseline, Learned
from zooplatform_kde.clusters import pick_cluster
from zooplatform_kde.config import ClusterPcaSettings, PcaSettings
from zooplatform_kde.kmeans import find_clusters
from zooplatform_kde.principal import Principal, chosen_components, principal_components
from zooplatform_kde.simple import nearest_rows

if TYPE_CHECKING:
    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_kde.baseline import Group, Request
    from zooplatform_kde.networks import Networks

__all__ = ["ClusterPca", "PcaGaussian", "principal_of", "principal_tensors", "projected"]

_MOST_COMPONENTS = 128  # that `auto` compares


class PcaGaussian(Baseline[PcaSettings]):
    """A normal distribution on the first principal components of all weights of a group."""

    NAME = "pca"
    SETTINGS = PcaSettings
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"components": 4},
        "default": {},
        "auto": {"components": "auto"},
    }

    def learn(
        self, networks: Networks, settings: PcaSettings, data: GeneratorData, seed: int
    ) -> Learned:
        most = _MOST_COMPONENTS if settings.components == "auto" else int(settings.components)
        found = principal_components(networks.weights, most)
        found, likelihood = chosen_components(found, settings.components, networks.held_out)
        metrics = {
            "components": float(len(found.std)),
            "explained_variance": found.explained,
        } | _validation(found, networks.held_out, likelihood)
        return Learned(principal_tensors(found), {}, metrics)

    def draw(
        self, group: Group, request: Request[PcaSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        found = principal_of(group.tensors)
        return _drawn(found, request.temperature, random), {}

    def reconstruct(self, weights: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
        """(B, P) networks projected on the mean and the axes of that group that leaves least of them out."""
        return projected(weights, [principal_of(g.tensors) for g in self._groups_of(blueprint)])


class ClusterPca(Baseline[ClusterPcaSettings]):
    """A normal distribution on the principal components of each cluster of training networks."""

    NAME = "cluster-pca"
    SETTINGS = ClusterPcaSettings
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"components": 2, "max_clusters": 8},
        "default": {},
        "pooled": {"pooled": True, "components": 32},
    }

    def learn(
        self, networks: Networks, settings: ClusterPcaSettings, data: GeneratorData, seed: int
    ) -> Learned:
        clusters = find_clusters(networks, settings.clusters, settings.max_clusters, seed)
        weights, held_out = networks.weights, networks.held_out
        most = _MOST_COMPONENTS if settings.components == "auto" else int(settings.components)
        means = torch.stack(
            [weights[clusters.of == at].double().mean(dim=0) for at in range(clusters.number)]
        ).float()
        nearest = nearest_rows(held_out, means)
        if settings.pooled:
            pooled = principal_components(
                weights, most, mean=means[clusters.of], lost=clusters.number
            )
            # Its own mean plays no part: what is chosen for are deviations from the means of clusters.
            centred = pooled._replace(mean=torch.zeros_like(pooled.mean))
            centred, _ = chosen_components(centred, settings.components, held_out - means[nearest])
            found = [centred._replace(mean=mean) for mean in means]
        else:
            found = []
            for at in range(clusters.number):
                own = principal_components(weights[clusters.of == at], most)
                found.append(
                    chosen_components(own, settings.components, held_out[nearest == at])[0]
                )
        sizes = clusters.of.bincount()
        tensors = {
            "sizes": sizes,
            "means": means,
            # Axes of all clusters below each other, once where they are pooled.
            "axes": found[0].axes if settings.pooled else torch.cat([one.axes for one in found]),
            "std": found[0].std if settings.pooled else torch.cat([one.std for one in found]),
            "rest": torch.tensor([one.rest for one in found], dtype=torch.float64),
        }
        metrics = {
            "num_clusters": float(clusters.number),
            "silhouette": clusters.silhouette,
            "components": sum(len(one.std) for one in found) / len(found),
            "explained_variance": _explained(weights, clusters.of, found),
        }
        if len(held_out):
            metrics |= _cluster_validation(held_out, nearest, sizes, found)
        alone = int((sizes == 1).sum())
        notes = (f"{alone} clusters have one network and no spread of their own.",) if alone else ()
        values = {"components": [len(one.std) for one in found], "pooled": settings.pooled}
        return Learned(tensors, values, metrics, notes)

    def draw(
        self, group: Group, request: Request[ClusterPcaSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        sizes = group.tensors["sizes"]
        at = pick_cluster(sizes[: request.among(len(sizes))], request.temperature, random)
        return _drawn(_of_cluster(group, at), request.temperature, random), {"cluster": at}

    def reconstruct(self, weights: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
        """(B, P) networks projected on the mean and axes of that cluster that leaves least of them out."""
        found = [
            _of_cluster(group, at)
            for group in self._groups_of(blueprint)
            for at in range(len(group.tensors["sizes"]))
        ]
        return projected(weights, found)


def _drawn(found: Principal, temperature: float, random: torch.Generator) -> torch.Tensor:
    """(P,) mean plus `temperature` times a draw of the normal distribution along the axes."""
    normal = torch.randn(len(found.std), generator=random)
    return found.networks((temperature * found.std * normal)[None])[0]


def projected(weights: torch.Tensor, candidates: list[Principal]) -> torch.Tensor:
    best, error = weights.float(), torch.full((len(weights),), torch.inf)
    for one in candidates:
        made = one.networks(one.coordinates(weights))
        left = (made - weights.float()).square().sum(dim=1)
        best = torch.where((left < error)[:, None], made, best)
        error = torch.minimum(left, error)
    return best


def principal_tensors(found: Principal) -> dict[str, torch.Tensor]:
    return {"mean": found.mean, "axes": found.axes, "std": found.std}


def principal_of(tensors: dict[str, torch.Tensor]) -> Principal:
    return Principal(tensors["mean"], tensors["axes"], tensors["std"], 0.0, 0.0)


def _of_cluster(group: Group, at: int) -> Principal:
    counts = group.values["components"]
    start = 0 if group.values["pooled"] else sum(counts[:at])
    own = slice(start, start + counts[at])
    tensors = group.tensors
    return Principal(tensors["means"][at], tensors["axes"][own], tensors["std"][own], 0.0, 0.0)


def _validation(
    found: Principal, held_out: torch.Tensor, likelihood: float | None
) -> dict[str, float]:
    """Mean log-likelihood per weight of the validation networks, and which share of them the components explain."""
    if likelihood is None:
        return {}
    made = found.networks(found.coordinates(held_out))
    left, whole = (held_out - made).square().sum(), (held_out - found.mean).square().sum()
    return {
        "validation_log_likelihood": likelihood,
        "validation_explained_variance": float(1 - left / whole.clamp_min(1e-30)),
    }


def _cluster_validation(
    held_out: torch.Tensor, nearest: torch.Tensor, sizes: torch.Tensor, found: list[Principal]
) -> dict[str, float]:
    """The same of a mixture: log of the sum over clusters of their share times their density."""
    shares = (sizes.double() / sizes.sum()).log()
    width = held_out.shape[1]
    each = torch.stack([one.log_likelihood(held_out) * width for one in found], dim=1)
    made = projected(held_out, found)
    means = torch.stack([one.mean for one in found])[nearest]
    left, whole = (held_out - made).square().sum(), (held_out - means).square().sum()
    return {
        "validation_log_likelihood": float((each + shares).logsumexp(dim=1).mean() / width),
        "validation_explained_variance": float(1 - left / whole.clamp_min(1e-30)),
    }


def _explained(weights: torch.Tensor, of: torch.Tensor, found: list[Principal]) -> float:
    """Share of the variance of all training networks that clusters and components leave nothing of."""
    left = sum(
        float((own - one.networks(one.coordinates(own))).square().sum(dtype=torch.float64))
        for at, one in enumerate(found)
        for own in [weights[of == at]]
    )
    total = float((weights - weights.mean(dim=0)).square().sum(dtype=torch.float64))
    return 1 - left / max(total, 1e-30)
