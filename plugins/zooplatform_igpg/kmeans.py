"""k-means in torch: Lloyd's iterations from k-means++ seeds, and tables for the residuals of tables.

Legend for shapes: M vectors of d values, K codes, q levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["kmeans", "nearest", "nested_table", "residual_tables"]

_SLAB = 1 << 23  # distances that are held at once
_SEEDING = 64  # vectors for each code that seeds are drawn from
_ENOUGH = 1e-5  # share of the error below which another iteration is not worth it


def nearest(vectors: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(M,) index of the row of `table` (K, d) nearest to each of (M, d); the first of equals."""
    if table.shape[1] == 1:
        return _nearest_number(vectors.squeeze(1), table.squeeze(1))
    found = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    half = table.square().sum(1) / 2
    step = max(1, _SLAB // max(1, len(table)))
    for start in range(0, len(vectors), step):
        part = slice(start, start + step)
        distances = torch.addmm(half, vectors[part], table.T, alpha=-1)
        if distances.device.type == "cpu":  # numpy finds the least four times as fast
            found[part] = torch.from_numpy(distances.numpy().argmin(1))
        else:
            found[part] = distances.argmin(1)
    return found


def _nearest_number(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`nearest` for d = 1, by the middles between the sorted codes."""
    ordered, place = torch.sort(table, stable=True)
    middles = (ordered[1:] + ordered[:-1]) / 2
    return place[torch.bucketize(values.contiguous(), middles)]


def kmeans(
    vectors: torch.Tensor,
    number: int,
    *,
    seed: int,
    iterations: int = 25,
    held: torch.Tensor | None = None,
    say: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """(K, d) centres of (M, d).

    Args:
        vectors: float32, on any device.
        number: K.
        seed: of the first centres.
        iterations: at most so many of Lloyd's.
        held: (k, d) the first k centres, which stay where they are; none by default.
        say: called with the number of every iteration.

    Raises:
        ConfigError: there are fewer vectors than centres.
    """
    if len(vectors) < number:
        raise ConfigError(
            f"{len(vectors):,} chunks of weights are too few for a codebook of {number:,}. Fit on more "
            "networks, or set a smaller codebook_size."
        )
    draw = torch.Generator().manual_seed(seed)
    kept = 0 if held is None else len(held)
    centres = _seeds(vectors, number, draw, held)
    before = float("inf")
    for iteration in range(iterations):
        codes = nearest(vectors, centres)
        errors = (vectors - centres[codes]).square().sum(1)
        total = float(errors.sum(dtype=torch.float64))
        if before - total <= _ENOUGH * total:
            break
        before = total
        counts = torch.bincount(codes, minlength=number)
        sums = torch.zeros_like(centres).index_add_(0, codes, vectors)
        moved = torch.arange(number, device=vectors.device) >= kept
        filled = (counts > 0) & moved
        centres[filled] = sums[filled] / counts[filled].unsqueeze(1).to(sums.dtype)
        dead = moved & ~filled
        empty = int(dead.sum())
        if empty:  # dead codes begin again where the error is greatest
            centres[dead] = vectors[errors.topk(empty).indices]
        if say is not None:
            say(iteration + 1)
    return centres


def nested_table(
    vectors: torch.Tensor,
    number: int,
    *,
    seed: int,
    iterations: int = 25,
    say: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """(K, d) centres of which the first 2, 4, 8, ... are good tables too: each is held while the next is learnt.

    K is a power of two.

    Raises:
        ConfigError: as `kmeans`.
    """
    found: torch.Tensor | None = None
    size = min(2, number)
    while size <= number:
        found = kmeans(vectors, size, seed=seed, iterations=iterations, held=found, say=say)
        size *= 2
    assert found is not None
    return found


def _seeds(
    vectors: torch.Tensor, number: int, draw: torch.Generator, held: torch.Tensor | None
) -> torch.Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007) on some of the vectors, after those that are held."""
    most = max(_SEEDING * number, 4096)
    if len(vectors) > most:
        chosen = torch.randperm(len(vectors), generator=draw)[:most]
        vectors = vectors[chosen.to(vectors.device)]
    centres = torch.empty((number, vectors.shape[1]), dtype=vectors.dtype, device=vectors.device)
    if held is None:
        held = vectors[int(torch.randint(len(vectors), (1,), generator=draw))][None]
    centres[: len(held)] = held
    distances = (vectors - held[nearest(vectors, held)]).square().sum(1)
    for index in range(len(held), number):
        # Drawn by the running sum on the CPU: one draw for every device, and no limit to the number of choices.
        running = distances.double().cpu().cumsum(0)
        if float(running[-1]) > 0:
            point = torch.rand(1, generator=draw, dtype=torch.float64) * running[-1]
            at = min(int(torch.searchsorted(running, point)), len(vectors) - 1)
        else:  # fewer distinct vectors than centres
            at = int(torch.randint(len(vectors), (1,), generator=draw))
        centres[index] = vectors[at]
        distances = torch.minimum(distances, (vectors - centres[index]).square().sum(1))
    return centres


def residual_tables(
    vectors: torch.Tensor,
    number: int,
    levels: int,
    *,
    seed: int,
    iterations: int = 25,
    say: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """(q, K, d): a table of centres, one of what it leaves of every vector, and so on.

    Raises:
        ConfigError: as `kmeans`.
    """
    rest = vectors
    tables = []
    for level in range(levels):
        table = kmeans(rest, number, seed=seed + level, iterations=iterations, say=say)
        tables.append(table)
        if level + 1 < levels:
            rest = rest - table[nearest(rest, table)]
    return torch.stack(tables)
