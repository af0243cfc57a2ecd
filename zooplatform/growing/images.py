"""Images as a recipe wants them: values in [0, 1], channels first, split into training and test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from zooplatform.errors import ConfigError
from zooplatform.growing.sources import RawImages, read_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.growing.data import SplitName
    from zooplatform.growing.recipe import DataRecipe
    from zooplatform.growing.runs import Run

__all__ = ["ImageData", "Split", "prepare", "read_images", "read_unused"]

# Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601).
_BRIGHTNESS = (0.299, 0.587, 0.114)


class Split(NamedTuple):
    """Images `x` (N, C, H, W), or vectors (N, F), float32 in [0, 1]; classes `y` (N,) int64."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """A data set ready for training.

    Attributes:
        name: short name, `digits`.
        source: the reference it came from.
        train: images to learn from.
        test: images to measure on.
        num_classes: number of classes.
        sha256: hash of the prepared images and classes.
    """

    name: str
    source: str
    train: Split
    test: Split
    num_classes: int
    sha256: str

    @property
    def num_outputs(self) -> int:
        """Outputs that a network needs."""
        return self.num_classes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, (C, H, W) or (F,)."""
        return tuple(self.train.x.shape[1:])

    def inputs(self, split: SplitName) -> Tensor:
        """Images (N, C, H, W) or vectors (N, F) of a split."""
        return self._split(split).x

    def targets(self, split: SplitName, runs: Sequence[Run]) -> Tensor:
        """Classes (1, N), the same for every network."""
        return self._split(split).y.unsqueeze(0)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (N,) of outputs (N, K)."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the largest of the outputs (A, B, K) is that of the class, (A, B)."""
        return outputs.argmax(2) == targets

    def check(self, run: Run, outputs: int) -> None:
        """Refuse a network with too few outputs, and hyper-parameters of functions."""
        if run.wave is not None:
            raise ConfigError(
                f"hyperparameters.frequency: {self.source} holds images, which have none. Remove it, "
                "or let data.source name a function."
            )
        if outputs < self.num_classes:
            raise ConfigError(
                f"The network gives outputs of shape ({outputs},), but the data have "
                f"{self.num_classes} classes. Change the last layer of the architecture."
            )

    def properties(self, run: Run) -> Mapping[str, float]:
        """Nothing is known of a classifier before it is measured."""
        return {}

    def _split(self, name: SplitName) -> Split:
        return self.train if name == "train" else self.test


def read_images(source: str, recipe: DataRecipe) -> ImageData:
    """Read one data set and prepare it.

    Raises:
        SourceError: it cannot be had; the text says what to do.
        NotInstalledError: it needs a library that is not installed.
        ConfigError: the recipe asks for more images than there are, or for what they cannot give.
    """
    return prepare(read_source(source, recipe.folder), recipe)


def read_unused(source: str, recipe: DataRecipe) -> Split:
    """The images of a data set that a recipe leaves out: it neither trains nor tests on them; there may be none.

    Raises:
        SourceError, NotInstalledError, ConfigError: as for `read_images`.
    """
    raw = read_source(source, recipe.folder)
    x, y, _, order = _ordered(raw, recipe)
    left = order[recipe.train :] if recipe.train else order[:0]
    return Split(x[left].contiguous(), y[left].contiguous())


def prepare(raw: RawImages, recipe: DataRecipe) -> ImageData:
    """Scale, resize and split; see `DataRecipe` for what is asked."""
    x, y, test, order = _ordered(raw, recipe)
    order = order[: recipe.train or None]
    train = Split(x[order].contiguous(), y[order].contiguous())
    test = Split(test.x.contiguous(), test.y.contiguous())
    digest = hashlib.sha256()
    for part in (*train, *test):
        digest.update(part.numpy().tobytes())
    return ImageData(
        name=raw.name,
        source=raw.source,
        train=train,
        test=test,
        num_classes=int(max(train.y.max(), test.y.max())) + 1,
        sha256=digest.hexdigest(),
    )


def _ordered(raw: RawImages, recipe: DataRecipe) -> tuple[Tensor, Tensor, Split, Tensor]:
    """All images and classes, the test part, and which of them are left for training, in a drawn order."""
    x, y = _images(raw.x, raw, recipe), _classes(raw.y, raw)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(recipe.seed))
    if raw.test_x is not None and raw.test_y is not None:
        test = Split(_images(raw.test_x, raw, recipe), _classes(raw.test_y, raw))
    else:
        count = round(len(x) * recipe.test) if recipe.test < 1 else int(recipe.test)
        if not 0 < count < len(x):
            raise ConfigError(
                f"data.test asks for {count:,} of the {len(x):,} images of {raw.source}; "
                "leave some for training and some for testing."
            )
        test = Split(x[order[:count]], y[order[:count]])
        order = order[count:]
    if recipe.train > len(order):
        raise ConfigError(
            f"data.train asks for {recipe.train:,} images, but {raw.source} has {len(order):,} "
            "for training."
        )
    return x, y, test, order


def _classes(y: npt.NDArray[Any], raw: RawImages) -> Tensor:
    flat = np.asarray(y).reshape(-1)
    if flat.dtype.kind not in "iu" or (flat.size and int(flat.min()) < 0):
        raise ConfigError(
            f"{raw.source}: classes are {flat.dtype} values from {flat.min()}; "
            "they must be whole numbers from 0."
        )
    return torch.from_numpy(flat.astype(np.int64))


def _images(values: npt.NDArray[Any], raw: RawImages, recipe: DataRecipe) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) / raw.scale
    if x.dim() == 2:
        if recipe.size or recipe.grayscale:
            raise ConfigError(
                f"{raw.source} holds vectors; data.size and data.grayscale need images."
            )
        return x
    if x.dim() == 3:
        x = x.unsqueeze(1)
    elif x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ConfigError(
            f"{raw.source} has inputs of shape {tuple(values.shape)}; images are (N, H, W), "
            "(N, H, W, C) or (N, C, H, W) with 1 or 3 channels, vectors (N, F)."
        )
    if recipe.grayscale and x.shape[1] == 3:
        x = (x * torch.tensor(_BRIGHTNESS).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return _resized(x, recipe.size) if recipe.size else x.contiguous()


def _resized(x: Tensor, side: int) -> Tensor:
    if tuple(x.shape[2:]) == (side, side):
        return x.contiguous()
    if min(x.shape[2:]) >= side:
        return F.adaptive_avg_pool2d(x, side)
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
