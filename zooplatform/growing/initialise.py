"""First weights of a network, from a seed alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Generator, Tensor, nn

from zooplatform.errors import ConfigError

__all__ = ["INITIALISATIONS", "initialise"]

_Fill = Callable[..., Tensor]


def _fills(std: float) -> Mapping[str, _Fill]:
    return {
        "uniform": partial(nn.init.uniform_, a=-std * 3**0.5, b=std * 3**0.5),
        "normal": partial(nn.init.normal_, std=std),
        "truncated_normal": partial(nn.init.trunc_normal_, std=std, a=-2 * std, b=2 * std),
        "kaiming_uniform": nn.init.kaiming_uniform_,
        "kaiming_normal": nn.init.kaiming_normal_,
        "xavier_uniform": nn.init.xavier_uniform_,
        "xavier_normal": nn.init.xavier_normal_,
        "orthogonal": nn.init.orthogonal_,
    }


INITIALISATIONS = ("default", *_fills(1.0))


def initialise(build: Callable[[], nn.Module], how: str, *, seed: int, std: float) -> nn.Module:
    """A new network whose weights depend on `how` and the seed only.

    Args:
        build: makes the network.
        how: `default` keeps what the network's own constructor draws; every other name fills
            matrices and kernels by torch's function of that name and sets biases to 0.
        seed: decides the weights; torch's global generator is left as it was.
        std: standard deviation of `uniform`, `normal` and `truncated_normal`.

    Raises:
        ConfigError: no such initialisation.
    """
    if how not in INITIALISATIONS:
        raise ConfigError(f"Unknown init {how!r}. Known: {', '.join(INITIALISATIONS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
    if how == "default":
        return module
    fill = _fills(std)[how]
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                fill(parameter, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return module
