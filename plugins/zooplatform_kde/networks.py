"""Training networks in groups of one data set and one blueprint, each with its best network first told.

Legend for shapes: N training networks of a group, V validation networks of it, P values of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from zooplatform.errors import ConfigError
from zooplatform.symmetry import match
from zooplatform_kde.measuring import Judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.datasets import WeightDataset
    from zooplatform.fitting import Blueprint, GeneratorData, NetworkFacts

__all__ = ["Networks", "collect"]

_RANK_IMAGES = 512


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Networks of one data set and one blueprint.

    Attributes:
        dataset: short name of the data set; empty if unknown.
        blueprint: how they are built.
        stored: (N, P) training networks in the layout's main dtype, aligned where that was asked for.
        held_out: (V, P) float32 validation networks, aligned alike.
        facts: of the N training networks.
        order: (N,) the training networks, best first.
        ranked_by: what best means.
        number: of the blueprint.
    """

    dataset: str
    number: int
    blueprint: Blueprint
    stored: torch.Tensor
    held_out: torch.Tensor
    facts: tuple[NetworkFacts, ...]
    order: torch.Tensor
    ranked_by: str

    @cached_property
    def weights(self) -> torch.Tensor:
        """(N, P) float32."""
        return self.stored.float()

    @property
    def ids(self) -> list[str]:
        return [fact.checkpoint_id for fact in self.facts]

    @cached_property
    def runs(self) -> torch.Tensor:
        """(N,) a number for each training run; its checkpoints share it."""
        numbers = {fact.model_id: 0 for fact in self.facts}
        numbers = {run: at for at, run in enumerate(numbers)}
        return torch.tensor([numbers[fact.model_id] for fact in self.facts])

    @property
    def label(self) -> str:
        """For messages and metrics."""
        return f"{self.dataset or 'unknown'}/{self.number}"


def collect(data: GeneratorData, *, align: bool, seed: int) -> tuple[list[Networks], list[str]]:
    """The groups in the order of data sets and blueprints, and notes on what was left out.

    Raises:
        ConfigError: no training network has finite weights.
        NotInstalledError: `align` needs scipy.
    """
    train, bad = _read(data.train, data.facts)
    validation, bad_validation = _read(data.validation, data.facts)
    notes = []
    for side, count in (("training", bad), ("validation", bad_validation)):
        if count:
            notes.append(f"{count} {side} networks left out: NaN or infinite weights.")
    if not train:
        raise ConfigError(
            "No training network has finite weights, so there is nothing to learn from. Choose others in the query."
        )
    unused = len(validation.keys() - train.keys())
    if unused:
        notes.append(
            f"Validation networks of {unused} groups without training networks are unused."
        )
    groups = []
    for key in sorted(train):
        dataset, number = key
        stored, facts = train[key]
        blueprint = data.blueprints[number]
        held_out = validation[key][0].float() if key in validation else stored[:0].float()
        order, ranked_by = _ranked(data, blueprint, dataset, stored, facts)
        if align:
            # A network is put into its own order, so the reference itself does not change.
            reference = stored[order[0]]
            stored = match(stored, reference, blueprint.vector, seed=seed)
            held_out = match(held_out, reference.float(), blueprint.vector, seed=seed)
        groups.append(
            Networks(
                dataset=dataset, number=number, blueprint=blueprint, stored=stored,
                held_out=held_out, facts=tuple(facts), order=order, ranked_by=ranked_by,
            )
        )  # fmt: skip
    return groups, notes


def _read(
    data: WeightDataset, known: Mapping[str, NetworkFacts]
) -> tuple[dict[tuple[str, int], tuple[torch.Tensor, list[NetworkFacts]]], int]:
    """Weights and facts by (data set, number of the blueprint), and how many networks are not finite."""
    parts: dict[tuple[str, int], list[tuple[torch.Tensor, NetworkFacts]]] = {}
    bad = 0
    for indices in data.order(1024):
        batch = data.read(indices)
        finite = batch.weights.float().isfinite().all(dim=1).tolist()
        for row, (name, good) in enumerate(zip(batch.ids, finite, strict=True)):
            if not good:
                bad += 1
                continue
            fact = known[name]
            key = (fact.dataset, fact.blueprint)
            parts.setdefault(key, []).append((batch.weights[row], fact))
    return {
        key: (torch.stack([w for w, _ in found]), [fact for _, fact in found])
        for key, found in parts.items()
    }, bad


def _ranked(
    data: GeneratorData,
    blueprint: Blueprint,
    dataset: str,
    stored: torch.Tensor,
    facts: Sequence[NetworkFacts],
) -> tuple[torch.Tensor, str]:
    """The networks, best first, and what they are ranked by; never anything measured on test images."""
    for metric, sign in (("train_loss", 1), ("train_accuracy", -1)):
        values = [sign * fact.metrics.get(metric, math.nan) for fact in facts]
        if all(math.isfinite(value) for value in values):
            return torch.tensor(values, dtype=torch.float64).argsort(stable=True), metric
    if dataset in data.images:
        judge = Judge.of(blueprint, data.images[dataset], _RANK_IMAGES, data.build)
        return judge.losses(stored.float()).argsort(stable=True), "loss on training images"
    return torch.arange(len(facts)), "nothing: as they come"
