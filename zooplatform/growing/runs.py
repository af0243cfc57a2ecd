"""The runs of a recipe and the stacks in which they are trained."""

from __future__ import annotations

import operator
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError
from zooplatform.growing.initialise import INITIALISATIONS
from zooplatform.growing.optimizers import Rule
from zooplatform.growing.ranges import derive_seed
from zooplatform.growing.recipe import HYPERPARAMETERS, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Run", "Stack", "Wave", "plan_runs", "plan_stacks"]

# Initialisations that `init_std` matters for.
_WITH_STD = ("uniform", "normal", "truncated_normal")


@dataclass(frozen=True, slots=True)
class Wave:
    """`amplitude * sin(frequency * x + phase)`, angles in radians."""

    frequency: float
    amplitude: float
    phase: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One network to train.

    Attributes:
        index: its number in the recipe.
        seed: decides its batches and its share of the data.
        init_seed: decides its first weights; runs that share an initialisation share this.
        activation: of the network, or None for the one in the architecture.
        init: name of the initialisation, with `init_std` where that matters.
        rule: optimizer and rates.
        dropout: probability of dropping an activation in training.
        fraction: share of the training images that this network sees.
        batch_size: images per step.
        branch: epochs that it has in common with the runs of the same `init_seed`.
        wave: the function that this network is fitted to, or None where it learns images.
    """

    index: int
    seed: int
    init_seed: int
    activation: str | None
    init: str
    init_std: float
    rule: Rule
    dropout: float
    fraction: float
    batch_size: int
    branch: int = 0
    wave: Wave | None = None

    def num_train(self, count: int) -> int:
        """How many of `count` training images this network sees."""
        return max(1, round(self.fraction * count))

    def config(self) -> dict[str, Any]:
        """The hyper-parameters as they are stored with the model."""
        stored = {
            "activation": self.activation,
            "batch_size": self.batch_size,
            "dropout": self.dropout,
            "fraction": self.fraction,
            "init": self.init,
            "init_seed": self.init_seed,
            "learning_rate": self.rule.learning_rate,
            "momentum": self.rule.momentum,
            "optimizer": self.rule.optimizer,
            "weight_decay": self.rule.weight_decay,
        }
        if self.branch:
            stored["branch"] = self.branch
        if self.init in _WITH_STD:
            stored["init_std"] = self.init_std
        if self.wave is not None:
            stored |= asdict(self.wave)
        return {name: value for name, value in stored.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Stack:
    """Runs that are trained together; `name` stays the same when the recipe gets more runs."""

    name: str
    runs: tuple[Run, ...]


def plan_runs(recipe: Recipe) -> tuple[Run, ...]:
    """Every run of a recipe, in order.

    Raises:
        ConfigError: a hyper-parameter has an impossible value.
    """
    return tuple(_run(recipe, index) for index in range(recipe.num_runs))


def plan_stacks(recipe: Recipe, *, largest: int, alike: tuple[str, ...]) -> tuple[Stack, ...]:
    """Put runs into stacks, in the order of their first runs.

    Args:
        recipe: what to grow.
        largest: networks in a stack at most.
        alike: attributes of `Run` that must be the same in a stack.
    """
    stacks: list[list[Run]] = []
    filling: dict[tuple[Any, ...], list[Run]] = {}
    for run in plan_runs(recipe):
        key = tuple(getattr(run, name) for name in alike)
        stack = filling.get(key)
        if stack is None or len(stack) == largest:
            stack = filling[key] = []
            stacks.append(stack)
        stack.append(run)
    return tuple(Stack(f"{stack[0].index:05d}", tuple(stack)) for stack in stacks)


def _run(recipe: Recipe, index: int) -> Run:
    values: Mapping[str, Any] = {**HYPERPARAMETERS, **recipe.space.run(index)}
    seed = recipe.seed + index if values["seed"] is None else _whole("seed", values["seed"], 0)
    return Run(
        index=index,
        seed=seed,
        init_seed=_init_seed(recipe, index, seed),
        activation=None if values["activation"] is None else _text("activation", values),
        init=_one_of("init", values, INITIALISATIONS),
        init_std=_number("init_std", values, above=0),
        rule=Rule(
            optimizer=_text("optimizer", values),
            learning_rate=_number("learning_rate", values, above=0),
            weight_decay=_number("weight_decay", values, least=0),
            momentum=_number("momentum", values, least=0, below=1),
        ),
        dropout=_number("dropout", values, least=0, below=1),
        fraction=_number("fraction", values, above=0, most=1),
        batch_size=_whole("batch_size", values["batch_size"], 1),
        branch=recipe.branch,
        wave=_wave(recipe, values),
    )


def _wave(recipe: Recipe, values: Mapping[str, Any]) -> Wave | None:
    if values["frequency"] is None:
        for name in ("amplitude", "phase"):
            if name in recipe.hyperparameters:
                raise ConfigError(
                    f"hyperparameters.{name} belongs to hyperparameters.frequency, which is missing."
                )
        return None
    return Wave(
        frequency=_number("frequency", values, above=0),
        amplitude=_number("amplitude", values, above=0),
        phase=_number("phase", values),
    )


def _init_seed(recipe: Recipe, index: int, seed: int) -> int:
    if recipe.initialisation == "independent":
        return seed
    if recipe.initialisation == "shared":
        return recipe.seed
    # Drawn, not counted, so that it goes round independently of the grid.
    source = random.Random(derive_seed(recipe.seed, index, "initialisation"))  # noqa: S311
    return recipe.seed + source.randrange(int(recipe.initialisation))


def _text(name: str, values: Mapping[str, Any]) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise ConfigError(f"hyperparameters.{name} is {value!r}; it must be a text.")
    return value


def _one_of(name: str, values: Mapping[str, Any], known: tuple[str, ...]) -> str:
    value = _text(name, values)
    if value not in known:
        raise ConfigError(
            f"hyperparameters.{name} is {value!r}; it must be one of {', '.join(known)}."
        )
    return value


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(
            f"hyperparameters.{name} is {value!r}; it must be a whole number of at least {least}."
        )
    return value


def _number(
    name: str,
    values: Mapping[str, Any],
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    value = values[name]
    limits = [
        (f"{words} {limit:g}", holds, limit)
        for words, holds, limit in (
            ("at least", operator.ge, least),
            ("at most", operator.le, most),
            ("above", operator.gt, above),
            ("below", operator.lt, below),
        )
        if limit is not None
    ]
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not all(holds(value, limit) for _, holds, limit in limits)
    ):
        said = " ".join(["a number", " and ".join(words for words, _, _ in limits)]).strip()
        raise ConfigError(f"hyperparameters.{name} is {value!r}; it must be {said}.")
    return float(value)
