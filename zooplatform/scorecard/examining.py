"""Examines networks: every figure of a row, measured on test images.

Legend for shapes: n networks, N images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.errors import ConfigError
from zooplatform.growing.images import ImageData, Split
from zooplatform.growing.ranges import derive_seed
from zooplatform.scorecard.finetune import FineTuner
from zooplatform.scorecard.networks import Bench
from zooplatform.scorecard.novelty import TrainingSide, diversity
from zooplatform.scorecard.readout import with_readout
from zooplatform.scorecard.reconstruction import (
    Reconstruction,
    compared,
    constant_decoder,
    reconstructed,
)
from zooplatform.scorecard.rows import Row, Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from zooplatform.fitting import Blueprint
    from zooplatform.generation.images import TaskData
    from zooplatform.scorecard.finetune import Schooling
    from zooplatform.scorecard.networks import Networks
    from zooplatform.scorecard.reconstruction import Reconstructs
    from zooplatform.scorecard.sides import Side

__all__ = ["Examiner", "accuracy_elsewhere"]


class Examiner:
    """What is the same for every method: images, training networks, how networks are trained.

    Args:
        task: the images.
        training: the networks that generators were fitted on.
        build: a new network of a blueprint.
        schooling: how networks are fine-tuned.
        epochs: numbers of epochs; 0 is without fine-tuning.
        n: how many training runs stand for the zoo where diversity is compared.
        train_images: labelled training images that networks get, None for all.
        compared_images: test images on which answers are compared, at most.
        seed: of every choice.
        device: torch device.
        check: called now and then; may raise to stop.
    """

    def __init__(
        self,
        task: TaskData,
        training: Side,
        *,
        build: Callable[[Blueprint], nn.Module],
        schooling: Schooling,
        epochs: Sequence[int],
        n: int,
        train_images: int | None,
        compared_images: int,
        tried: int,
        seed: int,
        device: str,
        check: Callable[[], None],
    ) -> None:
        self._training, self._seed, self._check = training, seed, check
        self._build, self._device = build, device
        self._zero_shot = 0 in epochs
        # Networks learn from the training part; what they are chosen by takes the place of the test images.
        data = ImageData(
            name=task.name,
            source=task.source,
            train=_some(task, train_images, seed),
            test=task.validation,
            num_classes=task.num_classes,
            sha256=task.sha256,
        )
        self.bench = Bench(build, data, device)
        self._x, self._y = task.test
        draw = torch.Generator().manual_seed(derive_seed(seed, "compared images") % 2**63)
        order = torch.randperm(len(self._y), generator=draw)[:compared_images]
        self._compared = order.sort().values
        self.reference = TrainingSide(
            training,
            bench=self.bench,
            x=self._x[self._compared],
            y=self._y[self._compared],
            seed=seed,
        )
        zoo = training.networks.take(training.drawn(n, seed))
        answers = self.bench.answers(zoo, self._x)
        self.zoo_diversity = diversity(zoo, answers.classes[:, self._compared])
        later = [epoch for epoch in epochs if epoch > 0]
        self.finetuner = (
            FineTuner(self.bench, schooling, later, seed=seed, tried=tried, check=check)
            if later
            else None
        )

    def row(
        self,
        method: str,
        networks: Networks,
        *,
        epochs: int,
        about: Mapping[str, Any],
        learning_rate: float | None = None,
    ) -> Row:
        """The figures of n networks as they are.

        Raises:
            ConfigError: how new they are cannot be told, so there is no row.
        """
        answers = self.bench.answers(networks, self._x)
        classes = answers.classes[:, self._compared]
        return Row(
            method=method,
            epochs=epochs,
            accuracy=Spread.of(answers.accuracy(self._y), self._seed),
            novelty=self.reference.novelty(networks, classes),
            diversity=diversity(networks, classes, self.zoo_diversity),
            ensemble=answers.ensemble(self._y),
            learning_rate=learning_rate,
            about=about,
        )

    def zero_shot(self, method: str, networks: Networks, about: Mapping[str, Any]) -> list[Row]:
        """The row without fine-tuning, if it is wanted."""
        if not self._zero_shot:
            return []
        return [self.row(method, networks, epochs=0, about=about)]

    def readouts(
        self, method: str, networks: Networks, about: Mapping[str, Any], numbers: Sequence[int]
    ) -> list[Row]:
        """A row for every number of images of a class that the last layer is fitted to.

        Raises:
            ConfigError: a network has no read-out.
        """
        return [
            self.row(label, fitted, epochs=0, about=more)
            for label, fitted, more in self.read_out(method, networks, about, numbers)
        ]

    def read_out(
        self, method: str, networks: Networks, about: Mapping[str, Any], numbers: Sequence[int]
    ) -> Iterator[tuple[str, Networks, Mapping[str, Any]]]:
        """Label, networks and facts of each such row, one after the other.

        Raises:
            ConfigError: a network has no read-out.
        """
        for number in numbers:
            self._check()
            fitted = with_readout(self.bench, networks, number, self._seed)
            yield f"{method} + read-out {number}", fitted, {**about, "readout": number}

    def finetuned(
        self,
        method: str,
        networks: Networks,
        about: Mapping[str, Any],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Row]:
        """A row for every number of epochs above 0."""
        if self.finetuner is None:
            return []
        tuned = self.finetuner(networks, progress)
        rows = []
        for epochs, after in tuned.networks.items():
            self._check()
            tried = {f"{rate:g}": value for rate, value in tuned.validation[epochs].items()}
            rows.append(
                self.row(
                    method,
                    after,
                    epochs=epochs,
                    about={**about, "validation_accuracy": tried},
                    learning_rate=tuned.learning_rate[epochs],
                )
            )
        return rows

    def accuracy(self, networks: Networks) -> float:
        """Mean accuracy on the test images."""
        return float(self.bench.answers(networks, self._x).accuracy(self._y).mean())

    def reconstruction(
        self, name: str, generator: Reconstructs, held_out: Networks
    ) -> Reconstruction:
        """Held-out networks, two at least, through the codes of a generator.

        Raises:
            ConfigError: it has no codes for them.
        """
        return self._compared_with(name, held_out, reconstructed(generator, held_out))

    def constant(self, held_out: Networks) -> Reconstruction:
        """The same with a decoder that ignores its codes: always the best training network on validation images."""
        own = self._training.networks.take(self.reference.own)
        validation = self.bench.data.test
        scores = self.bench.answers(own, validation.x).accuracy(validation.y)
        return self._compared_with("constant", held_out, constant_decoder(held_out, own, scores))

    def _compared_with(self, name: str, held_out: Networks, made: Networks) -> Reconstruction:
        return compared(name, held_out, made, bench=self.bench, x=self._x, y=self._y)


def _some(task: TaskData, number: int | None, seed: int) -> Split:
    """So many of the training images, as many of each class as there are.

    Raises:
        ConfigError: there are fewer.
    """
    images = task.train
    if number is None:
        return images
    if number > len(images.y):
        raise ConfigError(
            f"{task.name} has {len(images.y):,} training images, not {number:,}; give so many or leave it out."
        )
    draw = torch.Generator().manual_seed(derive_seed(seed, "training images") % 2**63)
    order = torch.randperm(len(images.y), generator=draw)
    labels = images.y[order]
    # The first of every class, then the second of every class, and so on.
    turn = torch.zeros(len(order), dtype=torch.int64)
    for label in range(task.num_classes):
        own = labels == label
        turn[own] = torch.arange(int(own.sum()))
    chosen = order[turn.argsort(stable=True)[:number]].sort().values
    return Split(images.x[chosen], images.y[chosen])


def accuracy_elsewhere(
    networks: Networks,
    task: TaskData,
    *,
    build: Callable[[Blueprint], nn.Module],
    device: str,
) -> float:
    """Mean accuracy on the test images of another data set.

    Raises:
        ConfigError: the networks do not take its images.
    """
    bench = Bench(build, task.image_data(), device)
    found = bench.answers(networks, task.test.x).accuracy(task.test.y)
    if not np.isfinite(found).all():
        raise ConfigError(f"{task.name} has no test images.")
    return float(found.mean())
