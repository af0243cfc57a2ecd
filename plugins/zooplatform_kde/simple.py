"""Baselines that copy, average, or know nothing but how untrained networks are drawn.

Legend for shapes: N training networks of a group, B networks, P values of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from zooplatform_kde.baseline import Baseline, Learned
from zooplatform_kde.config import NoiseSettings, RandomSettings, Settings
from zooplatform_kde.measuring import vector_of

if TYPE_CHECKING:
    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform.layout import VectorLayout
    from zooplatform_kde.baseline import Group, Request
    from zooplatform_kde.networks import Networks

__all__ = ["Noise", "RandomInit", "Retrieval", "ZooMean", "nearest_rows", "pick", "tensor_std"]


class RandomInit(Baseline[RandomSettings]):
    """Untrained networks: every tensor by the distribution that its constructor was seen to draw from.

    `builds` networks are built when it is fitted. A tensor whose values are all the same in each place is a constant;
    otherwise it is uniform or normal, whichever kurtosis (1.8 and 3) is nearer, so no network has to be built later.
    Structure between values (orthogonal rows) is not kept.
    """

    NAME = "random-init"
    SETTINGS = RandomSettings
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {"debug": {"builds": 8}, "default": {}}

    def learn(
        self, networks: Networks, settings: RandomSettings, data: GeneratorData, seed: int
    ) -> Learned:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = [
                vector_of(data.build(networks.blueprint), networks.blueprint)
                for _ in range(settings.builds)
            ]
        weights = torch.stack(built)  # (builds, P)
        kinds: dict[str, list[Any]] = {}
        for field in networks.blueprint.vector.fields:
            if field.aside or not field.spec.num_elements:
                continue
            part = weights[:, field.offset : field.offset + field.spec.num_elements].double()
            kinds[field.spec.name] = _distribution(part)
        drawn = sum(kind[0] != "constant" for kind in kinds.values())
        return Learned(
            {"constants": weights[0].clone()}, {"kinds": kinds}, {"tensors_drawn": float(drawn)}
        )

    def draw(
        self, group: Group, request: Request[RandomSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        result = group.tensors["constants"].clone()
        kinds = group.values["kinds"]
        for field in group.blueprint.vector.fields:  # in an order that storing does not change
            kind, centre, spread = kinds.get(field.spec.name, ("constant", 0.0, 0.0))
            size = field.spec.num_elements
            if kind == "constant":
                continue
            if kind == "uniform":
                values = 2 * torch.rand(size, generator=random) - 1
            else:
                values = torch.randn(size, generator=random)
            result[field.offset : field.offset + size] = centre + spread * values
        return result, {}


class ZooMean(Baseline[Settings]):
    """The mean of all training networks of the group, always."""

    NAME = "zoo-mean"
    SETTINGS = Settings

    def learn(
        self, networks: Networks, settings: Settings, data: GeneratorData, seed: int
    ) -> Learned:
        mean = networks.weights.double().mean(dim=0)
        spread = (networks.weights - mean).square().sum(dim=1).mean()
        metrics = {"relative_spread": float(spread.sqrt() / mean.norm().clamp_min(1e-12))}
        return Learned({"mean": mean.float()}, {}, metrics)

    def draw(
        self, group: Group, request: Request[Settings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        return group.tensors["mean"], {}

    def reconstruct(self, weights: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
        """(B, P) what is left of networks: the nearest mean of a group of their blueprint."""
        means = torch.stack([group.tensors["mean"] for group in self._groups_of(blueprint)])
        return means[nearest_rows(weights, means)]


class Retrieval(Baseline[Settings]):
    """A training network that the condition asks for, unchanged."""

    NAME = "retrieval"
    SETTINGS = Settings

    def learn(
        self, networks: Networks, settings: Settings, data: GeneratorData, seed: int
    ) -> Learned:
        ids = networks.ids
        order = networks.order.tolist()
        # Best first, so that the first k are the k best.
        values = {"ids": [ids[at] for at in order], "ranked_by": networks.ranked_by}
        return Learned({"weights": networks.stored[networks.order]}, values)

    def draw(
        self, group: Group, request: Request[Any], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        weights = group.tensors["weights"]
        at = pick(request.among(len(weights)), request.temperature, random)
        return weights[at], {"parents": [group.values["ids"][at]]}


class Noise(Baseline[NoiseSettings]):
    """A training network with normal noise, in proportion to the spread of each of its tensors."""

    NAME = "noise"
    SETTINGS = NoiseSettings
    OPTIONS = ("sigma",)

    def learn(
        self, networks: Networks, settings: NoiseSettings, data: GeneratorData, seed: int
    ) -> Learned:
        order = networks.order.tolist()
        values = {"ids": [networks.ids[at] for at in order], "ranked_by": networks.ranked_by}
        return Learned({"weights": networks.stored[networks.order]}, values)

    def draw(
        self, group: Group, request: Request[NoiseSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        weights = group.tensors["weights"]
        at = pick(request.among(len(weights)), request.temperature, random)
        parent = weights[at]
        noise = torch.randn(len(parent), generator=random)
        sigma = request.temperature * request.settings.sigma
        spread = tensor_std(parent.float(), group.blueprint.vector)
        added = (sigma * spread * noise).to(parent.dtype)
        return parent + added, {"parents": [group.values["ids"][at]], "sigma": sigma}


def pick(count: int, temperature: float, random: torch.Generator) -> int:
    """One of `count` ordered things, all alike; the first at temperature 0."""
    at = int(torch.randint(count, (1,), generator=random))
    return at if temperature > 0 else 0


def nearest_rows(weights: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(B,) which of the (M, P) others is nearest to each of (B, P)."""
    return torch.cdist(weights.float(), others.float()).argmin(dim=1)


def tensor_std(weights: torch.Tensor, vector: VectorLayout) -> torch.Tensor:
    """(P,) for each value of a network the standard deviation of the tensor that it belongs to.

    A tensor of one value, or of equal ones, has its root mean square instead: noise on it would otherwise be none.
    """
    result = torch.zeros_like(weights)
    for field in vector.fields:
        if field.aside or not field.spec.num_elements:
            continue
        part = weights[field.offset : field.offset + field.spec.num_elements]
        std = part.std(unbiased=False)
        if not std > 1e-6 * part.abs().max():
            std = part.square().mean().sqrt()
        result[field.offset : field.offset + field.spec.num_elements] = std
    return result


def _distribution(values: torch.Tensor) -> list[Any]:
    """Kind, centre and spread of a (builds, n) tensor: half the width of a uniform one, the deviation of a normal."""
    if not (values != values[0]).any():
        return ["constant", 0.0, 0.0]
    mean, std = float(values.mean()), float(values.std(unbiased=False))
    kurtosis = float(((values - mean) / std).pow(4).mean())
    if abs(kurtosis - 1.8) < abs(kurtosis - 3):
        low, high = float(values.min()), float(values.max())
        # Of m draws, the ends lie (m + 1) / (m - 1) apart of where the extremes are.
        count = values.numel()
        half = (high - low) / 2 * (count + 1) / max(1, count - 1)
        return ["uniform", (low + high) / 2, half]
    return ["normal", mean, std]
