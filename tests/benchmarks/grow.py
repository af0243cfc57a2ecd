"""Networks per minute: stacks of networks against a plain loop with the same maths.

    python tests/benchmarks/grow.py [--networks 32] [--rounds 3]

One thread, batch 32, Adam, tanh, scikit-learn's digits resized to 16x16 and 28x28. Both sides train
the same networks from the same weights with the same batches; that their losses agree is checked at
the end. Times are CPU seconds of this process, so that other work on the machine counts little. The
rounds alternate between the two sides, and the middle ratio is given.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from zooplatform.growing.grow import ZooGrower
from zooplatform.growing.images import ImageData, read_images
from zooplatform.growing.initialise import initialise
from zooplatform.growing.recipe import DataRecipe, Recipe
from zooplatform.growing.train import (
    StackTrainer,
    order_generator,
    reuse_freed_memory,
    training_subset,
)
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from zooplatform.growing.runs import Run

CASES: dict[str, dict[str, Any]] = {
    "4,970 parameters, 16x16": {"preset": "unterthiner", "size": 16},
    "2,464 parameters, 28x28": {"preset": "tiny_zoo", "size": 28},
}
LEAST = {"4,970 parameters, 16x16": 5.0, "2,464 parameters, 28x28": 2.5}


class Result(NamedTuple):
    """Networks per minute of both sides, the middle of the rounds' ratios, and how far the mean
    test losses of the same networks lie apart at most."""

    stacked: float
    plain: float
    ratio: float
    difference: float


def plain_loop(run: Run, module: nn.Module, data: ImageData, epochs: int) -> nn.Module:
    """Train one network as any tutorial does."""
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": lambda parameters, lr, weight_decay: torch.optim.SGD(
            parameters, lr=lr, weight_decay=weight_decay, momentum=run.rule.momentum
        ),
    }
    optimizer = optimizers[run.rule.optimizer](
        module.parameters(), lr=run.rule.learning_rate, weight_decay=run.rule.weight_decay
    )
    subset, generator = training_subset(run, len(data.train.y)), order_generator(run)
    module.train()
    for _ in range(epochs):
        order = subset[torch.randperm(len(subset), generator=generator)]
        for batch in order.split(run.batch_size):
            loss = F.cross_entropy(module(data.train.x[batch]), data.train.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


def test_loss(module: nn.Module, data: ImageData) -> float:
    """Mean cross-entropy on the test images."""
    with torch.no_grad():
        return float(F.cross_entropy(module.eval()(data.test.x), data.test.y))


def measure(case: str, networks: int, rounds: int, plain_networks: int = 3) -> Result:
    """Time one epoch of both sides, in turns."""
    size = CASES[case]["size"]
    recipe = Recipe(
        name="benchmark",
        data=DataRecipe(source=("sklearn:digits",), size=size),
        architecture={"family": "cnn", **CASES[case]},
        hyperparameters={"activation": "tanh", "optimizer": "adam", "learning_rate": 1e-3},
        runs=networks,
        epochs=1,
        keep=(1,),
        stack=networks,
    )
    data = read_images("sklearn:digits", recipe.data)
    grower = ZooGrower(recipe, data, load_plugins())
    (stack,) = grower.stacks
    plan = grower.plan(stack.runs[0])

    def trainer() -> StackTrainer:
        return StackTrainer(
            stack, plan, "grouped", data, device=torch.device("cpu"), train_metrics=100
        )

    def fresh(run: Run) -> nn.Module:
        return initialise(plan.build, run.init, seed=run.init_seed, std=run.init_std)

    trainer().train_epoch()  # compiles kernels, fills caches
    plain_loop(stack.runs[0], fresh(stack.runs[0]), data, 1)
    stacked, plain = [], []
    for _ in range(rounds):
        begun, together = time.process_time(), trainer()
        together.train_epoch()
        stacked.append((time.process_time() - begun) / networks)
        begun = time.process_time()
        alone = [plain_loop(r, fresh(r), data, 1) for r in stack.runs[:plain_networks]]
        plain.append((time.process_time() - begun) / plain_networks)
    losses = together.moment().test.loss
    difference = max(abs(test_loss(m, data) - loss) for m, loss in zip(alone, losses, strict=False))
    ratio = statistics.median(p / s for s, p in zip(stacked, plain, strict=True))
    return Result(60 / statistics.median(stacked), 60 / statistics.median(plain), ratio, difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reuse_freed_memory()
    instructions = torch.backends.cpu.get_cpu_capability()
    print(f"an epoch of 1,438 images, networks per minute of one thread, {instructions}")
    print(
        f"{'network':<26}{'stacked':>9}{'plain':>8}{'ratio':>8}{'at least':>10}{'loss apart':>13}"
    )
    for case in CASES:
        result = measure(case, arguments.networks, arguments.rounds)
        print(
            f"{case:<26}{result.stacked:>9.0f}{result.plain:>8.0f}{result.ratio:>8.2f}"
            f"{LEAST[case]:>10.1f}{result.difference:>13.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
