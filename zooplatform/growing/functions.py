"""Functions as data: every network is fitted to a wave of its own.

Such a network is an implicit representation of its function. Small ones of sine waves are a common
test of methods that read weights (Navon et al., arXiv 2301.12780, section 7.1): the frequency of the
wave is to be told from the weights.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from zooplatform.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.growing.data import SplitName
    from zooplatform.growing.recipe import DataRecipe
    from zooplatform.growing.runs import Run

__all__ = ["SineData", "read_function"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SineData:
    """Waves `amplitude * sin(frequency * x + phase)` for x from -pi to pi; the loss is the squared error.

    Attributes:
        source: `function:sine`.
        train: points to learn from, (N, 1), evenly spaced.
        test: points to measure on, (N, 1), drawn uniformly, so that they lie between those.
        sha256: hash of the points.
    """

    source: str
    train: Tensor
    test: Tensor
    sha256: str

    @property
    def name(self) -> str:
        return "sine"

    @property
    def shape(self) -> tuple[int, ...]:
        return (1,)

    @property
    def num_outputs(self) -> int:
        return 1

    def inputs(self, split: SplitName) -> Tensor:
        """Points (N, 1) of a split."""
        return self.train if split == "train" else self.test

    def targets(self, split: SplitName, runs: Sequence[Run]) -> Tensor:
        """Values (M, N) of the waves of `runs`."""
        waves = [run.wave for run in runs if run.wave is not None]
        table = torch.tensor(
            [(wave.frequency, wave.amplitude, wave.phase) for wave in waves], dtype=torch.float64
        )
        frequency, amplitude, phase = table.unsqueeze(2).unbind(1)
        x = self.inputs(split).view(1, -1).double()
        return (amplitude * torch.sin(frequency * x + phase)).float()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error (N,) of outputs (N, 1)."""
        return (outputs.squeeze(1) - targets).square()

    def hits(self, outputs: Tensor, targets: Tensor) -> None:
        """Nothing is classified."""

    def check(self, run: Run, outputs: int) -> None:
        """Refuse runs without a frequency, and networks of more than one output."""
        if run.wave is None:
            raise ConfigError(
                f"{self.source} needs hyperparameters.frequency, for example {{uniform = [0.5, 10.0]}}."
            )
        if outputs != 1:
            raise ConfigError(
                f"The network gives {outputs} outputs, but {self.source} has one value at a point. "
                "Change the last layer of the architecture."
            )

    def properties(self, run: Run) -> Mapping[str, float]:
        """The frequency of the wave."""
        return {} if run.wave is None else {"frequency": run.wave.frequency}


def read_function(source: str, recipe: DataRecipe) -> SineData:
    """Prepare the points of a function.

    Args:
        source: `function:sine`.
        recipe: `train` says how many points to train on, `test` how many to measure on, `seed`
            where the latter lie.

    Raises:
        SourceError: there is no such function.
        ConfigError: the recipe does not say how many points, or asks for what only images have.
    """
    if source != "function:sine":
        raise SourceError(source, "there is no such function.", "Known: function:sine.")
    if recipe.size or recipe.grayscale:
        raise ConfigError(f"data.size and data.grayscale need images; {source} is a function.")
    if recipe.train < 2:
        raise ConfigError(
            f"data.train is {recipe.train}; say at how many points {source} is learnt, at least 2."
        )
    count = round(recipe.train * recipe.test) if recipe.test < 1 else int(recipe.test)
    train = torch.linspace(-math.pi, math.pi, recipe.train, dtype=torch.float64)
    generator = Generator().manual_seed(recipe.seed)
    drawn = torch.rand(max(1, count), generator=generator, dtype=torch.float64)
    points = [part.float().unsqueeze(1) for part in (train, math.pi * (2 * drawn - 1))]
    digest = hashlib.sha256(source.encode())
    for part in points:
        digest.update(part.numpy().tobytes())
    return SineData(source=source, train=points[0], test=points[1], sha256=digest.hexdigest())
