"""Networks put together from parts of training networks: layers, or chunks with noise.

Chunks are drawn as SANE draws tokens (Schürholt et al., 2024, arXiv 2406.09997): from kernel densities estimated on the
best training networks, each chunk by itself; `subsample` keeps the best of many candidates by images. SANE does so in
the space of codes of an autoencoder, these do in the space of weights.

Legend for shapes: A anchors, P values of a network, U layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch

from zooplatform.errors import ConfigError
from zooplatform_kde.baseline import (
    Baseline,
    Learned,
    Request,
    derived_seed,
    variance_floors,
)
from zooplatform_kde.clusters import pick_cluster
from zooplatform_kde.config import BootstrapSettings, KdeSettings, SubsampleSettings
from zooplatform_kde.densities import WIDTHS, Densities, likelihoods, spread_within
from zooplatform_kde.kmeans import find_clusters, largest_first
from zooplatform_kde.layers import chunks, layer_names, layers
from zooplatform_kde.measuring import Judge
from zooplatform_kde.simple import pick

if TYPE_CHECKING:
    from zooplatform.fitting import GeneratorData
    from zooplatform_kde.baseline import Group
    from zooplatform_kde.networks import Networks

__all__ = ["ChunkKde", "LayerBootstrap", "Subsample"]

K = TypeVar("K", bound=KdeSettings)

_PARENTS = 8  # that details name, at most


class LayerBootstrap(Baseline[BootstrapSettings]):
    """Every layer, with its bias and its normalisation, from another training network.

    The temperature is the probability with which a layer comes from a network of its own and not from the one that all
    others come from: at 0 the result is a copy of the best.
    """

    NAME = "layer-bootstrap"
    SETTINGS = BootstrapSettings

    def learn(
        self, networks: Networks, settings: BootstrapSettings, data: GeneratorData, seed: int
    ) -> Learned:
        found = find_clusters(networks, settings.clusters, settings.max_clusters, seed)
        order = networks.order
        tensors = {
            "weights": networks.weights[order],
            "of": found.of[order],
            "sizes": found.of.bincount(),
        }
        names = layer_names(networks.blueprint.vector)
        values = {"ids": [networks.ids[at] for at in order.tolist()], "layers": names}
        metrics = {"num_layers": float(len(names)), "num_clusters": float(found.number)}
        return Learned(tensors, values, metrics)

    def draw(
        self, group: Group, request: Request[BootstrapSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        own = group.once("layers", lambda: layers(group.blueprint.vector))
        at = pick_cluster(group.tensors["sizes"], request.temperature, random)
        rows = (group.tensors["of"] == at).nonzero().squeeze(1)
        rows = rows[: request.among(len(rows))]
        units = len(group.values["layers"])
        base = pick(len(rows), request.temperature, random)
        others = torch.randint(len(rows), (units,), generator=random)
        swapped = torch.rand(units, generator=random) < request.temperature
        chosen = rows[others.where(swapped, torch.tensor(base))]  # (U,)
        weights = group.tensors["weights"][chosen[own], torch.arange(len(own))]
        ids = [group.values["ids"][row] for row in chosen.tolist()]
        told = dict(zip(group.values["layers"], ids, strict=True))
        return weights, {"parents": sorted(set(ids)), "layers": told}


class _Anchors(NamedTuple):
    """Attributes:
    densities: of the chunks.
    of: (A,) the cluster of each anchor, largest first.
    width: of the kernels.
    """

    densities: Densities
    of: torch.Tensor
    width: float

    def draw(
        self, request: Request[Any], random: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """A network (P,), the anchors of its chunks (C,), and the cluster that they are of."""
        cluster = pick_cluster(self.of.bincount(), request.temperature, random)
        rows = (self.of == cluster).nonzero().squeeze(1)
        rows = rows[: request.among(len(rows))]
        width = request.temperature * self.width
        return (*self.densities.draw(rows, width, random), cluster)


class ChunkKde(Baseline[K]):
    """Each chunk of a network from the kernel density of that chunk among the best training networks."""

    NAME = "chunk-kde"
    SETTINGS = KdeSettings
    OPTIONS: ClassVar[tuple[str, ...]] = ("bandwidth",)

    def learn(self, networks: Networks, settings: K, data: GeneratorData, seed: int) -> Learned:
        found = find_clusters(networks, settings.clusters, settings.max_clusters, seed)
        rows = _best(networks, found.of, settings.anchors)
        anchors, of = networks.weights[rows], largest_first(found.of[rows])
        chunk = chunks(networks.blueprint.vector, settings.chunk_size)
        densities = Densities(anchors, spread_within(anchors, of), chunk)
        tried = WIDTHS if settings.bandwidth == "auto" else (float(settings.bandwidth),)
        scores = likelihoods(densities, networks.held_out, tried)
        best = max(range(len(tried)), key=scores.__getitem__)
        metrics = {
            "bandwidth": tried[best],
            "num_anchors": float(len(anchors)),
            "num_chunks": float(int(chunk.max()) + 1),
            "num_clusters": float(found.number),
        }
        if math.isfinite(scores[best]):
            metrics["validation_log_likelihood"] = scores[best]
        values = {
            "ids": [networks.ids[at] for at in rows.tolist()],
            "bandwidth": tried[best],
            "ranked_by": networks.ranked_by,
        }
        return Learned({"anchors": anchors, "of": of, "spread": densities.spread}, values, metrics)

    def draw(
        self, group: Group, request: Request[K], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        weights, chosen, _ = self._anchors(group, request).draw(request, random)
        ids = group.values["ids"]
        parents = sorted({ids[at] for at in chosen.tolist()}) if ids else []
        # Of very many, none is more of a parent than any other.
        return weights, {"parents": parents} if 0 < len(parents) <= _PARENTS else {}

    @staticmethod
    def _anchors(group: Group, request: Request[K]) -> _Anchors:
        size, vector = request.settings.chunk_size, group.blueprint.vector
        chunk = group.once("chunks", lambda: chunks(vector, size))
        given = request.settings.bandwidth
        width = group.values["bandwidth"] if given == "auto" else float(given)
        densities = Densities(group.tensors["anchors"], group.tensors["spread"], chunk)
        return _Anchors(densities, group.tensors["of"], width)


class Subsample(ChunkKde[SubsampleSettings]):
    """The best of many candidates of `chunk-kde`, by their loss on training images."""

    NAME = "subsample"
    SETTINGS = SubsampleSettings
    OPTIONS = ("bandwidth", "candidates")
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"candidates": 4, "images": 64},
        "default": {},
        "bootstrapped": {"rounds": 3},
    }

    def learn(
        self, networks: Networks, settings: SubsampleSettings, data: GeneratorData, seed: int
    ) -> Learned:
        images = data.images.get(networks.dataset)
        if images is None:
            raise ConfigError(
                f"subsample chooses by training images, and those of the data set {networks.dataset!r} are not there. "
                "Say where they are (--data-folder), leave its networks out of the query, or take chunk-kde."
            )
        learned = super().learn(networks, settings, data, seed)
        tensors, values = dict(learned.tensors), dict(learned.values)
        judge = Judge.of(networks.blueprint, images, settings.images, data.build)
        losses = judge.losses(tensors["anchors"])
        metrics = dict(learned.metrics) | {"loss_of_anchors": float(losses.mean())}
        chunk = chunks(networks.blueprint.vector, settings.chunk_size)
        for number in range(settings.rounds):
            densities = Densities(tensors["anchors"], tensors["spread"], chunk)
            anchors = _Anchors(densities, tensors["of"], values["bandwidth"])
            drawn = [
                anchors.draw(
                    Request(settings, 1.0, None),
                    torch.Generator().manual_seed(derived_seed(seed, number, at)),
                )
                for at in range(settings.draws)
            ]
            candidates = torch.stack([one for one, _, _ in drawn])
            for floors in variance_floors(networks).values():
                candidates = torch.maximum(candidates, floors)
            losses = judge.losses(candidates)
            kept = losses.argsort(stable=True)[: settings.keep]
            of = largest_first(torch.tensor([one for _, _, one in drawn])[kept])
            best = candidates[kept]
            tensors |= {"anchors": best, "of": of, "spread": spread_within(best, of)}
            values["ids"] = []  # anchors are no training networks any more
            metrics[f"loss_of_round_{number + 1}"] = float(losses[kept].mean())
        return Learned(tensors | {"x": judge.x.clone(), "y": judge.y.clone()}, values, metrics)

    def draw(
        self, group: Group, request: Request[SubsampleSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        x, y = group.tensors["x"], group.tensors["y"]
        judge = group.once("judge", lambda: Judge.again(group.blueprint, x, y))
        made = []
        for _ in range(request.settings.candidates):
            weights, details = super().draw(group, request, random)
            made.append((group.bounded(weights), details))
        losses = judge.losses(torch.stack([one for one, _ in made]))
        weights, details = made[int(losses.argmin())]
        loss = float(losses.min())
        told: dict[str, Any] = {"candidates": len(made)}
        if math.isfinite(loss):
            told["training_loss"] = loss
        return weights, details | told


def _best(networks: Networks, of: torch.Tensor, share: float) -> torch.Tensor:
    """The best share of the networks of every cluster, at least one of each, best first."""
    chosen = []
    for at in range(int(of.max()) + 1):
        own = networks.order[of[networks.order] == at]
        chosen.append(own[: math.ceil(share * len(own))])
    wanted = torch.cat(chosen)
    return networks.order[torch.isin(networks.order, wanted)]
