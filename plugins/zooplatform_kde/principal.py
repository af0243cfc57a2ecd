"""Principal components of networks, and how likely others are under them.

Legend for shapes: N networks, V others, P values of one, K components.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

__all__ = ["Principal", "chosen_components", "principal_components"]

_LEAST_REST = 1e-4
_EXACT = 3000  # up to so many networks or values the eigenvectors are computed in full


class Principal(NamedTuple):
    """Attributes:
    mean: (P,).
    axes: (K, P) orthonormal, largest variance first.
    std: (K,) standard deviation along each.
    rest: mean variance in each of the other P - K directions.
    explained: share of the variance that lies along the axes.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    std: torch.Tensor
    rest: float
    explained: float

    def first(self, components: int) -> Principal:
        """With fewer components, whose variance goes to the rest."""
        k, total = len(self.std), self.mean.numel()
        components = min(components, k)
        own = self.std.double().square()
        everything = float(own.sum()) + self.rest * (total - k)
        left = float(own[components:].sum()) + self.rest * (total - k)
        return Principal(
            self.mean,
            self.axes[:components],
            self.std[:components],
            left / max(1, total - components),
            1 - left / everything if everything > 0 else 1.0,
        )

    def coordinates(self, weights: torch.Tensor) -> torch.Tensor:
        """(V, K) of (V, P) networks."""
        return (weights.float() - self.mean) @ self.axes.T

    def networks(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(V, P) of (V, K) coordinates."""
        return self.mean + coordinates @ self.axes

    def log_likelihood(self, weights: torch.Tensor) -> torch.Tensor:
        """(V,) nats per value under probabilistic PCA (Tipping and Bishop, 1999): normal along the axes, and with the
        variance `rest` in all other directions, no less than 1e-4 of the mean variance."""
        total = self.mean.numel()
        left = (weights.float() - self.mean).double()
        found = left @ self.axes.double().T
        beside = (left.square().sum(dim=1) - found.square().sum(dim=1)).clamp_min(0)
        # Few networks leave no variance beside their axes, which would make all others impossible.
        own = self.std.double().square()
        mean_variance = (float(own.sum()) + self.rest * (total - len(own))) / max(1, total)
        least = max(_LEAST_REST * mean_variance, 1e-12)
        rest = max(self.rest, least)
        own = own.clamp_min(least)
        log_det = own.log().sum() + (total - len(own)) * math.log(rest)
        squares = (found.square() / own).sum(dim=1) + beside / rest
        return -0.5 * (math.log(2 * math.pi) + (log_det + squares) / total)


def principal_components(
    weights: torch.Tensor, components: int, *, mean: torch.Tensor | None = None, lost: int = 1
) -> Principal:
    """The first principal components of (N, P) networks; fewer where there are not so many.

    Args:
        weights: of the networks.
        components: K at most.
        mean: (P,) or (N, P) that deviations are counted from; their own mean by default.
        lost: degrees of freedom that the means took: variances are sums over N - `lost`.
    """
    own = weights.double().mean(dim=0).float()
    centred = (weights - (own if mean is None else mean)).double()
    free = max(1, len(weights) - lost)
    total = float(centred.square().sum()) / free
    most = min(components, max(0, len(weights) - lost), weights.shape[1])
    if min(centred.shape) > _EXACT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = torch.svd_lowrank(centred, q=min(most + 16, min(centred.shape)), niter=4)
        values, axes = found[1].square() / free, found[2].T
    elif len(centred) <= centred.shape[1]:
        values, vectors = torch.linalg.eigh(centred @ centred.T / free)
        values = values.flip(0)
        axes = vectors.flip(1).T @ centred / (values.clamp_min(1e-300) * free).sqrt()[:, None]
    else:
        values, vectors = torch.linalg.eigh(centred.T @ centred / free)
        values, axes = values.flip(0), vectors.flip(1).T
    # What is left of equal networks is rounding, and no direction.
    usable = (values > 1e-12 * total)[:most]
    values, axes = values[:most][usable], axes[:most][usable]
    # The sign of an eigenvector is arbitrary; fixed, so that libraries agree.
    if len(axes):
        largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
        axes = axes * torch.where(largest < 0, -1.0, 1.0)
    left = max(0.0, total - float(values.sum()))
    return Principal(
        own,
        axes.float(),
        values.sqrt().float(),
        left / max(1, weights.shape[1] - len(values)),
        1 - left / total if total > 0 else 1.0,
    )


def chosen_components(
    found: Principal, components: int | str, held_out: torch.Tensor
) -> tuple[Principal, float | None]:
    """With as many components as asked for, and the mean log-likelihood of the validation networks where there are any.

    `auto` compares 0 and the powers of two up to 128 by that likelihood; without validation networks it takes all there
    are.
    """
    if not len(held_out):
        return (found if components == "auto" else found.first(int(components))), None
    numbers = [0, 1, 2, 4, 8, 16, 32, 64, 128] if components == "auto" else [int(components)]
    tried = [found.first(number) for number in numbers]
    scores = [float(one.log_likelihood(held_out).mean()) for one in tried]
    best = max(range(len(tried)), key=scores.__getitem__)
    return tried[best], scores[best]
