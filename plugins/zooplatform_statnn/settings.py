"""Configurations of the backends: checked keys and values, and what a random search draws from."""

from __future__ import annotations

import difflib
import random
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["NetSettings", "RidgeSettings", "Settings", "TreeSettings", "draw", "read_settings"]

T = TypeVar("T", bound="Settings")

_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every backend has.

    Attributes:
        target_transform: `logit`, `none`, or `auto`: logit where all targets lie in [0, 1].
        trials: configurations tried, the given one first; the best by tau on the validation networks is kept.
    """

    target_transform: str = "auto"
    trials: int = 1

    def __post_init__(self) -> None:
        self._one_of("target_transform", ("auto", "logit", "none"))
        self._at_least("trials", 1)

    def _one_of(self, key: str, choices: Sequence[str]) -> None:
        if getattr(self, key) not in choices:
            raise ConfigError(f"{key} = {getattr(self, key)!r} is not one of {', '.join(choices)}.")

    def _at_least(self, key: str, least: float) -> None:
        if not getattr(self, key) >= least:
            raise ConfigError(f"{key} = {getattr(self, key)} is too small; give {least} or more.")

    def _below(self, key: str, limit: float) -> None:
        if not getattr(self, key) < limit:
            raise ConfigError(f"{key} = {getattr(self, key)} is too large; give less than {limit}.")


@dataclass(frozen=True, kw_only=True)
class TreeSettings(Settings):
    """Gradient boosting.

    Attributes:
        rounds: most trees; fewer where the validation error stops falling.
        learning_rate: share of each tree.
        leaves: most leaves of a tree.
        min_leaf: fewest networks in a leaf.
        features: share of the statistics that each tree sees.
        rows: share of the networks that each tree sees.
        l2: penalty on the leaves.
        patience: trees without a smaller validation error before it ends.
    """

    rounds: int = 800
    learning_rate: float = 0.05
    leaves: int = 15
    min_leaf: int = 10
    features: float = 0.5
    rows: float = 0.8
    l2: float = 1.0
    patience: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("rounds", "min_leaf", "patience"):
            self._at_least(key, 1)
        self._at_least("leaves", 2)
        self._at_least("l2", 0)
        for key in ("learning_rate", "features", "rows"):
            if not 0 < getattr(self, key) <= 1:
                raise ConfigError(f"{key} = {getattr(self, key)} is not in (0, 1].")


@dataclass(frozen=True, kw_only=True)
class NetSettings(Settings):
    """Networks trained with AdamW, a warm-up and a cosine; the epoch of the best validation tau is kept.

    Attributes:
        width: hidden units (of NFN: channels).
        depth: hidden layers.
        dropout: share of hidden units left out in training.
        learning_rate, weight_decay, epochs, batch_size: of AdamW.
        patience: epochs without a better validation tau before it ends.
        members: networks trained from different seeds and averaged.
        scaling: of the inputs: `quantile` (each to a normal distribution), `robust` (median and quartiles) or `none`.
    """

    width: int = 192
    depth: int = 2
    dropout: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    epochs: int = 60
    batch_size: int = 64
    patience: int = 20
    members: int = 1
    scaling: str = "quantile"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("width", "depth", "epochs", "batch_size", "patience", "members"):
            self._at_least(key, 1)
        for key in ("dropout", "weight_decay", "learning_rate"):
            self._at_least(key, 0)
        self._below("dropout", 1)
        self._one_of("scaling", ("quantile", "robust", "none"))


@dataclass(frozen=True, kw_only=True)
class FlatSettings(NetSettings):
    """A perceptron on weights: thousands of inputs, most of them noise."""

    dropout: float = 0.3
    scaling: str = "robust"


@dataclass(frozen=True, kw_only=True)
class SetSettings(NetSettings):
    """Encoders of weights, whose values are compressed by asinh and otherwise left alone."""

    width: int = 32
    epochs: int = 30
    scaling: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("scaling", ("none",))


@dataclass(frozen=True, kw_only=True)
class EquivariantSettings(SetSettings):
    """A permutation-equivariant network.

    Attributes:
        variant: `hnp` where inputs and outputs of the networks have an order, as pixels and classes have; `np` where
            they have none.
    """

    width: int = 16
    depth: int = 3
    variant: str = "hnp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("variant", ("hnp", "np"))


@dataclass(frozen=True, kw_only=True)
class RidgeSettings(Settings):
    """Linear regression in closed form.

    Attributes:
        penalty: on the squared coefficients of standardised inputs, times the number of networks; 0 chooses it from
            1e-4 to 1e4 by tau on the validation networks.
    """

    penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("penalty", 0)


def read_settings(kind: type[T], config: Mapping[str, Any], backend: str) -> T:
    """The settings of a backend from its configuration.

    Raises:
        ConfigError: a key is unknown, or its value does not fit.
    """
    known = {f.name: str(f.type) for f in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"Predictor {backend!r} has no setting {key!r}. Known: {', '.join(known)}."
                + (f" Did you mean {close[0]!r}?" if close else "")
            )
        wanted = known[key]
        if not isinstance(value, _KINDS[wanted]) or (isinstance(value, bool) and wanted != "bool"):
            raise ConfigError(f"Predictor {backend!r}: {key} = {value!r} is no {wanted}.")
        values[key] = float(value) if wanted == "float" else value
    try:
        return kind(**values)
    except ConfigError as exc:
        raise ConfigError(f"Predictor {backend!r}: {exc}") from exc


def draw(base: T, space: Mapping[str, Sequence[Any]], *, seed: int) -> list[T]:
    """The configurations of a search: `base`, then `base.trials - 1` with keys drawn from `space`."""
    stream = random.Random(seed)  # noqa: S311 - a search, no secret
    found = [base]
    for _ in range(base.trials - 1):
        changed = {key: stream.choice(list(choices)) for key, choices in space.items()}
        found.append(type(base)(**{**asdict(base), **changed}))
    return found
