"""What all baselines share: groups of networks, choosing among them, random numbers, artifacts.

A baseline learns each group of one data set and one blueprint by itself (`learn`), and draws one network of a group
from one random generator (`draw`). So a sampled network depends on the seed and its own number alone.

Legend for shapes: N training networks of a group, B networks, P values of one.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fitting import Blueprint
from zooplatform.interfaces import FitReport, GeneratedBatch
from zooplatform_kde.choosing import choose, signature
from zooplatform_kde.config import Settings, read_settings
from zooplatform_kde.networks import collect
from zooplatform_kde.storing import read_artifact, write_artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from zooplatform.fitting import GeneratorData
    from zooplatform.interfaces import Condition
    from zooplatform_kde.networks import Networks

__all__ = ["BLOCK", "Baseline", "Group", "Learned", "Request", "derived_seed", "variance_floors"]

S = TypeVar("S", bound=Settings)

BLOCK = 32  # networks that are drawn at once
FLOORS = "floors"  # tensor of a group: lowest running variances


class Learned(NamedTuple):
    """What was learnt of a group.

    Attributes:
        tensors: by name, for the artifact.
        values: JSON, for the artifact.
        metrics: for the report.
        notes: for the report.
    """

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any] = {}  # noqa: RUF012 - never written to
    metrics: Mapping[str, float] = {}
    notes: tuple[str, ...] = ()


@dataclass
class Group:
    """A group that was learnt.

    Attributes:
        dataset, blueprint: of its networks.
        networks: how many there were to learn from; groups are drawn in proportion.
        common: hyper-parameters that all of them share.
        tensors, values: of `Learned`.
        kept: what need not be stored, made when it is first used.
    """

    dataset: str
    blueprint: Blueprint
    networks: int
    common: Mapping[str, Any]
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]
    kept: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` makes, made when it is first asked for."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def bounded(self, weights: torch.Tensor) -> torch.Tensor:
        """(B, P) or (P,) with running variances no lower than any was in training."""
        if FLOORS not in self.tensors:
            return weights
        return torch.maximum(weights, self.tensors[FLOORS].to(weights.dtype))


class Request(NamedTuple, Generic[S]):
    """How networks are to be drawn: the settings with the options of the call, and its temperature and top_k."""

    settings: S
    temperature: float
    top_k: int | None

    def among(self, count: int) -> int:
        """How many of `count` ordered things may be drawn: the first `top_k`."""
        return count if self.top_k is None else min(count, self.top_k)


class Baseline(ABC, Generic[S]):
    """A generator made of one learnt thing per group.

    Attributes:
        NAME: of the backend.
        SETTINGS: dataclass of its configuration.
        OPTIONS: settings that `sample` may be given anew.
        CONFIGS: named configurations.
    """

    NAME: ClassVar[str]
    SETTINGS: ClassVar[type[Settings]]
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {"debug": {}, "default": {}}

    def __init__(self) -> None:
        self._settings: S | None = None
        self._groups: list[Group] = []
        self._signatures: dict[str, torch.Tensor] = {}

    # --- what a baseline says -----------------------------------------------------------------------------------------

    @abstractmethod
    def learn(self, networks: Networks, settings: S, data: GeneratorData, seed: int) -> Learned:
        """Learn a group; the same for the same networks, settings and seed."""

    @abstractmethod
    def draw(
        self, group: Group, request: Request[S], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """(P,) a network of a group and its details, from nothing random but `random`."""

    def draw_block(
        self, group: Group, request: Request[S], randoms: Sequence[torch.Generator]
    ) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        """A network for each of the generators, each as if it were alone."""
        return [self.draw(group, request, random) for random in randoms]

    # --- Generator ----------------------------------------------------------------------------------------------------

    def fit(self, data: GeneratorData, *, config: Mapping[str, Any], seed: int) -> FitReport:
        """See `Generator.fit`."""
        began = time.monotonic()
        settings: S = read_settings(self.SETTINGS, config, self.NAME)  # type: ignore[assignment]
        collected, notes = collect(data, align=settings.align, seed=seed)
        metrics = {
            "num_train": float(sum(len(one.facts) for one in collected)),
            "num_validation": float(sum(len(one.held_out) for one in collected)),
            "num_groups": float(len(collected)),
        }
        groups = []
        found: dict[str, list[float]] = {}
        for at, networks in enumerate(collected):
            if data.progress is not None:
                data.progress(f"{self.NAME}: {networks.label}", at, len(collected))
            learned = self.learn(networks, settings, data, derived_seed(seed, at))
            groups.append(
                Group(
                    dataset=networks.dataset, blueprint=networks.blueprint,
                    networks=len(networks.facts), common=_common(networks),
                    tensors=learned.tensors | variance_floors(networks), values=learned.values,
                )
            )  # fmt: skip
            for name, value in learned.metrics.items():
                found.setdefault(name, []).append(float(value))
                if len(collected) > 1:
                    metrics[f"{name}/{networks.label}"] = float(value)
            notes += [f"{networks.label}: {note}" for note in learned.notes]
        metrics |= {name: sum(values) / len(values) for name, values in found.items()}
        names = sorted({group.dataset for group in groups} & data.images.keys())
        self._signatures = {name: signature(data.images[name].x) for name in names}
        self._settings, self._groups = settings, groups
        return FitReport(metrics=metrics, seconds=time.monotonic() - began, notes=tuple(notes))

    def sample(
        self,
        n: int,
        *,
        condition: Condition | None = None,
        seed: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[GeneratedBatch]:
        """See `Generator.sample`. What temperature and top_k mean is said of each baseline in the README."""
        settings = self._fitted()
        if n < 0:
            raise ConfigError(f"{n} networks cannot be made; give 0 or more.")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ConfigError(f"temperature = {temperature}; use a number from 0 on.")
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k = {top_k}; use a whole number from 1 on.")
        given = dict(options or {})
        for key in given:
            if key not in self.OPTIONS:
                raise ConfigError(
                    f"{self.NAME} has no option {key!r}. Known: {', '.join(self.OPTIONS) or 'none'}."
                )
        told: S = read_settings(self.SETTINGS, settings.describe() | given, self.NAME)  # type: ignore[assignment]
        chosen = choose(self._groups, condition, self._signatures)
        return self._batches(n, chosen, Request(told, float(temperature), top_k), seed)

    def _batches(
        self, n: int, chosen: Sequence[int], request: Request[S], seed: int
    ) -> Iterator[GeneratedBatch]:
        sizes = torch.tensor([float(self._groups[at].networks) for at in chosen])
        for start in range(0, n, BLOCK):
            randoms = [_random(seed, at) for at in range(start, min(n, start + BLOCK))]
            of = [chosen[int(torch.multinomial(sizes, 1, generator=one))] for one in randoms]
            drawn: dict[int, tuple[torch.Tensor, dict[str, Any]]] = {}
            for number in sorted(set(of)):
                mine = [at for at, group in enumerate(of) if group == number]
                found = self.draw_block(self._groups[number], request, [randoms[at] for at in mine])
                drawn |= dict(zip(mine, found, strict=True))
            for number, run in groupby(range(len(of)), key=of.__getitem__):
                group, rows = self._groups[number], list(run)
                weights = torch.stack([drawn[at][0] for at in rows])
                yield GeneratedBatch(
                    group.bounded(weights),
                    group.blueprint,
                    group.dataset,
                    tuple(drawn[at][1] for at in rows),
                )

    def save(self, folder: Path) -> None:
        """See `Generator.save`."""
        settings = self._fitted()
        tensors = {f"images.{name}": found for name, found in self._signatures.items()}
        described = []
        for at, group in enumerate(self._groups):
            tensors |= {f"{at}.{name}": tensor for name, tensor in group.tensors.items()}
            described.append(
                {
                    "dataset": group.dataset,
                    "blueprint": group.blueprint.to_json(),
                    "networks": group.networks,
                    "common": dict(group.common),
                    "values": group.values,
                }
            )
        whole = {"config": settings.describe(), "groups": described}
        write_artifact(folder, self.NAME, whole, tensors)

    def load(self, folder: Path) -> None:
        """See `Generator.load`."""
        described, tensors = read_artifact(folder, self.NAME)
        try:
            settings: S = read_settings(self.SETTINGS, described["config"], self.NAME)  # type: ignore[assignment]
            groups = [
                Group(
                    dataset=str(one["dataset"]),
                    blueprint=Blueprint.from_json(one["blueprint"]),
                    networks=int(one["networks"]),
                    common=dict(one["common"]),
                    values=dict(one["values"]),
                    tensors=_under(f"{at}.", tensors),
                )
                for at, one in enumerate(described["groups"])
            ]
        except (KeyError, TypeError, ValueError) as exc:
            raise ArtifactError(
                f"The description of the generator in {folder} is damaged ({exc}). Fit it again."
            ) from exc
        self._settings, self._groups = settings, groups
        self._signatures = _under("images.", tensors)

    def _fitted(self) -> S:
        if self._settings is None:
            raise ConfigError(f"This generator {self.NAME!r} is not fitted. Call fit, or load one.")
        return self._settings

    def _groups_of(self, blueprint: Blueprint) -> list[Group]:
        """The groups of a blueprint, or of its layout where there is no other.

        Raises:
            ConfigError: there is none.
        """
        self._fitted()
        alike = [
            group
            for group in self._groups
            if group.blueprint.architecture_id == blueprint.architecture_id
        ]
        same = [
            group
            for group in alike
            if (group.blueprint.family, group.blueprint.config)
            == (blueprint.family, blueprint.config)
        ]
        if not alike:
            known = sorted({group.blueprint.architecture_id for group in self._groups})
            raise ConfigError(
                f"This generator was not fitted on the architecture {blueprint.architecture_id}. It knows: "
                f"{', '.join(known)}."
            )
        return same or alike


def derived_seed(seed: int, *path: int) -> int:
    """A seed that has nothing to do with those of other paths."""
    state = np.random.SeedSequence([seed % 2**64, *path]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def _random(seed: int, number: int) -> torch.Generator:
    """The random numbers of network `number`."""
    random = torch.Generator()
    random.manual_seed(derived_seed(seed, number))
    return random


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _common(networks: Networks) -> dict[str, Any]:
    """The hyper-parameters that all networks share."""
    first, *others = (fact.config for fact in networks.facts)
    return {
        key: value
        for key, value in first.items()
        if all(key in one and one[key] == value for one in others)
    }


def variance_floors(networks: Networks) -> dict[str, torch.Tensor]:
    """By the name under which groups keep it: (P,) the lowest running variance that each tensor had in training, -inf
    for all other values; empty where there is no normalisation."""
    vector = networks.blueprint.vector
    floors = torch.full((vector.width,), -torch.inf)
    for one in vector.fields:
        if not one.aside and one.spec.name.rpartition(".")[2] == "running_var":
            at = slice(one.offset, one.offset + one.spec.num_elements)
            floors[at] = networks.weights[:, at].min()
    return {FLOORS: floors} if floors.isfinite().any() else {}
