"""Values of hyper-parameters in a recipe: fixed, listed (a grid) or drawn from a range."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from zooplatform.errors import ConfigError

__all__ = ["Space", "derive_seed"]

Value: TypeAlias = str | int | float | bool

_KINDS = ("choice", "uniform", "log_uniform")


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2^63) that depends on every part and on nothing else."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True, slots=True)
class _Range:
    """Where a random value comes from: `values` are the choices, or (low, high)."""

    kind: str
    values: tuple[Value, ...]

    def draw(self, source: random.Random) -> Value:
        if self.kind == "choice":
            return source.choice(self.values)
        low, high = (float(value) for value in self.values)
        if self.kind == "uniform":
            return source.uniform(low, high)
        return math.exp(source.uniform(math.log(low), math.log(high)))


class Space:
    """All combinations that a recipe asks for.

    A plain value holds for every run, a list is an axis of the grid, and
    `{choice = [...]}`, `{uniform = [low, high]}` or `{log_uniform = [low, high]}` is drawn for each
    run on its own. What run `i` gets depends on the seed and on `i` alone, so that the first runs
    of a larger zoo are the runs of a smaller one.

    Args:
        table: name -> value, list or range, as TOML gives it.
        seed: seed of what is drawn.

    Raises:
        ConfigError: a list is empty, or a range is not one.
    """

    def __init__(self, table: Mapping[str, Any], seed: int) -> None:
        self._seed = seed
        self._fixed: dict[str, Value] = {}
        self._axes: dict[str, tuple[Value, ...]] = {}
        self._ranges: dict[str, _Range] = {}
        for name, value in table.items():
            if isinstance(value, Mapping):
                self._ranges[name] = _range(name, value)
            elif isinstance(value, list):
                self._axes[name] = _scalars(name, value)
            else:
                self._fixed[name] = _scalars(name, [value])[0]

    @property
    def grid_size(self) -> int:
        """Number of grid points; 1 without a grid."""
        return math.prod(len(axis) for axis in self._axes.values())

    def values(self, name: str) -> tuple[Value, ...] | None:
        """Every value that `name` can take, or None where that is a continuous range."""
        if name in self._fixed:
            return (self._fixed[name],)
        if name in self._axes:
            return self._axes[name]
        chosen = self._ranges.get(name)
        if chosen is None:
            return ()
        return chosen.values if chosen.kind == "choice" else None

    def run(self, index: int) -> dict[str, Value]:
        """The values of run `index`: its grid point (counted round and round) and its draws."""
        point = next(
            itertools.islice(itertools.product(*self._axes.values()), index % self.grid_size, None)
        )
        drawn = {
            name: one.draw(random.Random(derive_seed(self._seed, index, name)))  # noqa: S311
            for name, one in self._ranges.items()
        }
        return {**self._fixed, **dict(zip(self._axes, point, strict=True)), **drawn}


def _scalars(name: str, values: Sequence[Any]) -> tuple[Value, ...]:
    if not values:
        raise ConfigError(f"hyperparameters.{name} is an empty list; give at least one value.")
    for value in values:
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(
                f"hyperparameters.{name} holds {value!r}; values are texts, numbers or booleans."
            )
    return tuple(values)


def _range(name: str, table: Mapping[str, Any]) -> _Range:
    if len(table) != 1 or next(iter(table)) not in _KINDS:
        raise ConfigError(
            f"hyperparameters.{name} is {dict(table)!r}; a range is one of {{choice = [...]}}, "
            "{uniform = [low, high]}, {log_uniform = [low, high]}."
        )
    kind, values = next(iter(table.items()))
    if not isinstance(values, list):
        raise ConfigError(f"hyperparameters.{name}.{kind} is {values!r}; it must be a list.")
    scalars = _scalars(f"{name}.{kind}", values)
    if kind != "choice":
        numbers = [v for v in scalars if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) != 2 or len(scalars) != 2 or numbers[0] > numbers[1]:
            raise ConfigError(
                f"hyperparameters.{name}.{kind} is {values!r}; it must be [low, high]."
            )
        if kind == "log_uniform" and numbers[0] <= 0:
            raise ConfigError(
                f"hyperparameters.{name}.log_uniform begins at {numbers[0]}; a logarithmic range "
                "holds positive numbers only."
            )
    return _Range(kind, scalars)
