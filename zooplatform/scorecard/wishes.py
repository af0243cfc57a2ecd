"""What a report card is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Wishes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is measured, and how.

    Attributes:
        dataset: the data set that is measured; may be left out where the training networks are of one.
        query, split: whose role `train` are the training networks and `test` the held-out ones; by default what the
            generators were fitted on.
        instructions: plain words that generators are given; without any they are given the data set.
        architecture: which architecture they are asked for, by name, id, or the beginning of an id.
        temperatures: each is a row of its own.
        top_k, options: as for `Generator.sample`.
        wrong_dataset: another data set of the training networks, asked for in place of the right one.
        wrong_instructions: plain words that ask for something else.
        n: networks of each method.
        finetuned: how many of them are fine-tuned.
        epochs: of fine-tuning; 0 is without.
        tried: networks on which learning rates are tried.
        readouts: labelled images of a class that read-outs are fitted to, each number a row beside that of the
            networks as made; none by default.
        train_images: labelled training images that fine-tuning and read-outs get, as many of each class as of the
            others; all by default.
        final: measure on images that the recipe of the networks left out, which are on no card but such a last look.
        compared_images: test images on which answers of networks are compared, at most.
        seed: of everything random.
    """

    dataset: str | None = None
    query: str | None = None
    split: str | None = None
    instructions: tuple[str, ...] = ()
    architecture: str | None = None
    temperatures: tuple[float, ...] = (1.0,)
    top_k: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    wrong_dataset: str | None = None
    wrong_instructions: tuple[str, ...] = ()
    n: int = 50
    finetuned: int = 10
    epochs: tuple[int, ...] = (0, 1, 5, 25)
    tried: int = 4
    readouts: tuple[int, ...] = ()
    train_images: int | None = None
    final: bool = False
    compared_images: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n", "finetuned", "tried", "compared_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.epochs or min(self.epochs) < 0:
            raise ConfigError(f"epochs are {list(self.epochs)}; give whole numbers of 0 or more.")
        if any(number < 1 for number in self.readouts):
            raise ConfigError(
                f"readouts are {list(self.readouts)}; give images of a class, 1 or more."
            )
        if self.train_images is not None and self.train_images < 1:
            raise ConfigError(f"train_images is {self.train_images}; it must be at least 1.")
        if not self.temperatures:
            raise ConfigError("Give at least one temperature.")
