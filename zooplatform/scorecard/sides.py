"""Which networks a report card compares: those that generators were fitted on, and those that were held out.

Legend for shapes: M networks, n of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.errors import CatalogError, ConfigError
from zooplatform.fitting import network_batches
from zooplatform.generation.facts import network_facts
from zooplatform.growing.initialise import INITIALISATIONS, initialise
from zooplatform.growing.ranges import derive_seed
from zooplatform.scorecard.finetune import Schooling, usual_schooling
from zooplatform.scorecard.networks import Networks
from zooplatform.splits import find_split, split_members

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.fitting import Blueprint, NetworkFacts

__all__ = ["Side", "chosen_dataset", "fitted_on", "random_networks", "read_side", "usual_of"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """M networks with what is known of them.

    Attributes:
        networks: M of them.
        ids: M checkpoint ids.
        facts: M.
        dataset: the data set that is measured.
        own: places of the networks on it, of the architecture that is asked for if any are.
        like: places of networks that are built as those which are asked for.
        notes: what is to be said of them.
    """

    networks: Networks
    ids: tuple[str, ...]
    facts: tuple[NetworkFacts, ...]
    dataset: str
    own: tuple[int, ...]
    like: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> list[str]:
        """M training runs."""
        return [fact.model_id for fact in self.facts]

    def last(self, among: Sequence[int] | None = None) -> list[int]:
        """Places of the last network of every run, among some places; among `own` without them."""
        found: dict[str, int] = {}
        for place in self.own if among is None else among:
            run = self.facts[place].model_id
            if run not in found or self._epoch(place) > self._epoch(found[run]):
                found[run] = place
        return list(found.values())

    def on_dataset(self) -> list[int]:
        """Places of all networks on the data set, of every architecture."""
        return [place for place, fact in enumerate(self.facts) if fact.dataset == self.dataset]

    def everywhere(self) -> list[int]:
        """Places of the last networks of all runs, of every data set."""
        return self.last(range(len(self.facts)))

    def drawn(self, n: int, seed: int, among: Sequence[int] | None = None) -> list[int]:
        """Places of the last networks of n different runs; of all where there are fewer."""
        places = sorted(self.last(among), key=lambda place: self.ids[place])
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
        return [places[at] for at in order[:n].tolist()]

    def _epoch(self, place: int) -> float:
        epoch = self.facts[place].epoch
        return -1.0 if epoch is None else epoch


def fitted_on(
    artifacts: Sequence[Artifact], query: str | None, split: str | None
) -> tuple[str, str]:
    """The query and the split that the report card is about.

    Raises:
        ConfigError: the generators were fitted on different networks, and nothing else was asked for.
    """
    first = artifacts[0]
    for one in artifacts[1:]:
        if query is None and split is None and _digest(one) != _digest(first):
            raise ConfigError(
                f"Generators {first.name!r} and {one.name!r} were fitted on different networks, so their novelty "
                "cannot be compared. Evaluate them apart, or say with --query and --split what counts as the training "
                "networks of all."
            )
    asked = query or first.data.get("query"), split or first.data.get("split_id")
    if not all(asked):
        raise ConfigError(
            f"Generator {first.name!r} does not say what it was fitted on. Give --query and --split."
        )
    return str(asked[0]), str(asked[1])


def _digest(artifact: Artifact) -> Any:
    return artifact.data.get("train", {}).get("sha256")


def chosen_dataset(facts: Sequence[NetworkFacts], given: str | None) -> str:
    """The data set that was asked for, or the only one.

    Raises:
        ConfigError: there is no such data set, or there are several.
    """
    counts = Counter(fact.dataset for fact in facts if fact.dataset)
    known = ", ".join(f"{name} ({count:,} networks)" for name, count in sorted(counts.items()))
    if given is None:
        if len(counts) != 1:
            raise ConfigError(
                f"The training networks are of {len(counts)} data sets: {known or 'none'}. Give --dataset."
            )
        return next(iter(counts))
    if given not in counts:
        raise ConfigError(
            f"No training network is of a data set {given!r}. They are of {known or 'none'}."
        )
    return given


def read_side(
    catalog: Catalog,
    query: str,
    split: str,
    role: str,
    dataset: str | None,
    architecture: str | None = None,
) -> Side:
    """The networks of a role of a split. Copies of them that came later, such as generated ones, are not among them.

    Args:
        catalog: holds them.
        query: SQL with a column `checkpoint_id`.
        split: name or id.
        role: `train` or `test`.
        dataset: see `chosen_dataset`; those of the role `test` are of it alone.
        architecture: name, id, or beginning of an id, if one is asked for.

    Raises:
        ConfigError: the split has no such role, or no network of it is of the data set.
    """
    found = find_split(catalog, split)
    if role not in found.checkpoints:
        raise ConfigError(
            f"Split {found.name!r} has no role {role}, which the report card needs: train to measure novelty against, "
            "test for networks that no generator saw. Create one with `zoo split create NAME --ratio 70/15/15`."
        )
    data = catalog.dataset(query, target=None, split=split, role=role)
    members = {member.checkpoint_id for member in split_members(catalog, found, role)}
    known = network_facts(catalog, data.ids)
    facts = [known.facts[one] for one in data.ids]
    name = chosen_dataset([fact for fact in facts if fact.checkpoint_id in members], dataset)

    def meant(fact: NetworkFacts) -> bool:
        """Whether it has the architecture that is asked for."""
        named = known.blueprints[fact.blueprint]
        return architecture in (None, named.name) or named.architecture_id.startswith(
            architecture or ""
        )

    keep = [
        fact.checkpoint_id in members and (role == "train" or fact.dataset == name)
        for fact in facts
    ]
    place_of = (np.cumsum(keep) - 1).tolist()
    batches: list[tuple[list[int], torch.Tensor, Blueprint]] = []
    for indices, batch in network_batches(data):
        by_blueprint: dict[int, list[int]] = {}
        for row, index in enumerate(indices.tolist()):
            if keep[index]:
                by_blueprint.setdefault(facts[index].blueprint, []).append(row)
        for number, rows in by_blueprint.items():
            places = [place_of[indices[row]] for row in rows]
            batches.append((places, batch.weights[rows], known.blueprints[number]))
    kept = [fact for fact, counts in zip(facts, keep, strict=True) if counts]
    on_it = [place for place, fact in enumerate(kept) if fact.dataset == name]
    if not on_it:
        raise CatalogError(
            f"No network of role {role} of split {found.name!r} is of data set {name!r}, so there is nothing to "
            "compare with."
        )
    own = [place for place in on_it if meant(kept[place])]
    like = own or [place for place, fact in enumerate(kept) if meant(fact)]
    notes = []
    if not own:
        notes.append(
            f"No network of role {role} on {name} has architecture {architecture}; those of others stand for it."
        )
    return Side(
        networks=Networks.placed(batches),
        ids=tuple(one for one, counts in zip(data.ids, keep, strict=True) if counts),
        facts=tuple(kept),
        dataset=name,
        own=tuple(own or on_it),
        like=tuple(like or on_it),
        notes=tuple(notes),
    )


def usual_of(side: Side) -> Schooling:
    """How the runs on the data set were trained, by what most have."""
    return usual_schooling(side.facts[place].config for place in side.last())


def random_networks(
    side: Side, n: int, *, seed: int, build: Callable[[Blueprint], nn.Module]
) -> Networks:
    """n networks as the training of the zoo begins, each with a seed of its own.

    Each is built and initialised as the runs on the data set are, in their proportions; as runs on others are where
    none on it has the architecture that is asked for.
    """
    places = side.drawn(n, seed, side.like)
    blueprints = side.networks.take(places).blueprints()
    found = []
    for number in range(n):
        at = number % len(places)
        blueprint, config = blueprints[at], side.facts[places[at]].config
        found.append(
            (_begun(blueprint, config, derive_seed(seed, "scratch", number), build), blueprint)
        )
    return Networks.collect((weights[None], blueprint) for weights, blueprint in found)


def _begun(
    blueprint: Blueprint,
    config: Mapping[str, Any],
    seed: int,
    build: Callable[[Blueprint], nn.Module],
) -> torch.Tensor:
    """(P,) a network before its first step."""
    how = str(config.get("init", "default"))
    module = initialise(
        lambda: build(blueprint),
        how if how in INITIALISATIONS else "default",
        seed=seed % 2**63,
        std=float(config.get("init_std", 0.05)),
    )
    state = module.state_dict()
    fields = [field for field in blueprint.vector.fields if not field.aside]
    return torch.cat([state[field.spec.name].detach().flatten().float() for field in fields])
