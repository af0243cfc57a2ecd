"""Trains one stack of networks.

Legend for shapes: M networks of the stack, A of them active, B images of a batch, D values of one
image, P trained and Q stored values of one network, S steps of an epoch, T kept epochs.

Every network keeps to its own seed: its share of the data, the order of its batches and its first
weights do not depend on the others in the stack. Runs that branch from a common beginning go through it
each alone, so that it does not matter which of them are in a stack. Only dropout draws from one generator
per stack, since M small draws per layer would cost more than they are worth.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from zooplatform.growing.data import SPLITS
from zooplatform.growing.engines import Engine, make_engine
from zooplatform.growing.initialise import initialise
from zooplatform.growing.optimizers import StackedOptimizer
from zooplatform.growing.ranges import derive_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from zooplatform.growing.data import GrowingData, SplitName
    from zooplatform.growing.networks import NetworkPlan
    from zooplatform.growing.runs import Run, Stack
    from zooplatform.growing.stacked import Drop

__all__ = [
    "Measured",
    "Moment",
    "StackTrainer",
    "order_generator",
    "reuse_freed_memory",
    "training_subset",
]

# Images times networks of one evaluation step: enough to fill the kernels, little enough for memory.
_EVALUATED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean loss of each network, and its accuracy (a fraction) where it classifies; (M,) float64."""

    loss: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64] | None

    def ordered(self, order: Sequence[int]) -> Measured:
        """The same with the networks in another order."""
        accuracy = None if self.accuracy is None else self.accuracy[order]
        return Measured(self.loss[order], accuracy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The stack after an epoch, networks in the order of `Stack.runs`.

    Attributes:
        epoch: completed epochs.
        steps: updates of each network so far.
        weights: (M, Q) in state-dict order.
        aside: (M, E) bytes of counters, or None.
        train: measured on (some of) the training images of each network.
        test: measured on the test images.
    """

    epoch: int
    steps: tuple[int, ...]
    weights: npt.NDArray[np.float32]
    aside: npt.NDArray[np.uint8] | None
    train: Measured
    test: Measured


class StackTrainer:
    """Holds the state of a stack in training.

    Args:
        stack: the runs.
        plan: their network.
        engine: name of the engine.
        data: what the networks learn.
        device: where to train.
        train_metrics: training images to measure a network on at most, 0 for all.
        start: first weights (M, Q) in state-dict order, a row for each of `stack.runs`; drawn as the runs say without
            them. Counters begin at zero then.
    """

    def __init__(
        self,
        stack: Stack,
        plan: NetworkPlan,
        engine: str,
        data: GrowingData,
        *,
        device: torch.device,
        train_metrics: int,
        start: Tensor | None = None,
    ) -> None:
        self._plan, self._device = plan, device
        count = len(data.inputs("train"))
        sizes = {run.index: run.num_train(count) for run in stack.runs}
        # Networks with more steps in an epoch come first, so that those still busy are the first rows.
        self._runs = sorted(stack.runs, key=lambda run: (-sizes[run.index], run.index))
        self._place = {run.index: row for row, run in enumerate(self._runs)}
        self._order = [self._place[run.index] for run in stack.runs]
        self._subsets = [training_subset(run, count) for run in self._runs]
        self._batch_size = self._runs[0].batch_size
        self._orders = [order_generator(run) for run in self._runs]
        self._common = [order_generator(run, common=True) for run in self._runs]

        if start is None:
            rows, self._counters = _first_weights(plan, self._runs)
        else:
            given = {run.index: row for row, run in enumerate(stack.runs)}
            rows = plan.rows(start[[given[run.index] for run in self._runs]])
            self._counters = plan.fresh_counters(len(rows))
        self._weights = rows.to(device)
        self._counters = [{k: v.to(device) for k, v in one.items()} for one in self._counters]
        trained = self._weights[:, : plan.num_trained]
        self._gradient = torch.empty_like(trained)
        self._optimizer = StackedOptimizer([run.rule for run in self._runs], trained)
        dropout = any(run.dropout for run in self._runs)
        self._engine: Engine = make_engine(engine, plan, data, dropout=dropout, device=device)
        # Without batch statistics a batch of one image is as good as any.
        self._least = 2 if plan.statistics else 1
        self._stack_seed = derive_seed("stack", *(run.seed for run in self._runs))
        self._dropout = torch.tensor([run.dropout for run in self._runs], device=device)
        self._generator = Generator(device).manual_seed(self._stack_seed)
        self._drop: Drop | None = self._factors if dropout else None
        self._steps = [0] * len(self._runs)
        self._epoch = 0

        self._data = data
        self._x: dict[SplitName, Tensor] = {}
        self._y: dict[SplitName, Tensor] = {}  # (1, N) or (M, N)
        for split in SPLITS:
            self._x[split] = data.inputs(split).flatten(1).to(device)
            self._y[split] = data.targets(split, self._runs).to(device)
        self._seen = [subset[: train_metrics or None] for subset in self._subsets]

    def train_epoch(self) -> None:
        """One pass of every network over its own images, in its own order."""
        indices, share, lengths = self._batches()
        # Where all active networks have a short batch it is cut, so that no padding is computed (and
        # none gets into batch statistics).
        widths = (share > 0).sum(2).amax(1).tolist()
        indices, share = indices.to(self._device), share.to(self._device)
        with torch.random.fork_rng(devices=[]):
            # For dropout that a network does itself.
            torch.manual_seed(derive_seed(self._stack_seed, self._epoch))
            for step in range(len(indices)):
                active = sum(length > step for length in lengths)
                part = slice(0, active), slice(0, widths[step])
                self._step(indices[step][part], share[step][part])
        self._steps = [before + more for before, more in zip(self._steps, lengths, strict=True)]
        self._epoch += 1

    def _step(self, indices: Tensor, share: Tensor) -> None:
        """One update of the first A networks with images `indices` (A, B)."""
        active = len(indices)
        x, y = self._examples("train", indices)
        gradient = self._gradient[:active]
        self._engine.gradients(
            self._weights[:active], x, y, share, gradient, self._drop, self._counters[:active]
        )
        self._optimizer.step(gradient)

    def _examples(self, split: SplitName, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (A, B, D) and targets (A, B) of the first A networks at `indices` (A, B)."""
        x = self._x[split].index_select(0, indices.flatten()).view(*indices.shape, -1)
        targets = self._y[split][: len(indices)].expand(len(indices), -1)
        return x, targets.gather(1, indices)

    def _batches(self) -> tuple[Tensor, Tensor, list[int]]:
        """Indices (S, M, B) and weights (S, M, B) of the coming epoch, and each network's steps."""
        size = self._batch_size
        orders, lengths = [], []
        for run, subset, own, common in zip(
            self._runs, self._subsets, self._orders, self._common, strict=True
        ):
            generator = common if self._epoch < run.branch else own
            order = subset[torch.randperm(len(subset), generator=generator)]
            rest = len(order) % size
            if 0 < rest < self._least and len(order) > size:
                order = order[:-rest]
            orders.append(order)
            lengths.append(-(-len(order) // size))
        indices = torch.zeros(len(orders), max(lengths) * size, dtype=torch.int64)
        share = torch.zeros(len(orders), max(lengths) * size)
        for row, order in enumerate(orders):
            indices[row, : len(order)] = order
            full = len(order) // size * size
            share[row, :full] = 1 / size
            share[row, full : len(order)] = 1 / max(1, len(order) - full)
        shape = (len(orders), max(lengths), size)
        indices, share = (t.view(shape).transpose(0, 1).contiguous() for t in (indices, share))
        return indices, share, lengths

    def _factors(self, shape: tuple[int, int, int]) -> Tensor:
        """Factors of a dropout layer for the first A networks, (A, B, F)."""
        p = self._dropout[: shape[0]].view(-1, 1, 1)
        kept = torch.rand(shape, generator=self._generator, device=self._device) >= p
        return kept / (1 - p)

    def stored(self) -> npt.NDArray[np.float32]:
        """(M, Q) the networks as they are now, in state-dict order; rows in the order of `Stack.runs`."""
        return self._plan.stored(self._weights[self._order])

    def moment(self) -> Moment:
        """Measure the networks as they are now."""
        everything = torch.arange(len(self._x["test"])).expand(len(self._runs), -1)
        train = self._measure("train", self._seen)
        test = self._measure("test", list(everything))
        order = self._order
        return Moment(
            epoch=self._epoch,
            steps=tuple(self._steps[row] for row in order),
            weights=self.stored(),
            aside=self._plan.aside([self._counters[row] for row in order]),
            train=train.ordered(order),
            test=test.ordered(order),
        )

    @torch.no_grad()
    def _measure(self, split: SplitName, chosen: Sequence[Tensor]) -> Measured:
        """Measure network `m` on the images `chosen[m]`; rows stay in the trainer's order."""
        longest = max(map(len, chosen))
        networks = len(chosen)
        indices = torch.zeros(networks, longest, dtype=torch.int64)
        valid = torch.zeros(networks, longest, dtype=torch.float64)
        for row, one in enumerate(chosen):
            indices[row, : len(one)] = one
            valid[row, : len(one)] = 1
        indices, valid = indices.to(self._device), valid.to(self._device)
        loss = torch.zeros(networks, dtype=torch.float64, device=self._device)
        hits: Tensor | None = None
        size = max(1, _EVALUATED_AT_ONCE // networks)
        for start in range(0, longest, size):
            part = indices[:, start : start + size]
            x, y = self._examples(split, part)
            logits = self._engine.logits(self._weights, x, self._counters)
            each = self._data.losses(logits.flatten(0, 1), y.flatten())
            counted = valid[:, start : start + size]
            # Padding may overflow too, and 0 * inf would spread it.
            loss += torch.where(counted > 0, each.view_as(y).double(), 0).sum(1)
            right = self._data.hits(logits, y)
            if right is not None:
                hits = (right * counted).sum(1) + (0 if hits is None else hits)
        total = valid.sum(1)
        accuracy = None if hits is None else (hits / total).cpu().numpy()
        return Measured((loss / total).cpu().numpy(), accuracy)


def _first_weights(
    plan: NetworkPlan, runs: Sequence[Run]
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Initial rows (M, Q) and counters."""
    made = [
        plan.row(initialise(plan.build, run.init, seed=run.init_seed, std=run.init_std))
        for run in runs
    ]
    return torch.stack([row for row, _ in made]), [counters for _, counters in made]


def training_subset(run: Run, count: int) -> Tensor:
    """Indices of the images that a run may see, of `count` training images."""
    seed = run.init_seed if run.branch else run.seed
    generator = Generator().manual_seed(derive_seed(seed, "subset"))
    return torch.randperm(count, generator=generator)[: run.num_train(count)]


def order_generator(run: Run, *, common: bool = False) -> Generator:
    """What shuffles the images of a run: each epoch takes them in the order of one `randperm`.

    Args:
        run: the run.
        common: what shuffles them until the run branches, for all runs of its initialisation.
    """
    return Generator().manual_seed(derive_seed(run.init_seed if common else run.seed, "order"))


@cache
def reuse_freed_memory() -> bool:
    """Let the C library keep freed memory of this process instead of giving it back at once.

    The activations of a stack are megabytes that are freed and allocated anew in every layer; by
    default glibc maps such blocks afresh each time, and zeroing their pages takes a third of the
    training. Does nothing where the C library is another one.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt: Callable[..., Any] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold, largest = -1, -3, 1 << 30
    return bool(mallopt(mmap_threshold, largest)) and bool(mallopt(trim_threshold, largest))
