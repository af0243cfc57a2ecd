"""A small diffusion model of vectors: noise is added in levels, and a perceptron learns to tell it.

Denoising diffusion (Ho et al., 2020, arXiv 2006.11239) with the cosine schedule of Nichol and Dhariwal (2021, arXiv
2102.09672).

Legend for shapes: B vectors, K values of one, L noise levels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zooplatform_kde.config import DiffusionSettings

__all__ = ["Denoiser", "denoised", "kept_share", "noise_error", "train"]

_EMA = 0.999


class Denoiser(nn.Module):
    """The noise in a vector at a level: a residual perceptron that is told the level by sines.

    Args:
        size: K.
        width, depth: of the residual blocks.
    """

    def __init__(self, size: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(size, width)
        self.level = nn.Sequential(nn.Linear(32, width), nn.SiLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )  # fmt: skip
        self.leave = nn.Linear(width, size)

    def forward(self, x: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """(B, K) the noise in (B, K) vectors of which a share (B,) of the variance is signal."""
        # The log of signal over noise says how noisy a vector is, whatever the number of levels.
        ratio = (share.clamp(1e-5, 1 - 1e-5) / (1 - share.clamp(1e-5, 1 - 1e-5))).log()
        angles = ratio[:, None] * torch.exp(torch.linspace(-3, 2, 16, device=x.device))
        told = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))
        hidden = self.enter(x)
        for block in self.blocks:
            hidden = hidden + block(hidden + told)
        result: torch.Tensor = self.leave(hidden)
        return result


def kept_share(levels: int) -> torch.Tensor:
    """(L,) share of the variance that is signal at each level, least noise first."""
    at = (torch.arange(levels + 1, dtype=torch.float64) / levels + 0.008) / 1.008
    cosine = (at * math.pi / 2).cos().square()
    share: torch.Tensor = (cosine[1:] / cosine[0]).clamp_min(1e-4).float()
    return share


def noise_error(
    model: Denoiser, x: torch.Tensor, levels: int, random: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the noise told, at random levels; 1 is no better than to tell none."""
    at = torch.randint(levels, (len(x),), generator=random)
    share = kept_share(levels)[at]
    noise = torch.randn(x.shape, generator=random)
    noisy = share.sqrt()[:, None] * x + (1 - share).sqrt()[:, None] * noise
    error: torch.Tensor = (model(noisy, share) - noise).square().mean()
    return error


def train(
    points: torch.Tensor,
    settings: DiffusionSettings,
    seed: int,
    *,
    more: Callable[[int], bool],
) -> tuple[Denoiser, int]:
    """A model of (N, K) points, the moving average of its parameters, and how many steps it was trained for.

    Args:
        points: of about unit variance.
        settings: how it is trained.
        seed: of its parameters and of the noise.
        more: asked before every step whether there is time for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Denoiser(points.shape[1], settings.width, settings.depth)
    random = torch.Generator()
    random.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    averaged = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    step = 0
    while step < settings.steps and more(step):
        for group in optimizer.param_groups:
            group["lr"] = (
                settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
            )
        rows = torch.randint(len(points), (settings.batch_size,), generator=random)
        loss = noise_error(model, points[rows], settings.levels, random)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        # Shorter at the beginning, so that little is left of the parameters that were drawn.
        decay = min(_EMA, step / (step + 10))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                averaged[name].lerp_(tensor, 1 - decay)
    model.load_state_dict(averaged)
    return model.eval(), step


@torch.no_grad()
def denoised(
    model: Denoiser,
    bound: torch.Tensor,
    levels: int,
    temperature: float,
    randoms: Sequence[torch.Generator],
    block: int,
) -> torch.Tensor:
    """(B, K) vectors, one for each generator, by going down through all levels.

    Args:
        model: tells the noise.
        bound: (K,) largest absolute value that a vector without noise is believed to have.
        levels: L.
        temperature: factor of all noise that is drawn.
        randoms: a generator for each vector.
        block: rows that are computed at once: products may differ in the last bit by their number.
    """
    size = len(bound)
    share = kept_share(levels)
    before = torch.cat([torch.ones(1), share[:-1]])
    kept = share / before  # of the signal from one level to the next
    x = torch.zeros(block, size)
    for row, one in enumerate(randoms):
        x[row] = temperature * torch.randn(size, generator=one)
    for level in range(levels - 1, -1, -1):
        told = model(x, share[level].expand(block))
        clean = (x - (1 - share[level]).sqrt() * told) / share[level].sqrt()
        clean = torch.clamp(clean, -bound, bound)
        # The mean of the posterior of the level before, given this one and the vector without noise.
        of_clean = before[level].sqrt() * (1 - kept[level]) / (1 - share[level])
        of_noisy = kept[level].sqrt() * (1 - before[level]) / (1 - share[level])
        x = of_clean * clean + of_noisy * x
        if level:
            spread = ((1 - before[level]) / (1 - share[level]) * (1 - kept[level])).sqrt()
            for row, one in enumerate(randoms):
                x[row] += temperature * spread * torch.randn(size, generator=one)
    return x[: len(randoms)]
