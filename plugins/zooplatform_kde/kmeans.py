"""Clusters of networks: k-means on runs, and how many there are.

Checkpoints of one run are near each other whatever the initialisation, so what is clustered are the means of runs, and
all checkpoints of a run are in one cluster.

Legend for shapes: R runs, P values of a network, k clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from zooplatform_kde.networks import Networks

__all__ = ["Clusters", "find_clusters", "k_means", "largest_first", "silhouette"]

_DIMENSIONS = 64  # of the principal subspace in which numbers of clusters are compared
_RUNS = 1000  # most runs that silhouettes are counted on
_LEAST_SILHOUETTE = 0.1
_STARTS = 6
_ROUNDS = 100


class Clusters(NamedTuple):
    """`of` (N,) the cluster of every network, largest cluster first; `silhouette` of the runs, 0 for one cluster."""

    of: torch.Tensor
    silhouette: float

    @property
    def number(self) -> int:
        return int(self.of.max()) + 1


def find_clusters(
    networks: Networks, clusters: int | str, max_clusters: int, seed: int
) -> Clusters:
    """The clusters of the training networks of a group.

    Args:
        networks: of the group.
        clusters: how many; `auto` for that number up to `max_clusters` with the largest mean silhouette (Rousseeuw,
            1987), or one where none is above 0.1, as with networks of independent seeds.
        max_clusters: see there; never more than half the runs, so that clusters have more than one run on average.
        seed: of the starts of k-means.
    """
    run = networks.runs
    count = int(run.max()) + 1
    sums = torch.zeros(count, networks.weights.shape[1], dtype=torch.float64)
    sums.index_add_(0, run, networks.weights.double())
    means = (sums / run.bincount(minlength=count)[:, None]).float()  # (R, P)
    draw = torch.Generator().manual_seed(seed)
    if clusters == "auto":
        most = min(max_clusters, count // 2)
        of_run, score = _best_number(means, most, draw)
    else:
        of_run, _ = k_means(means, min(int(clusters), count), draw)
        score = silhouette(torch.cdist(means, means), of_run) if count <= _RUNS else 0.0
    return Clusters(largest_first(of_run[run]), score)


def largest_first(of: torch.Tensor) -> torch.Tensor:
    """(N,) clusters with numbers from 0 on in the order of their sizes."""
    sizes = of.bincount()
    place = torch.empty_like(sizes)
    place[sizes.argsort(descending=True, stable=True)] = torch.arange(len(sizes))
    return place[of]


def _best_number(
    means: torch.Tensor, most: int, draw: torch.Generator
) -> tuple[torch.Tensor, float]:
    best, score = torch.zeros(len(means), dtype=torch.int64), 0.0
    if most < 2:
        return best, score
    kept = torch.randperm(len(means), generator=draw)[:_RUNS].sort().values
    distances = torch.cdist(means[kept], means[kept])
    small = _projected(means)
    number = 1
    for k in range(2, most + 1):
        of_run, _ = k_means(small, k, draw)
        found = silhouette(distances, of_run[kept])
        if found > score + 1e-6:
            best, score, number = of_run, found, k
    if score <= _LEAST_SILHOUETTE:
        return torch.zeros_like(best), 0.0
    # Once more in the full space, from the centres that were found.
    centres = torch.stack([means[best == at].mean(dim=0) for at in range(number)])
    return _lloyd(means, centres)[0], score


def k_means(points: torch.Tensor, k: int, draw: torch.Generator) -> tuple[torch.Tensor, float]:
    """(R,) clusters and the sum of squared distances to their centres, the least of several starts.

    The first start takes the farthest point each time: where clusters lie farther apart than they are wide, it has one
    of each, and they are found exactly. The others are k-means++ (Arthur and Vassilvitskii, 2007).
    """
    best: tuple[torch.Tensor, float] | None = None
    for start in range(_STARTS):
        found = _lloyd(points, _starting(points, k, draw, farthest=start == 0))
        if best is None or found[1] < best[1]:
            best = found
    assert best is not None
    return best


def silhouette(distances: torch.Tensor, clusters: torch.Tensor) -> float:
    """Mean over points of (b - a) / max(a, b): a to its own cluster, b to the nearest other; 0 for points alone."""
    count = int(clusters.max()) + 1
    if count < 2:
        return 0.0
    member = torch.nn.functional.one_hot(clusters, count).to(distances.dtype)  # (R, k)
    sums, sizes = distances @ member, member.sum(dim=0)
    own = sums.gather(1, clusters[:, None]).squeeze(1) / (sizes[clusters] - 1).clamp_min(1)
    other = (sums / sizes.clamp_min(1)).masked_fill(member.bool() | (sizes == 0), torch.inf)
    nearest = other.min(dim=1).values
    scores = (nearest - own) / torch.maximum(nearest, own).clamp_min(1e-30)
    return float(scores.masked_fill(sizes[clusters] == 1, 0).mean())


def _starting(
    points: torch.Tensor, k: int, draw: torch.Generator, *, farthest: bool
) -> torch.Tensor:
    """(k, P) points to begin with."""
    first = int(torch.randint(len(points), (1,), generator=draw))
    chosen = [first]
    left = (points - points[first]).square().sum(dim=1)
    while len(chosen) < k:
        if farthest or not float(left.sum()) > 0:
            at = int(left.argmax())
        else:
            at = int(torch.multinomial(left.clamp_min(0), 1, generator=draw))
        chosen.append(at)
        left = torch.minimum(left, (points - points[at]).square().sum(dim=1))
    return points[chosen]


def _lloyd(points: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Clusters and squared distances after moving centres until no point changes its own."""
    of = torch.full((len(points),), -1)
    for _ in range(_ROUNDS):
        distances = torch.cdist(points, centres)
        now = distances.argmin(dim=1)
        if torch.equal(now, of):
            break
        of = now
        sums = torch.zeros_like(centres).index_add_(0, of, points)
        sizes = of.bincount(minlength=len(centres))
        # A centre without points stays where it is.
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centres)
    cost = float((points - centres[of]).square().sum(dtype=torch.float64))
    used = of.bincount(minlength=len(centres)) > 0
    return (used.cumsum(0) - 1)[of], cost


def _projected(means: torch.Tensor) -> torch.Tensor:
    """(R, d) the coordinates on the first principal components; clusters lie apart in these, if at all."""
    if min(means.shape) <= _DIMENSIONS:
        return means
    centred = (means - means.mean(dim=0)).double()
    if len(means) <= means.shape[1]:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        projected: torch.Tensor = (
            vectors[:, -_DIMENSIONS:] * values[-_DIMENSIONS:].clamp_min(0).sqrt()
        )
    else:
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        projected = centred @ vectors[:, -_DIMENSIONS:]
    return projected.to(torch.float32)
