"""Whose networks are on the report card: generators, and the rows that say what their figures are worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zooplatform.generation.drawing import condition_of, draw
from zooplatform.scorecard.cost import measured
from zooplatform.scorecard.networks import Networks
from zooplatform.scorecard.sides import random_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.fitting import Blueprint
    from zooplatform.interfaces import Condition, GeneratedBatch, Generator
    from zooplatform.scorecard.cost import Cost
    from zooplatform.scorecard.sides import Side
    from zooplatform.scorecard.wishes import Wishes

__all__ = ["Entrant", "GeneratorEntrant", "generator_entrants", "reference_entrants"]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A method of the report card.

    Attributes:
        label: what its rows are called.
        about: what is known of it, for its rows.
        decides: everything that its networks depend on beside the training networks and the seed.
        draw: makes its networks.
    """

    label: str
    about: Mapping[str, Any] = field(default_factory=dict)
    decides: Mapping[str, Any] = field(default_factory=dict)
    draw: Callable[[], Networks]

    def make(self) -> tuple[Networks, Cost]:
        """Its networks, and what they cost.

        Raises:
            ConfigError: a generator does not know what it is asked for.
        """
        return measured(self.draw, len)


@dataclass(frozen=True, kw_only=True)
class GeneratorEntrant(Entrant):
    """A generator that is asked for something.

    Attributes:
        ask: its networks for another data set or other words, at the same temperature.
    """

    ask: Callable[[str | None, str | None], Networks]


def reference_entrants(
    training: Side,
    held_out: Side,
    n: int,
    seed: int,
    build: Callable[[Blueprint], nn.Module],
) -> list[Entrant]:
    """The rows that are always there: `scratch`, `zoo` and `copy`."""

    def taken(side: Side) -> Networks:
        return side.networks.take(side.drawn(n, seed))

    return [
        Entrant(
            label="scratch",
            about={"kind": "reference", "dataset": training.dataset},
            decides={"scratch": seed},
            draw=lambda: random_networks(training, n, seed=seed, build=build),
        ),
        Entrant(
            label="zoo",
            about={"kind": "reference", "dataset": training.dataset},
            decides={"zoo": seed},
            draw=lambda: taken(held_out),
        ),
        Entrant(
            label="copy",
            about={"kind": "reference", "dataset": training.dataset},
            decides={"copy": seed},
            draw=lambda: taken(training),
        ),
    ]


def generator_entrants(
    catalog: Catalog,
    artifacts: Mapping[str, Artifact],
    generators: Mapping[str, Generator],
    wishes: Wishes,
    dataset: str,
) -> Iterator[GeneratorEntrant]:
    """Every generator at every temperature with every instruction."""
    for name, artifact in artifacts.items():
        for words in wishes.instructions or (None,):
            for temperature in wishes.temperatures:
                label = name
                if len(wishes.temperatures) > 1:
                    label += f" T={temperature:g}"
                if len(wishes.instructions) > 1:
                    label += f' "{words}"'
                yield _generator_entrant(
                    catalog, artifact, generators[name], wishes, dataset, label, words, temperature
                )


def _generator_entrant(
    catalog: Catalog,
    artifact: Artifact,
    generator: Generator,
    wishes: Wishes,
    dataset: str,
    label: str,
    words: str | None,
    temperature: float,
) -> GeneratorEntrant:
    def asked(of: str | None, said: str | None) -> Condition | None:
        return condition_of(
            artifact, instruction=said, dataset=of, architecture=wishes.architecture
        )

    def batches(of: str | None, said: str | None) -> Iterator[GeneratedBatch]:
        return draw(
            catalog,
            artifact,
            wishes.n,
            condition=asked(of, said),
            seed=wishes.seed,
            temperature=temperature,
            top_k=wishes.top_k,
            options=dict(wishes.options) or None,
            generator=generator,
        )

    def ask(of: str | None, said: str | None) -> Networks:
        return Networks.drawn(batches(of, said))

    # Words say which data set is meant; without any it is named.
    named = dataset if words is None else None
    about = {
        "kind": "generator",
        "dataset": dataset,
        "generator": artifact.name,
        "backend": artifact.backend,
        "temperature": temperature,
        "instruction": words,
        "asked_for": named,
    }
    return GeneratorEntrant(
        label=label,
        about=about,
        decides={"artifact": artifact.artifact_id, **about},
        draw=lambda: ask(named, words),
        ask=ask,
    )
