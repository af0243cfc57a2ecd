"""Networks of any mix of blueprints in one order, and what they answer on images.

Legend for shapes: n networks, B of one blueprint, P values of one network, N images, D values of an image, K outputs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform.errors import ConfigError
from zooplatform.growing.engines import make_engine
from zooplatform.growing.networks import fastest_engine, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from zooplatform.fitting import Blueprint
    from zooplatform.growing.engines import Engine
    from zooplatform.growing.images import ImageData
    from zooplatform.growing.networks import NetworkPlan
    from zooplatform.interfaces import GeneratedBatch

__all__ = ["Answers", "Bench", "Networks", "Part", "Ready", "blueprint_key"]

# Images times networks of one step, and networks of a stack: as growing has them.
_AT_ONCE = 4096
_STACK = 32


class Part(NamedTuple):
    """Networks of one blueprint: their places (B,) among all, and their weights (B, P) float32."""

    places: Tensor
    weights: Tensor
    blueprint: Blueprint


@dataclass(frozen=True, slots=True)
class Networks:
    """n networks in an order, kept by blueprint.

    Attributes:
        parts: each place from 0 to n - 1 in one of them.
    """

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, weights: Tensor, blueprint: Blueprint) -> Networks:
        """Networks (n, P) of one blueprint."""
        return cls((Part(torch.arange(len(weights)), weights, blueprint),))

    @classmethod
    def collect(cls, batches: Iterable[tuple[Tensor, Blueprint]]) -> Networks:
        """Batches (B, P) one after the other; those of one blueprint become one part.

        Raises:
            ConfigError: networks have not as many values as their layout.
        """

        def counted() -> Iterator[tuple[range, Tensor, Blueprint]]:
            count = 0
            for weights, blueprint in batches:
                if weights.dim() != 2 or weights.shape[1] != blueprint.vector.width:
                    raise ConfigError(
                        f"Networks of shape {tuple(weights.shape)} do not fit {blueprint.name or blueprint.family}, "
                        f"which has {blueprint.vector.width:,} values. The plugin that made them has to be repaired."
                    )
                yield range(count, count + len(weights)), weights, blueprint
                count += len(weights)

        return cls.placed(counted())

    @classmethod
    def placed(cls, batches: Iterable[tuple[Sequence[int], Tensor, Blueprint]]) -> Networks:
        """Batches (B, P) with the places of their networks."""
        found: dict[str, tuple[list[Tensor], list[Tensor], Blueprint]] = {}
        for places, weights, blueprint in batches:
            own = found.setdefault(blueprint_key(blueprint), ([], [], blueprint))
            own[0].append(torch.as_tensor(places, dtype=torch.int64))
            own[1].append(weights.detach().to("cpu", torch.float32))
        return cls(
            tuple(
                Part(torch.cat(places), torch.cat(values), blueprint)
                for places, values, blueprint in found.values()
            )
        )

    @classmethod
    def drawn(cls, batches: Iterable[GeneratedBatch]) -> Networks:
        """What a generator gives."""
        return cls.collect((batch.weights, batch.blueprint) for batch in batches)

    @classmethod
    def joined(cls, networks: Iterable[Networks]) -> Networks:
        """Several one after the other."""
        return cls.collect(
            (weights, blueprint) for one in networks for weights, blueprint in one._in_order()
        )

    def _in_order(self) -> Iterator[tuple[Tensor, Blueprint]]:
        """Batches in the order of the places."""
        if len(self.parts) == 1:
            part = self.parts[0]
            yield part.weights[part.places.argsort()], part.blueprint
            return
        found = [
            (place, weights, part.blueprint)
            for part in self.parts
            for place, weights in zip(part.places.tolist(), part.weights, strict=True)
        ]
        for _, weights, blueprint in sorted(found, key=lambda one: one[0]):
            yield weights[None], blueprint

    def __len__(self) -> int:
        return sum(len(part.places) for part in self.parts)

    def take(self, places: Sequence[int]) -> Networks:
        """The networks at some places, in that order; a place may come again."""
        wanted = torch.as_tensor(places, dtype=torch.int64).reshape(-1)
        parts = []
        for part in self.parts:
            row_of = torch.full((len(self),), -1, dtype=torch.int64)
            row_of[part.places] = torch.arange(len(part.places))
            rows = row_of[wanted]
            own = (rows >= 0).nonzero().squeeze(1)
            if len(own):
                parts.append(Part(own, part.weights[rows[own]], part.blueprint))
        return Networks(tuple(parts))

    def with_weights(self, weights: Sequence[Tensor]) -> Networks:
        """The same places and blueprints with other weights, part by part."""
        pairs = zip(self.parts, weights, strict=True)
        return Networks(tuple(Part(part.places, values, part.blueprint) for part, values in pairs))

    def by_architecture(self) -> Iterator[tuple[str, Blueprint, Tensor, Tensor]]:
        """Architecture id, a blueprint of it, places (B,) and weights (B, P), whatever is built from the layout."""
        found: dict[str, list[Part]] = {}
        for part in self.parts:
            found.setdefault(part.blueprint.architecture_id, []).append(part)
        for name, parts in found.items():
            if len(parts) == 1:
                yield name, parts[0].blueprint, parts[0].places, parts[0].weights
                continue
            places = torch.cat([part.places for part in parts])
            weights = torch.cat([part.weights for part in parts])
            yield name, parts[0].blueprint, places, weights

    def blueprints(self) -> list[Blueprint]:
        """(n,) of each network."""
        found: list[Blueprint | None] = [None] * len(self)
        for part in self.parts:
            for place in part.places.tolist():
                found[place] = part.blueprint
        return [one for one in found if one is not None]

    def distinct(self) -> int:
        """How many differ in a value."""
        return sum(len(torch.unique(weights, dim=0)) for _, _, _, weights in self.by_architecture())

    def finite(self) -> Tensor:
        """(n,) whether every value of a network is finite."""
        found = torch.ones(len(self), dtype=torch.bool)
        for part in self.parts:
            found[part.places] = part.weights.isfinite().all(dim=1)
        return found


def blueprint_key(blueprint: Blueprint) -> str:
    """A text that two blueprints share only if they build the same network."""
    return json.dumps(
        [blueprint.architecture_id, blueprint.family, dict(blueprint.config)], sort_keys=True
    )


class Answers(NamedTuple):
    """What n networks say of N images: classes (n, N) int16, and the mean of their softmax (N, K) float64."""

    classes: Tensor
    mean_probability: Tensor

    def right(self, y: Tensor) -> Tensor:
        """(n, N) whether each answer is right."""
        return self.classes == y

    def accuracy(self, y: Tensor) -> npt.NDArray[np.float64]:
        """(n,) float64 shares of right answers."""
        found: npt.NDArray[np.float64] = self.right(y).double().mean(dim=1).numpy()
        return found

    def ensemble(self, y: Tensor) -> float:
        """Accuracy of the averaged softmax."""
        return float((self.mean_probability.argmax(dim=1) == y).double().mean())


class Ready(NamedTuple):
    """A plan with its engine.

    `columns` (P,) says for each value of a built network where it lies in the stored ones, which may have their tensors
    in another order.
    """

    plan: NetworkPlan
    engine_name: str
    engine: Engine
    columns: Tensor

    def built(self, stored: Tensor) -> Tensor:
        """(B, P) in the order of the built network."""
        return stored[:, self.columns]

    def stored(self, built: Tensor) -> Tensor:
        """The reverse of `built`."""
        found = torch.empty_like(built)
        found[:, self.columns] = built
        return found


class Bench:
    """Asks networks about the images of one data set, stacked where their layers are known.

    Args:
        build: a new network of a blueprint.
        data: its shape and loss; the images that are asked about are given to `answers`.
        device: torch device.
    """

    def __init__(
        self, build: Callable[[Blueprint], nn.Module], data: ImageData, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.data = data
        self._build = build
        self._ready: dict[str, Ready] = {}

    def ready(self, blueprint: Blueprint) -> Ready:
        """How networks of a blueprint are asked and trained together; made once.

        Raises:
            ConfigError, ArchitectureError: they cannot be.
        """
        key = blueprint_key(blueprint)
        if key not in self._ready:
            plan = plan_of(lambda: self._build(blueprint), blueprint.family, dict(blueprint.config))
            self._check(plan, blueprint)
            name = fastest_engine(plan)
            engine = make_engine(name, plan, self.data, dropout=False, device=self.device)
            self._ready[key] = Ready(plan, name, engine, _columns(plan, blueprint))
        return self._ready[key]

    def _check(self, plan: NetworkPlan, blueprint: Blueprint) -> None:
        try:
            with torch.no_grad():
                outputs = plan.prototype.eval()(torch.zeros(2, *self.data.shape))
        except (RuntimeError, ValueError, AssertionError) as exc:
            raise ConfigError(
                f"Networks of {blueprint.name or blueprint.family} do not take the images of {self.data.name}, which "
                f"are of shape {self.data.shape}: {str(exc).splitlines()[0]}"
            ) from exc
        if outputs.dim() != 2 or outputs.shape[1] < self.data.num_classes:
            raise ConfigError(
                f"Networks of {blueprint.name or blueprint.family} give outputs of shape {tuple(outputs.shape[1:])}, "
                f"but {self.data.name} has {self.data.num_classes} classes."
            )

    @torch.no_grad()
    def logits(self, blueprint: Blueprint, weights: Tensor, x: Tensor) -> Tensor:
        """What networks of one blueprint give for every image.

        Args:
            blueprint: of all of them.
            weights: (B, P).
            x: images (N, *shape), all kept in memory with what they give.

        Returns:
            (B, N, K) float32 on the CPU.
        """
        ready, images = self.ready(blueprint), x.flatten(1).to(self.device)
        rows = [
            torch.cat(list(self._given(ready, part, images)), dim=1)
            for part in torch.split(weights, _STACK)
        ]
        return torch.cat(rows).cpu()

    def _given(self, ready: Ready, weights: Tensor, images: Tensor) -> Iterator[Tensor]:
        """(B, n, K) for images one group after the other."""
        built = ready.plan.rows(ready.built(weights)).to(self.device)
        counters = [
            {name: value.to(self.device) for name, value in one.items()}
            for one in ready.plan.fresh_counters(len(built))
        ]
        for batch in torch.split(images, max(1, _AT_ONCE // len(built))):
            yield ready.engine.logits(built, batch.expand(len(built), *batch.shape), counters)

    @torch.no_grad()
    def answers(self, networks: Networks, x: Tensor) -> Answers:
        """Ask every network about every image.

        Args:
            networks: n of them.
            x: images (N, *shape).
        """
        images = x.flatten(1).to(self.device)
        classes = torch.zeros(len(networks), len(x), dtype=torch.int16)
        total: Tensor | None = None
        for part in networks.parts:
            ready = self.ready(part.blueprint)
            for first in range(0, len(part.places), _STACK):
                rows = slice(first, first + _STACK)
                probabilities, start = [], 0
                for given in self._given(ready, part.weights[rows], images):
                    # A network of NaNs has an answer too, and must not spread them to an average.
                    logits = torch.nan_to_num(given)
                    end = start + logits.shape[1]
                    classes[part.places[rows], start:end] = logits.argmax(2).to("cpu", torch.int16)
                    probabilities.append(logits.double().softmax(2).sum(0).cpu())
                    start = end
                total = _added(total, torch.cat(probabilities))
        if total is None:
            total = torch.zeros(len(x), self.data.num_classes, dtype=torch.float64)
        return Answers(classes, total / max(1, len(networks)))


def _columns(plan: NetworkPlan, blueprint: Blueprint) -> Tensor:
    """`Ready.columns`."""
    fields = blueprint.vector.by_name
    built = {spec.name: spec for spec in plan.layout}
    if built != {name: field.spec for name, field in fields.items()}:
        raise ConfigError(
            f"{blueprint.name or blueprint.family} builds a network of other tensors than the weights are of. The "
            "plugin that gives the blueprint has to be repaired."
        )
    ranges = [
        torch.arange(fields[name].offset, fields[name].offset + spec.num_elements)
        for name, spec in built.items()
        if not fields[name].aside
    ]
    return torch.cat(ranges)


def _added(total: Tensor | None, more: Tensor) -> Tensor:
    """Sums of probabilities (N, K), where networks may have different numbers of outputs."""
    if total is None:
        return more
    wide, narrow = (total, more) if total.shape[1] >= more.shape[1] else (more, total)
    wide = wide.clone()
    wide[:, : narrow.shape[1]] += narrow
    return wide
