"""Grows the zoo of a recipe into a catalog: one durable commit per finished stack."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from zooplatform.errors import ConfigError
from zooplatform.growing.data import GrowingData, read_data
from zooplatform.growing.networks import NetworkFactory, NetworkPlan
from zooplatform.growing.runs import Run, Stack, plan_runs, plan_stacks
from zooplatform.growing.train import Moment, StackTrainer, reuse_freed_memory
from zooplatform.interfaces import (
    CheckpointRecord,
    LineageRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from zooplatform.catalog import Catalog
    from zooplatform.growing.engines import Engine
    from zooplatform.growing.recipe import Recipe
    from zooplatform.interfaces import Progress
    from zooplatform.registry import Registry

__all__ = ["GrowReport", "StackDone", "ZooGrower", "grow"]

# Weights of all networks of a stack at once; larger networks make smaller stacks.
_STACK_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StackDone:
    """A finished stack: `checkpoint_ids` in the order of runs and epochs, time in seconds."""

    zoo: str
    stack: str
    engine: str
    networks: int
    seconds: float
    checkpoint_ids: tuple[str, ...]


@dataclass(kw_only=True)
class GrowReport:
    """What growing did.

    Attributes:
        zoos: names of the zoos.
        done: stacks that were trained and stored.
        networks_known: networks that were in the catalog before.
        networks_left: networks that are still to be trained, because the time was up.
    """

    zoos: list[str] = field(default_factory=list)
    done: list[StackDone] = field(default_factory=list)
    networks_known: int = 0
    networks_left: int = 0

    @property
    def networks(self) -> int:
        """Networks that were trained and stored."""
        return sum(stack.networks for stack in self.done)

    @property
    def checkpoint_ids(self) -> tuple[str, ...]:
        return tuple(one for stack in self.done for one in stack.checkpoint_ids)

    @property
    def networks_per_minute(self) -> float:
        """Speed of training and storing; 0 when nothing was trained."""
        seconds = sum(stack.seconds for stack in self.done)
        return 60 * self.networks / seconds if seconds else 0.0


class _TimeIsUp(Exception):
    """The stack in training cannot be finished in time; nothing of it is stored."""


class _Clock:
    """Minutes that may be used; None is without end."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def check(self) -> None:
        if self._end is not None and time.monotonic() >= self._end:
            raise _TimeIsUp


def grow(
    recipe: Recipe,
    catalog: Catalog,
    *,
    device: str = "cpu",
    max_minutes: float | None = None,
    progress: Progress | None = None,
    on_stack: Callable[[StackDone], None] | None = None,
) -> GrowReport:
    """Train what the catalog does not hold yet of a recipe.

    A stack of networks is stored in one commit when it is finished. Whatever ends the process, the
    next call goes on with the first stack that is not there; nothing is stored twice. On a CPU the
    same recipe gives the same weights.

    Args:
        recipe: what to grow; each of its data sets becomes a zoo.
        catalog: where it goes.
        device: torch device.
        max_minutes: train no longer than this; a stack that is not finished by then is dropped.
        progress: told of epochs of the stack in training.
        on_stack: called with each stored stack.

    Raises:
        ConfigError: the recipe cannot be carried out.
        SourceError, NotInstalledError: a data set cannot be had.
    """
    chosen = _device(device)
    if chosen.type == "cpu":
        reuse_freed_memory()
    report, clock = GrowReport(), _Clock(max_minutes)
    growers = [
        ZooGrower(recipe, read_data(source, recipe.data), catalog.registry)
        for source in recipe.data.source
    ]
    names = [grower.zoo for grower in growers]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two of the data sets give zoos of one name: {', '.join(names)}.")
    for grower in growers:
        report.zoos.append(grower.zoo)
        missing = grower.missing(catalog)
        waiting = sum(len(stack.runs) for stack in missing)
        report.networks_known += grower.num_runs - waiting
        report.networks_left += waiting
    try:
        for grower in growers:
            for done in grower.grow(catalog, chosen, clock.check, progress):
                report.done.append(done)
                report.networks_left -= done.networks
                if on_stack is not None:
                    on_stack(done)
    except _TimeIsUp:
        pass
    return report


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise ConfigError(
            f"device {name!r} cannot be used: {str(exc).splitlines()[0]} Use --device cpu."
        ) from exc
    return device


class ZooGrower:
    """One zoo: a recipe on one data set.

    Args:
        recipe: what to grow.
        data: what the networks learn.
        registry: provides the architecture adapters.
    """

    def __init__(self, recipe: Recipe, data: GrowingData, registry: Registry) -> None:
        self._recipe, self._data = recipe, data
        several = len(recipe.data.source) > 1
        self.zoo = f"{recipe.name}-{data.name}" if several else recipe.name
        self.num_runs = recipe.num_runs
        self._revision = recipe.digest(data.sha256)
        self._factory = NetworkFactory(recipe, data, registry)
        first = plan_runs(recipe)[0]
        plan = self._factory.plan(first)
        self._engine = self._factory.engine(plan, first)
        fit = max(1, _STACK_BYTES // (4 * plan.num_values))
        self.stacks = plan_stacks(
            recipe, largest=min(recipe.stack, fit), alike=_alike(self._engine, plan)
        )
        # Every kind of network is built once now: an activation that does not exist is an error
        # before the first stack and not after hours.
        self._plans: dict[tuple[str | None, float], NetworkPlan] = {}
        for stack in self.stacks:
            self.plan(stack.runs[0])

    def plan(self, run: Run) -> NetworkPlan:
        """The network of a run and of all runs stacked with it."""
        # The activation and, where networks do it themselves, dropout decide how it is built.
        kind = run.activation, run.dropout
        if kind not in self._plans:
            self._plans[kind] = self._factory.plan(run)
        return self._plans[kind]

    def missing(self, catalog: Catalog) -> tuple[Stack, ...]:
        """The stacks that the catalog does not hold, without the runs that it does hold."""
        found = catalog.sql(
            "select name from models where zoo_id = ? and revision = ?", [self.zoo, self._revision]
        )
        stored = set(found.column("name").to_pylist())
        left = []
        for stack in self.stacks:
            runs = tuple(run for run in stack.runs if self._name(run) not in stored)
            if runs:
                left.append(Stack(stack.name, runs))
        return tuple(left)

    def grow(
        self,
        catalog: Catalog,
        device: torch.device,
        check: Callable[[], None],
        progress: Progress | None,
    ) -> Iterator[StackDone]:
        """Train and store the missing stacks, one after the other.

        Args:
            catalog: where they go.
            device: where to train.
            check: called before every epoch; may raise to stop.
            progress: told of epochs.
        """
        for stack in self.missing(catalog):
            begun = time.monotonic()
            moments = self.train(stack, device, check, progress)
            ids = catalog.append(
                self.batch(stack, moments),
                zoo=self.zoo,
                source=self._data.source,
                license=self._recipe.license,
                citation=self._recipe.citation,
            )
            yield StackDone(
                zoo=self.zoo,
                stack=stack.name,
                engine=self._engine,
                networks=len(stack.runs),
                seconds=time.monotonic() - begun,
                checkpoint_ids=ids,
            )

    def train(
        self,
        stack: Stack,
        device: torch.device,
        check: Callable[[], None] = lambda: None,
        progress: Progress | None = None,
    ) -> list[Moment]:
        """Train a stack; gives its kept epochs."""
        check()
        recipe = self._recipe
        trainer = StackTrainer(
            stack,
            self.plan(stack.runs[0]),
            self._engine,
            self._data,
            device=device,
            train_metrics=recipe.train_metrics,
        )
        moments = [trainer.moment()] if 0 in recipe.keep else []
        for epoch in range(1, max(recipe.keep) + 1):
            check()
            trainer.train_epoch()
            if epoch in recipe.keep:
                moments.append(trainer.moment())
            if progress is not None:
                progress(f"{self.zoo} stack {stack.name}", epoch, max(recipe.keep))
        return moments

    def batch(self, stack: Stack, moments: Sequence[Moment]) -> PopulationBatch:
        """What goes into the catalog: runs in order, each with its kept epochs."""
        plan = self.plan(stack.runs[0])
        # (M, T, Q): all epochs of a network lie together.
        weights = np.stack([moment.weights for moment in moments], axis=1)
        aside = None
        if plan.counters:
            aside = np.stack([m.aside for m in moments if m.aside is not None], axis=1)
            aside = aside.reshape(-1, aside.shape[2])
        rows = []
        for place, run in enumerate(stack.runs):
            model = self._model(run, stack)
            given = self._data.properties(run)
            rows += [self._record(model, moment, place, given) for moment in moments]
        return PopulationBatch(
            layout=plan.layout,
            weights=weights.reshape(-1, weights.shape[2]),
            rows=rows,
            aside=aside,
            family=plan.adapter,
            name=self._recipe.name,
            config=plan.config,
        )

    def _name(self, run: Run) -> str:
        return f"{self.zoo}-{run.index:05d}"

    def _model(self, run: Run, stack: Stack) -> ModelInfo:
        data = self._data
        seen = run.num_train(len(data.inputs("train")))
        num_test = len(data.inputs("test"))
        prepared = asdict(self._recipe.data)
        # How to get the same inputs again; where the files lie is not a fact of the network.
        prepared = {key: prepared[key] for key in ("test", "train", "size", "grayscale", "seed")}
        trained_on = {
            "sha256": data.sha256,
            "num_train": seen,
            "num_test": num_test,
            "data": prepared,
        }
        return ModelInfo(
            key=f"grow:{self.zoo}/{run.index}",
            name=self._name(run),
            source=f"grow:{self.zoo}",
            revision=self._revision,
            license=self._recipe.license,
            seed=run.seed,
            config={
                **run.config(),
                "dataset": data.name,
                "epochs": self._recipe.epochs,
                "num_train": seen,
                "stack": stack.name,
            },
            lineage=(LineageRecord(parent=data.source, relation="trained_on", detail=trained_on),),
        )

    def _record(
        self, model: ModelInfo, moment: Moment, place: int, given: Mapping[str, float]
    ) -> CheckpointRecord:
        metrics = [
            MetricRecord(
                name=f"{split}_{name}",
                value=float(values[place]),
                dataset=self._data.name,
                split=split,
                origin="measured",
            )
            for split, measured in (("train", moment.train), ("test", moment.test))
            for name, values in (("accuracy", measured.accuracy), ("loss", measured.loss))
            if values is not None
        ]
        metrics += [
            MetricRecord(name=name, value=value, dataset=self._data.name)
            for name, value in given.items()
        ]
        return CheckpointRecord(
            model=model,
            step=moment.steps[place],
            epoch=float(moment.epoch),
            metrics=tuple(metrics),
        )


def _alike(engine: str, plan: NetworkPlan) -> tuple[str, ...]:
    from zooplatform.growing import engines

    kinds: dict[str, type[Engine]] = {
        "grouped": engines.GroupedEngine,
        "vmap": engines.VmapEngine,
        "loop": engines.LoopEngine,
    }
    alike = kinds[engine].alike
    if plan.statistics and "fraction" not in alike:
        # Else padding of the networks that have fewer images would get into their batch statistics.
        alike += ("fraction",)
    return alike
