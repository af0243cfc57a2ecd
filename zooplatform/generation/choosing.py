"""Best of several candidates, by the prediction of a stored predictor.

Legend for shapes: B networks of one batch, P values of one network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from zooplatform.artifacts import find_artifact, load_artifact
from zooplatform.errors import ConfigError
from zooplatform.interfaces import NetworkBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.fitting import Blueprint
    from zooplatform.interfaces import GeneratedBatch, Predictor

__all__ = ["Chosen", "Judge", "choose"]

# Of targets with such a word the lowest value is the best.
_LOW = re.compile(r"(^|_)(loss|error|mae|mse|gap|ggap)($|_)")


class Chosen(NamedTuple):
    """One network.

    Attributes:
        candidate: its number among all that were drawn.
        weights: (P,).
        blueprint, dataset: as in its `GeneratedBatch`.
        details: what the generator says of it.
        prediction: of the judge; None without one.
        predictions: of the judge for each of the candidates that it was picked from, itself among them.
    """

    candidate: int
    weights: torch.Tensor
    blueprint: Blueprint
    dataset: str
    details: Mapping[str, Any]
    prediction: float | None = None
    predictions: tuple[float, ...] = ()


@dataclass(frozen=True)
class Judge:
    """A stored predictor, and whether the lowest of its predictions is the best."""

    artifact: Artifact
    predictor: Predictor
    lowest: bool

    @classmethod
    def load(cls, catalog: Catalog, name: str) -> Judge:
        """Raises UnknownIdError if there is no such predictor, ArtifactError if it cannot be loaded."""
        artifact = find_artifact(catalog, name, "predictor")
        target = str(artifact.data.get("target") or "")
        return cls(artifact, load_artifact(catalog, artifact), _LOW.search(target) is not None)

    def predictions(self, batch: GeneratedBatch) -> list[float]:
        """(B,) what it says of generated networks.

        Raises:
            ConfigError: it cannot read networks of this architecture, or does not give a finite number for each.
        """
        blueprint = batch.blueprint
        networks = NetworkBatch(batch.weights, blueprint.vector, (), blueprint.architecture_id)
        said: list[float] = self.predictor.predict(networks).detach().cpu().double().tolist()
        if len(said) != len(batch.weights) or any(value - value != 0 for value in said):
            raise ConfigError(
                f"Predictor {self.artifact.name!r} does not give one finite number for each generated network, so it "
                "cannot choose among them. Name another judge."
            )
        return said


def choose(
    batches: Iterable[GeneratedBatch], best_of: int, judge: Judge | None
) -> Iterator[Chosen]:
    """Of every `best_of` networks in a row the one that the judge puts first; of equals the earliest."""
    group: list[Chosen] = []
    for one in _one_by_one(batches, judge):
        group.append(one)
        if len(group) == best_of:
            yield _best(group, judge)
            group = []


def _one_by_one(batches: Iterable[GeneratedBatch], judge: Judge | None) -> Iterator[Chosen]:
    number = 0
    for batch in batches:
        said = None if judge is None else judge.predictions(batch)
        for at, weights in enumerate(batch.weights):
            details = batch.details[at] if batch.details else {}
            value = None if said is None else said[at]
            yield Chosen(number, weights, batch.blueprint, batch.dataset, details, value)
            number += 1


def _best(group: list[Chosen], judge: Judge | None) -> Chosen:
    if judge is None:
        return group[0]
    values = [0.0 if one.prediction is None else one.prediction for one in group]
    best = min(values) if judge.lowest else max(values)
    return group[values.index(best)]._replace(predictions=tuple(values))
