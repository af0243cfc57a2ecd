"""The figures of the report card. An accuracy is made together with how new its networks are, or not at all."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = ["Diversity", "Novelty", "Row", "Spread"]

_DRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A value of n networks.

    Attributes:
        mean, std, best: over the networks; `std` is that of a sample (n - 1), 0 for one network.
        ci: bounds of the mean that hold 95 % of its bootstrap draws over networks.
        n: networks.
    """

    mean: float
    std: float
    best: float
    ci: tuple[float, float]
    n: int

    @classmethod
    def of(cls, values: npt.NDArray[np.float64], seed: int = 0) -> Spread:
        """Of values (n,), all finite and at least one."""
        draw = np.random.default_rng(seed)
        means = values[draw.integers(len(values), size=(_DRAWS, len(values)))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        return cls(
            mean=float(values.mean()),
            std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            best=float(values.max()),
            ci=(float(low), float(high)),
            n=len(values),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """How far networks are from those that a generator was fitted on; means over networks unless said.

    Attributes:
        relative: distance of the weights to the nearest training network, over all orders of hidden units, divided by
            what the zoo itself has (the median over training runs of the distance to the nearest other run). 0 is a
            copy; 1 is as new as another training run.
        relative_q10, relative_q90: quantiles over networks.
        distance: the distance itself.
        disagreement: share of test images that get another answer than from the nearest training network.
        least_disagreement: the same with that training network which it is least for.
        error_overlap: images that both get wrong, divided by images that one of them gets wrong, with the nearest
            training network; 1 where neither errs.
        most_error_overlap: the same with that training network which it is most for.
        broken: networks with values that are not finite; they are in none of these figures.
    """

    relative: float
    relative_q10: float
    relative_q90: float
    distance: float
    disagreement: float
    least_disagreement: float
    error_overlap: float
    most_error_overlap: float
    broken: int = 0

    def __post_init__(self) -> None:
        values = asdict(self)
        if bad := [name for name, value in values.items() if not _is_number(value)]:
            raise ConfigError(
                f"Novelty needs a finite {bad[0]}, not {values[bad[0]]!r}: how new networks are has to be known."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How networks of one method differ from each other; None where there are no two to compare.

    Attributes:
        distinct: networks that differ in a value.
        distance: mean distance of the weights of pairs, over all orders of hidden units.
        relative_distance: divided by that of training runs.
        disagreement: mean share of test images that the networks of a pair answer differently.
        relative_disagreement: divided by that of training runs.
    """

    distinct: int
    distance: float | None = None
    relative_distance: float | None = None
    disagreement: float | None = None
    relative_disagreement: float | None = None

    @property
    def agreement(self) -> float | None:
        """Mean share of test images that the networks of a pair answer alike."""
        return None if self.disagreement is None else 1 - self.disagreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report card: a method after so many epochs of fine-tuning.

    There is no row without its novelty, and so no accuracy that could be shown without it.

    Attributes:
        method: its label, unlike any other in the card.
        epochs: of fine-tuning; 0 is as generated.
        accuracy: on test images, a fraction.
        novelty: of the same networks.
        diversity: of the same networks.
        ensemble: accuracy of their averaged softmax.
        learning_rate: of the fine-tuning, chosen on validation images; None without.
        about: what else is known: generator, temperature, instruction.
    """

    method: str
    epochs: int
    accuracy: Spread
    novelty: Novelty
    diversity: Diversity
    ensemble: float
    learning_rate: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.novelty, Novelty):
            raise ConfigError(
                f"Row {self.method!r} has an accuracy but no novelty. A copy of a training network has the accuracy of "
                "a training network: measure the novelty too."
            )

    @property
    def headline(self) -> str:
        """The row in one line."""
        accuracy, novelty = self.accuracy, self.novelty
        when = "as made" if not self.epochs else f"after {self.epochs} epochs"
        return (
            f"{self.method}, {when}: accuracy {accuracy.mean:.3f} ± {accuracy.std:.3f} (best {accuracy.best:.3f}, "
            f"n {accuracy.n}) at relative novelty {novelty.relative:.2f}"
        )

    @property
    def cell(self) -> str:
        """The same for a table whose lines and columns say which method and when."""
        accuracy = self.accuracy
        return (
            f"{accuracy.mean:.3f} ± {accuracy.std:.3f} (best {accuracy.best:.3f}) at novelty "
            f"{self.novelty.relative:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """As other programs read it: the headline beside everything else."""
        return {
            "method": self.method,
            "epochs": self.epochs,
            "accuracy_mean": self.accuracy.mean,
            "accuracy_std": self.accuracy.std,
            "accuracy_best": self.accuracy.best,
            "accuracy_ci": list(self.accuracy.ci),
            "relative_novelty": self.novelty.relative,
            "n": self.accuracy.n,
            "novelty": asdict(self.novelty),
            "diversity": asdict(self.diversity),
            "ensemble_accuracy": self.ensemble,
            "learning_rate": self.learning_rate,
            **self.about,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The reverse of `to_json`.

        Raises:
            ConfigError: something is missing, the novelty above all.
        """
        try:
            novelty = Novelty(**value["novelty"])
            if value["relative_novelty"] != novelty.relative:
                raise ConfigError(
                    f"Row {value['method']!r} says two relative novelties: {value['relative_novelty']} and "
                    f"{novelty.relative}."
                )
            low, high = value["accuracy_ci"]
            return cls(
                method=str(value["method"]),
                epochs=int(value["epochs"]),
                accuracy=Spread(
                    mean=value["accuracy_mean"],
                    std=value["accuracy_std"],
                    best=value["accuracy_best"],
                    ci=(low, high),
                    n=value["n"],
                ),
                novelty=novelty,
                diversity=Diversity(**value["diversity"]),
                ensemble=value["ensemble_accuracy"],
                learning_rate=value["learning_rate"],
                about={name: found for name, found in value.items() if name not in _OWN},
            )
        except (KeyError, TypeError) as exc:
            raise ConfigError(
                f"Row {value.get('method', '?')!r} of the report card cannot be shown, since {exc} is missing or not "
                "usable; an accuracy without its novelty never is. `zoo generator evaluate` writes both."
            ) from exc


_OWN = frozenset(
    {
        *("method", "epochs", "accuracy_mean", "accuracy_std", "accuracy_best", "accuracy_ci"),
        *("relative_novelty", "n", "novelty", "diversity", "ensemble_accuracy", "learning_rate"),
    }
)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
