"""Basins: clusters of the weights of networks of one blueprint and data set, such as those that began alike.

Networks are compared tensor by tensor in units of the tensor's own size, and layouts with many values through a fixed
random projection, which keeps distances (Johnson and Lindenstrauss). How many basins there are is chosen by how near
the centres of the training networks lie to validation networks: clusters that are none are farther away, because a mean
of fewer networks is a worse one.

Legend for shapes: N networks, P values of one, R values of a projection, K basins.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from zooplatform.layout import VectorLayout
    from zooplatform_igpg.prepared import PreparedNetworks

    Rows = npt.NDArray[np.int64]

__all__ = ["Basins", "Viewer", "find_basins"]

_PROJECTED = 256
_DIRECT = 4096  # layouts of fewer values are not projected
_TRIES = (*range(1, 17), 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128)
_LEAST = 3  # networks of a basin, on average, below which no more basins are tried
_BEGINNINGS, _ROUNDS = 6, 50
_WORTH = 0.8  # a new basin must bring validation networks at least so near, relative to one fewer


class Viewer:
    """How networks of a layout are compared: (N, P) weights to (N, R).

    Args:
        scale: (P,) what values are multiplied with.
        seed: of the projection.
    """

    def __init__(self, scale: torch.Tensor, seed: int) -> None:
        self.scale = scale
        self._matrix = None
        if len(scale) > _DIRECT:
            draw = torch.Generator().manual_seed(seed)
            self._matrix = torch.randn((len(scale), _PROJECTED), generator=draw) / _PROJECTED**0.5

    @classmethod
    def of(cls, vector: VectorLayout, sample: torch.Tensor, seed: int) -> Viewer:
        """For networks of a layout, of which some (N, P) tell the size of each tensor."""
        scale = torch.ones(vector.width)
        for field in vector.fields:
            if not field.aside and field.spec.num_elements:
                part = slice(field.offset, field.offset + field.spec.num_elements)
                size = float(sample[:, part].square().mean().sqrt())
                scale[part] = 1 / max(size, 1e-8)
        return cls(scale, seed)

    def __call__(self, weights: torch.Tensor) -> torch.Tensor:
        scaled = weights * self.scale
        return scaled if self._matrix is None else scaled @ self._matrix


class Basins(NamedTuple):
    """Basins of one kind of network.

    Attributes:
        centres: (K, R), as the viewer sees them.
        train, validation: (N,) the basin of every network.
        scores: by number of basins the mean squared distance of validation networks to the nearest centre.
    """

    centres: torch.Tensor
    train: Rows
    validation: Rows
    scores: dict[int, float]


def views(networks: PreparedNetworks, chosen: Rows, viewer: Viewer) -> torch.Tensor:
    """(N, R) of networks of one blueprint."""
    parts: list[torch.Tensor] = []
    networks.weights_of(chosen, lambda _, weights: parts.append(viewer(weights)))
    return torch.cat(parts) if parts else torch.zeros((0, 1))


def find_basins(
    train: torch.Tensor, validation: torch.Tensor, wanted: int | str, seed: int
) -> Basins:
    """The basins of training networks (N, R), and those of validation networks.

    Args:
        train, validation: the latter may be empty; then every fifth training network is held out to choose by.
        wanted: how many, or `auto`.
        seed: of the first centres.
    """
    scores: dict[int, float] = {}
    number = 1
    if wanted == "auto":
        fitted, held = train, validation
        if not len(held):
            at = torch.arange(len(train))
            fitted, held = train[at % 5 != 4], train[at % 5 == 4]
        for number in _TRIES:
            if number > 1 and number * _LEAST > len(fitted):
                break
            if len(held):
                scores[number] = float(
                    _squares(held, _clusters(fitted, number, seed)).min(1)[0].mean()
                )
        number = _choice(scores)
    else:
        number = min(max(1, int(wanted)), len(train))
    centres = _clusters(train, number, seed)
    return Basins(centres, _nearest(train, centres), _nearest(validation, centres), scores)


def _choice(scores: dict[int, float]) -> int:
    """The last number of basins that brought validation networks much nearer than the one tried before it.

    While basins are missing, each new one leaves fewer networks far from every centre; when all are found, further
    centres only part what belongs together, which brings little.
    """
    if not scores:
        return 1
    tried = sorted(scores)
    falls = [b for a, b in pairwise(tried) if scores[b] < _WORTH * scores[a]]
    return max(falls, default=1)


def _clusters(points: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """(K, R) the best of several runs of k-means, each from seeds far from each other (k-means++)."""
    if number <= 1:
        return points.mean(dim=0, keepdim=True)
    best, least = points[:number], float("inf")
    for attempt in range(_BEGINNINGS):
        draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, attempt])))
        centres = _spread(points, number, draw)
        near = _nearest(points, centres)
        for _ in range(_ROUNDS):
            for basin in range(number):
                own = points[torch.from_numpy(near == basin)]
                if len(own):
                    centres[basin] = own.mean(dim=0)
            again = _nearest(points, centres)
            if (again == near).all():
                break
            near = again
        error = float(_squares(points, centres).min(1)[0].sum())
        if error < least:
            best, least = centres, error
    return best


def _spread(points: torch.Tensor, number: int, draw: np.random.Generator) -> torch.Tensor:
    chosen = [int(draw.integers(len(points)))]
    left = _squares(points, points[chosen]).squeeze(1)
    while len(chosen) < number:
        # The farthest of a few drawn by their distance: clusters far apart then get a seed each.
        share = left.double().clamp_min(0)
        total = float(share.sum())
        if total <= 0:
            chosen.append(int(draw.integers(len(points))))
            continue
        drawn = draw.choice(len(points), size=4, p=(share / total).numpy())
        rest = [torch.minimum(left, _squares(points, points[[at]]).squeeze(1)) for at in drawn]
        best = int(np.argmin([float(one.sum()) for one in rest]))
        chosen.append(int(drawn[best]))
        left = rest[best]
    return points[chosen].clone()


def _squares(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """(N, K) squared distances."""
    both = points.square().sum(1, keepdim=True) + centres.square().sum(1)
    return (both - 2 * points @ centres.T).clamp_min(0)


def _nearest(points: torch.Tensor, centres: torch.Tensor) -> Rows:
    if not len(points):
        return np.empty(0, np.int64)
    found: Rows = _squares(points, centres).argmin(dim=1).numpy()
    return found
