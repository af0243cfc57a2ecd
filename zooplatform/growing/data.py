"""What networks learn: images with classes, or a function of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from zooplatform.growing.functions import read_function
from zooplatform.growing.images import read_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from zooplatform.growing.recipe import DataRecipe
    from zooplatform.growing.runs import Run

__all__ = ["SPLITS", "GrowingData", "SplitName", "read_data"]

SplitName: TypeAlias = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")


class GrowingData(Protocol):
    """Inputs, targets and the loss between outputs and targets.

    Legend for shapes: M networks, N inputs of a split, A networks in a step with B inputs each, K
    outputs of a network.
    """

    @property
    def name(self) -> str:
        """Short name, `digits`."""

    @property
    def source(self) -> str:
        """The reference it came from."""

    @property
    def sha256(self) -> str:
        """Hash of everything that decides inputs and targets beside the hyper-parameters."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    def num_outputs(self) -> int:
        """Outputs that a network needs."""

    def inputs(self, split: SplitName) -> Tensor:
        """All inputs of a split, (N, *shape) float32."""

    def targets(self, split: SplitName, runs: Sequence[Run]) -> Tensor:
        """Targets (M, N) of the networks of `runs`, or (1, N) where all have the same."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss (N,) of each of N outputs (N, K) against targets (N,)."""

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Which outputs (A, B, K) meet their targets (A, B), or None where nothing is classified."""

    def check(self, run: Run, outputs: int) -> None:
        """Refuse a run, or a network with so many outputs, that cannot learn this.

        Raises:
            ConfigError: it cannot; the text says what to change.
        """

    def properties(self, run: Run) -> Mapping[str, float]:
        """What is known of the network of a run beforehand; stored as reported metrics."""


def read_data(source: str, recipe: DataRecipe) -> GrowingData:
    """Read a data set, or prepare a function.

    Raises:
        SourceError: it cannot be had; the text says what to do.
        NotInstalledError: it needs a library that is not installed.
        ConfigError: the recipe asks for what it cannot give.
    """
    if source.startswith("function:"):
        return read_function(source, recipe)
    return read_images(source, recipe)
