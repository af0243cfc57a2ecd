"""Image encoders by name, and what a data set looks like through one.

A data set is described by a few examples of each class: every class by the mean of its images' vectors, and the whole
by mean and spread over the classes (IGPG section 2.3 takes 5 images a class and their mean).

Legend for shapes: N images, C channels, K classes, S examples of a class, D size of a vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F

from zooplatform.errors import ConfigError, NotInstalledError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ImageEncoder", "embed_dataset", "image_encoder", "pooled"]

_SIDE = 16
_FILTERS = 48


class ImageEncoder(Protocol):
    """Images to vectors, always the same ones."""

    name: str
    dim: int

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(N, D) float32 of images (N, C, H, W) in [0, 1]."""

    def describe(self) -> dict[str, Any]:
        """What an artifact keeps of it."""


def image_encoder(name: str) -> ImageEncoder:
    """The encoder of this name: `moments`, `filters` or `timm:MODEL`.

    Raises:
        ConfigError: there is no such encoder.
        NotInstalledError: timm is missing.
    """
    if name == "moments":
        return Moments()
    if name == "filters":
        return Filters()
    kind, colon, rest = name.partition(":")
    if kind == "timm" and colon and rest:
        return Timm(rest)
    raise ConfigError(f"Unknown image encoder {name!r}. Known: moments, filters, timm:MODEL.")


def embed_dataset(encoder: ImageEncoder, examples: torch.Tensor) -> torch.Tensor:
    """(K, D): the mean vector of every class, of examples (K, S, C, H, W) or (K, S, F)."""
    if examples.ndim == 3:
        examples = examples[:, :, None, None, :]
    if examples.ndim != 5 or not len(examples) or not examples.shape[1]:
        raise ConfigError(
            f"images are {tuple(examples.shape)}; give (classes, examples, channels, height, width)."
        )
    if not bool(examples.isfinite().all()):
        raise ConfigError("images hold NaN or infinite values; give values from 0 to 1.")
    vectors = encoder.encode(examples.flatten(0, 1).float())
    return vectors.view(*examples.shape[:2], -1).mean(dim=1)


def pooled(classes: torch.Tensor) -> torch.Tensor:
    """(2 D,) mean and spread over the classes of (K, D)."""
    return torch.cat([classes.mean(dim=0), classes.std(dim=0, unbiased=False)])


def _plain(images: torch.Tensor) -> torch.Tensor:
    """(N, 1, side, side): brightness, whatever the size and the number of channels."""
    return F.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), (_SIDE, _SIDE))


class Moments:
    """Brightness over a grid, its spread, how contours run, and how colourful it is."""

    name = "moments"
    dim = 8 * 8 + 4 * 4 + 4 * 8 + 4

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        plain = _plain(images)
        grid = F.adaptive_avg_pool2d(plain, (8, 8)).flatten(1)
        square = F.adaptive_avg_pool2d(plain**2, (4, 4))
        spread = (square - F.adaptive_avg_pool2d(plain, (4, 4)) ** 2).clamp_min(0).sqrt()
        across = plain[..., 1:-1, 2:] - plain[..., 1:-1, :-2]
        down = plain[..., 2:, 1:-1] - plain[..., :-2, 1:-1]
        strength = (across**2 + down**2).sqrt()
        # Contours by direction, in each quarter of the image.
        direction = ((torch.atan2(down, across) / torch.pi + 1) * 4).long().clamp(0, 7)
        split = F.one_hot(direction.squeeze(1), 8).movedim(3, 1) * strength  # (N, 8, h, w)
        contours = F.adaptive_avg_pool2d(split, (2, 2)).flatten(1)
        colour = (images - images.mean(dim=1, keepdim=True)).abs().mean(dim=(1, 2, 3))
        whole = torch.stack(
            [plain.mean(dim=(1, 2, 3)), plain.std(dim=(1, 2, 3)), strength.mean(dim=(1, 2, 3)), colour],
            dim=1,
        )  # fmt: skip
        return torch.cat([grid, spread.flatten(1), contours, whole], dim=1)


class Filters:
    """Two layers of convolutions with fixed random filters; mean and spread of what they answer."""

    name = "filters"
    dim = 4 * _FILTERS

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(2504)
        one = torch.randn((_FILTERS, 1, 5, 5), generator=draw)
        self._one = (one - one.mean(dim=(1, 2, 3), keepdim=True)) / 5
        self._two = torch.randn((_FILTERS, _FILTERS, 3, 3), generator=draw) / (3 * _FILTERS**0.5)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        first = F.conv2d(_plain(images), self._one, padding=2).relu()
        second = F.conv2d(F.avg_pool2d(first, 2), self._two, padding=1).relu()
        return torch.cat(
            [stat for x in (first, second) for stat in (x.mean(dim=(2, 3)), x.std(dim=(2, 3)))],
            dim=1,
        )


class Timm:
    """A model of timm without its head, frozen.

    Pretrained weights are taken where they can be had (from the cache, or by download); otherwise the features are
    those of random weights, drawn by a fixed seed, and `describe` says so.
    """

    def __init__(self, model: str) -> None:
        try:
            import timm
        except ImportError as exc:
            raise NotInstalledError(
                "An image encoder of timm", ("timm",), "pip install timm"
            ) from exc
        self.name = f"timm:{model}"
        if not timm.is_model(model):
            close = timm.list_models(f"*{model}*")[:5]
            raise ConfigError(
                f"timm has no model {model!r}." + (f" It has {', '.join(close)}." if close else "")
            )
        self.pretrained = True
        self._model = self._made(timm.create_model, model)
        self._model.eval().requires_grad_(False)
        taken = self._model.pretrained_cfg
        self._channels, self._height, self._width = taken.get("input_size", (3, 224, 224))
        self._mean = torch.tensor(taken.get("mean", (0.5,) * 3))[: self._channels, None, None]
        self._std = torch.tensor(taken.get("std", (0.5,) * 3))[: self._channels, None, None]
        with torch.no_grad():  # models count the features before their last layers, or behind them
            small = torch.zeros((1, self._channels, self._height, self._width))
            self.dim = self._model(small).flatten(1).shape[1]

    def _made(self, create: Callable[..., Any], model: str) -> Any:
        try:
            return create(model, pretrained=True, num_classes=0)
        except (OSError, RuntimeError, ValueError):  # no weights for it, or out of reach
            self.pretrained = False
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(2504)
                return create(model, pretrained=False, num_classes=0)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim, "pretrained": self.pretrained}

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] != self._channels:
            images = images.mean(dim=1, keepdim=True).expand(-1, self._channels, -1, -1)
        size = (self._height, self._width)
        parts = []
        for start in range(0, len(images), 32):
            part = images[start : start + 32]
            large = F.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True)
            vectors = self._model((large - self._mean) / self._std)
            parts.append(vectors.flatten(1).float())
        return torch.cat(parts)
