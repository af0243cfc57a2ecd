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


def _siren(module: nn.Module, generator: Generator) -> None:
    """As Sitzmann et al. (arXiv 2006.09661, section 3.2) draw weights for layers followed by sin(w0 * x)."""
    found = (getattr(part, "w0", None) for part in module.modules())
    rates = {w0 for w0 in found if isinstance(w0, float)}
    if len(rates) != 1:
        raise ConfigError(
            "init 'siren' is for networks whose activations are all sines of one frequency, such as "
            f"'sine(30)'; this one has {sorted(rates) or 'none'}. Choose another init or activation."
        )
    (w0,) = rates
    first = True
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            inputs = parameter[0].numel()
            bound = 1 / inputs if first else (6 / inputs) ** 0.5 / w0
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
            first = False
        elif name.endswith("bias"):
            parameter.zero_()


INITIALISATIONS = ("default", *_fills(1.0), "siren")


def initialise(build: Callable[[], nn.Module], how: str, *, seed: int, std: float) -> nn.Module:
    """A new network whose weights depend on `how` and the seed only.

    Args:
        build: makes the network.
        how: `default` keeps what the network's own constructor draws; `siren` fills networks with
            sine activations as their authors do; every other name fills matrices and kernels by
            torch's function of that name. Biases are 0 but for `default`.
        seed: decides the weights; torch's global generator is left as it was.
        std: standard deviation of `uniform`, `normal` and `truncated_normal`.

    Raises:
        ConfigError: no such initialisation, or none for this network.
    """
    if how not in INITIALISATIONS:
        raise ConfigError(f"Unknown init {how!r}. Known: {', '.join(INITIALISATIONS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
    if how == "default":
        return module
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        if how == "siren":
            _siren(module, generator)
            return module
        fill = _fills(std)[how]
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                fill(parameter, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return module
