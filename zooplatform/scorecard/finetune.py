"""Fine-tuning of many networks together, with the same budget for whoever made them.

Every network is trained as the runs of the zoo were (optimiser, batch size, decay), on the same training images in an
order of its own, which depends on its place alone: network i of one method sees the images in the order of network i
of every other. The learning rate is chosen per method and number of epochs, on validation images, from one fixed grid:
the first few networks of a method are trained with every rate of the grid up to the last epoch, and for each number of
epochs the rate with the highest mean accuracy is taken for all of its networks.

Legend for shapes: n networks, P values of one network.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from zooplatform.growing.optimizers import OPTIMIZERS, Rule
from zooplatform.growing.ranges import derive_seed
from zooplatform.growing.runs import Run, Stack
from zooplatform.growing.train import StackTrainer
from zooplatform.scorecard.networks import Networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from zooplatform.scorecard.networks import Bench

__all__ = ["GRIDS", "FineTuner", "Schooling", "Tuned", "usual_schooling"]

# Learning rates tried for every method, by optimiser.
GRIDS: Mapping[str, tuple[float, ...]] = {
    "sgd": (0.01, 0.03, 0.1, 0.3),
    "adam": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}

_STACK = 32

_Trained: TypeAlias = "dict[tuple[int, float], dict[int, Networks]]"


class Schooling(NamedTuple):
    """How networks are trained: what the runs of the zoo have in common."""

    optimizer: str = "adam"
    batch_size: int = 32
    weight_decay: float = 0.0
    momentum: float = 0.0

    @property
    def grid(self) -> tuple[float, ...]:
        return GRIDS[self.optimizer]

    def rule(self, learning_rate: float) -> Rule:
        return Rule(self.optimizer, learning_rate, self.weight_decay, self.momentum)


def usual_schooling(configs: Iterable[Mapping[str, Any]]) -> Schooling:
    """What most runs have, by their hyper-parameters; values that no run gives are those of `Schooling`.

    Optimisers that stacks do not know count as the default.
    """
    counted: Counter[Schooling] = Counter()
    default = Schooling()
    for config in configs:
        optimizer = str(config.get("optimizer", default.optimizer)).lower()
        counted[
            Schooling(
                optimizer if optimizer in OPTIMIZERS else default.optimizer,
                int(config.get("batch_size", default.batch_size)),
                float(config.get("weight_decay", default.weight_decay)),
                float(config.get("momentum", default.momentum)),
            )
        ] += 1
    # The first of equals by value, so that the order of the runs decides nothing.
    return min(counted, key=lambda one: (-counted[one], one), default=default)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What fine-tuning did to n networks.

    Attributes:
        networks: as they are after so many epochs.
        learning_rate: chosen for so many epochs.
        validation: mean accuracy on validation images by learning rate, for so many epochs.
    """

    networks: dict[int, Networks]
    learning_rate: dict[int, float]
    validation: dict[int, dict[float, float]]


class FineTuner:
    """Trains networks on the training images of a bench.

    Args:
        bench: its data are the training images (`train`) and, to choose by, the validation images (`test`).
        schooling: how.
        epochs: after which numbers of epochs the networks are wanted, all above 0.
        seed: of the orders of the images.
        tried: networks of a method that learning rates are tried on at most.
        check: called before every epoch; may raise to stop.
    """

    def __init__(
        self,
        bench: Bench,
        schooling: Schooling,
        epochs: Sequence[int],
        *,
        seed: int = 0,
        tried: int = 4,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._bench, self.schooling, self.epochs = bench, schooling, tuple(sorted(set(epochs)))
        self._seed, self._tried, self._check = seed, tried, check

    def __call__(
        self, networks: Networks, progress: Callable[[int, int], None] | None = None
    ) -> Tuned:
        """Fine-tune n networks.

        Args:
            networks: n of them.
            progress: told of epochs done and epochs in all, of stacks.

        Raises:
            ConfigError: networks of a blueprint cannot be trained.
        """
        count, grid = len(networks), self.schooling.grid
        tried = min(self._tried, count)
        first = [(place, rate) for rate in grid for place in range(tried)]
        done = self._train(networks, first, self.epochs[-1], progress)
        scores = {epoch: self._scores(done, tried, epoch) for epoch in self.epochs}
        # The lowest of equals: it changes the networks least.
        rates = {
            epoch: max(grid, key=lambda rate: (scores[epoch][rate], -rate)) for epoch in self.epochs
        }
        # The others need each chosen rate only up to the last number of epochs that it was chosen for.
        for rate in sorted(set(rates.values())):
            last = max(epoch for epoch in self.epochs if rates[epoch] == rate)
            rest = [(place, rate) for place in range(tried, count)]
            done |= self._train(networks, rest, last, progress)
        tuned = {
            epoch: Networks.joined([done[place, rates[epoch]][epoch] for place in range(count)])
            for epoch in self.epochs
        }
        return Tuned(tuned, rates, scores)

    def _scores(self, done: _Trained, tried: int, epoch: int) -> dict[float, float]:
        """Mean accuracy on validation images by learning rate."""
        validation = self._bench.data.test
        found = {}
        for rate in self.schooling.grid:
            own = Networks.joined([done[place, rate][epoch] for place in range(tried)])
            answers = self._bench.answers(own, validation.x)
            found[rate] = float(answers.accuracy(validation.y).mean())
        return found

    def _train(
        self,
        networks: Networks,
        jobs: Sequence[tuple[int, float]],
        last: int,
        progress: Callable[[int, int], None] | None,
    ) -> _Trained:
        """Networks by (place, learning rate) and epoch up to the last, each alone."""
        found: _Trained = {}
        if not jobs:
            return found
        chosen = networks.take([place for place, _ in jobs])
        stacks = [
            (part.blueprint, part.places[at : at + _STACK], part.weights[at : at + _STACK])
            for part in chosen.parts
            for at in range(0, len(part.places), _STACK)
        ]
        for number, (blueprint, places, weights) in enumerate(stacks):
            ready = self._bench.ready(blueprint)
            own = [jobs[place] for place in places.tolist()]
            runs = tuple(self._run(place, rate, at) for at, (place, rate) in enumerate(own))
            trainer = StackTrainer(
                Stack(str(number), runs),
                ready.plan,
                ready.engine_name,
                self._bench.data,
                device=self._bench.device,
                train_metrics=1,
                start=ready.built(weights),
            )
            for epoch in range(1, last + 1):
                self._check()
                trainer.train_epoch()
                if progress is not None:
                    progress(number * last + epoch, len(stacks) * last)
                if epoch in self.epochs:
                    now = ready.stored(torch.from_numpy(trainer.stored()))
                    for row, job in enumerate(own):
                        found.setdefault(job, {})[epoch] = Networks.of(
                            now[row : row + 1].clone(), blueprint
                        )
        return found

    def _run(self, place: int, rate: float, index: int) -> Run:
        seed = derive_seed(self._seed, "fine-tuning", place)
        return Run(
            index=index,
            seed=seed,
            init_seed=seed,
            activation=None,
            init="default",
            init_std=0.05,
            rule=self.schooling.rule(rate),
            dropout=0.0,
            fraction=1.0,
            batch_size=self.schooling.batch_size,
        )
