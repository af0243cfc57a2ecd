"""Distances between networks that no order of hidden units changes.

Networks are aligned by weight matching (git re-basin: Ainsworth et al., 2023, arXiv 2209.04836, algorithm 1): the
hidden units of one group after the other are put into that order in which the weights lie nearest to the reference, a
linear assignment problem, until no group changes any more. That finds a local optimum. So it begins twice: with the
order as it is, whence the result is never farther away than the network was; and with an order found from the input on
by the incoming weights alone, which finds the order of a permuted copy exactly.

    aligned = match(weights, reference, vector)  # (B, P), the same functions
    distances, indices = nearest(generated, training, vector)

Legend for shapes: B networks, M others, P values of one, n units of a group, r values of a unit, o outputs of the next
layer, k values per output that a unit feeds. Needs scipy (`pip install 'zooplatform[generate]'`).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from zooplatform.errors import ConfigError, NotInstalledError
from zooplatform.symmetry.groups import hidden_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from zooplatform.layout import Field, VectorLayout
    from zooplatform.symmetry.groups import HiddenGroup

__all__ = ["assignment", "leave_one_out", "match", "nearest"]

_VALUES = 1 << 24  # values of networks that are worked on at once


def match(
    weights: torch.Tensor,
    reference: torch.Tensor,
    vector: VectorLayout,
    *,
    sweeps: int = 20,
    seed: int = 0,
) -> torch.Tensor:
    """(B, P) the networks with their hidden units in the order in which they lie nearest to the reference.

    Args:
        weights: (B, P), not changed. Networks with values that are not finite stay as they are.
        reference: (P,), or (B, P) with one for each network.
        vector: where the tensors lie.
        sweeps: how often every group is looked at, at most.
        seed: of the orders in which groups are looked at.

    Raises:
        NotInstalledError: scipy is missing.
    """
    result = weights.clone()
    groups = hidden_groups(vector)
    if not groups or not len(weights):
        return result
    solver = assignment()
    references = reference.expand(len(weights), -1)
    usable = (weights.isfinite().all(dim=1) & references.isfinite().all(dim=1)).nonzero().squeeze(1)
    for at in _blocks(usable, vector.width):
        own, wanted = weights[at].float(), references[at].float()
        as_given = _descend(own, wanted, groups, sweeps, seed, solver)
        forward = own.clone()
        for group in groups:
            _reorder(forward, group, solver(_alike(forward, wanted, group, outgoing=False)))
        forward = _descend(forward, wanted, groups, sweeps, seed, solver)
        better = (forward - wanted).norm(dim=1) < (as_given - wanted).norm(dim=1)
        result[at] = torch.where(better[:, None], forward, as_given).to(weights.dtype)
    return result


def nearest(
    weights: torch.Tensor,
    others: torch.Tensor,
    vector: VectorLayout,
    *,
    candidates: int = 5,
    align: bool = True,
    apart: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of the others: Euclidean distances (B,) float32 and which they are (B,) int64.

    Distances are minimised over the orders of hidden units. Matching every pair would take too long, so it is done for
    those `candidates` that lie nearest as they are, and as many by the distance of sorted weights, which is a lower
    bound of the distance that can be reached (`sorted_weights`).

    Args:
        weights: (B, P).
        others: (M, P).
        vector: where the tensors lie.
        candidates: see above.
        align: False takes networks as they are; nothing is matched then.
        apart: (B, M) bool, True where a pair counts. None counts all.

    Returns:
        Networks that are not finite, or have no other that counts, are infinitely far from everything; their index is
        -1.

    Raises:
        ConfigError: there are no others, or no candidates are asked for.
        NotInstalledError: scipy is missing, which aligning needs.
    """
    if not len(others) or candidates < 1:
        raise ConfigError(
            f"The nearest of {len(others)} networks among {candidates} candidates cannot be found; give at least one."
        )
    mine, theirs = weights.float(), others.float()
    counts = mine.isfinite().all(dim=1)[:, None] & theirs.isfinite().all(dim=1)[None]
    if apart is not None:
        counts &= apart.to(counts.device)
    chosen = _nearest_as_they_are(mine, theirs, counts, candidates)  # (B, c)
    align = align and bool(hidden_groups(vector))
    if align:
        by_bound = _nearest_as_they_are(
            sorted_weights(mine, vector), sorted_weights(theirs, vector), counts, candidates
        )
        chosen = torch.cat([chosen, by_bound], dim=1)
    row = torch.arange(len(mine), device=mine.device).repeat_interleave(chosen.shape[1])
    distances = torch.full((len(row),), torch.inf, device=mine.device)
    column = chosen.flatten()
    counted = counts[row, column].nonzero().squeeze(1)
    for at in _blocks(counted, vector.width):
        own, wanted = mine[row[at]], theirs[column[at]]
        if align:
            own = match(own, wanted, vector)
        distances[at] = (own - wanted).norm(dim=1)
    best = distances.view(chosen.shape).min(dim=1)
    indices = chosen.gather(1, best.indices[:, None]).squeeze(1)
    return best.values, torch.where(best.values.isfinite(), indices, -1)


def leave_one_out(
    weights: torch.Tensor,
    runs: Sequence[object] | npt.NDArray[Any] | torch.Tensor,
    vector: VectorLayout,
    *,
    rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
    candidates: int = 5,
    align: bool = True,
) -> torch.Tensor:
    """(N,) or (len(rows),): how far each network is from the nearest network of another run.

    Args:
        weights: (N, P).
        runs: N names or numbers; networks of one run (checkpoints of one training) do not count for each other.
        vector: where the tensors lie.
        rows: the networks that are asked about; None asks about all. All others count either way.
        candidates, align: as in `nearest`.

    Returns:
        Euclidean distances, infinite where every network is of one run.

    Raises:
        ConfigError: there is not one run for each network.
        NotInstalledError: scipy is missing, which aligning needs.
    """
    names = runs.tolist() if hasattr(runs, "tolist") else list(runs)
    if len(names) != len(weights):
        raise ConfigError(
            f"There are {len(names)} runs for {len(weights)} networks; give one each."
        )
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    run = torch.tensor([numbers[name] for name in names], device=weights.device)
    asked = torch.arange(len(weights)) if rows is None else torch.as_tensor(rows)
    if not len(asked):
        return torch.zeros(0)
    apart = run[asked][:, None] != run[None]
    return nearest(
        weights[asked], weights, vector, candidates=candidates, align=align, apart=apart
    )[0]


def sorted_weights(weights: torch.Tensor, vector: VectorLayout) -> torch.Tensor:
    """(B, P) networks with values sorted wherever a permutation may move them; the same for every order of units.

    Each tensor is sorted along the axes that hidden units are, place by place: kernels of the first layer over its
    units, those of a layer between two groups over pairs of units. No order of the units of two networks brings them
    nearer than these vectors are: pairing sorted values costs least, and permutations are some of the pairings.
    """
    result = weights.clone()
    first = {field.spec.name for group in hidden_groups(vector) for field in group.rows}
    second = {group.target.spec.name: group for group in hidden_groups(vector)}
    for field in vector.fields:
        name = field.spec.name
        if field.aside or (name not in first and name not in second):
            continue
        part = _part(result, field)
        if name in second:
            group = second[name]
            values = part.view(len(result), -1, group.units, group.block)  # (B, o, n, k)
            if name in first:
                values = values.flatten(1, 2)
                part.copy_(values.sort(dim=1).values.flatten(1))
            else:
                part.copy_(values.sort(dim=2).values.flatten(1))
        else:
            values = part.view(len(result), field.spec.shape[0], -1)  # (B, n, r)
            part.copy_(values.sort(dim=1).values.flatten(1))
    return result


# --- one group after the other ----------------------------------------------------------------------------------------


def _descend(
    weights: torch.Tensor,
    references: torch.Tensor,
    groups: Sequence[HiddenGroup],
    sweeps: int,
    seed: int,
    solver: Any,
) -> torch.Tensor:
    """(B, P) the networks after reordering group by group until nothing changes."""
    result = weights.clone()
    moving = torch.arange(len(weights))
    draw = torch.Generator().manual_seed(seed)
    for _ in range(sweeps):
        own, wanted = result[moving], references[moving]
        changed = torch.zeros(len(moving), dtype=torch.bool)
        for at in torch.randperm(len(groups), generator=draw).tolist():
            alike = _alike(own, wanted, groups[at])
            order = solver(alike)
            # An order that gains no more than rounding would go round in circles between equal units.
            gain = alike.gather(2, order[:, :, None]).squeeze(2).sum(dim=1)
            now = alike.diagonal(dim1=1, dim2=2).sum(dim=1)
            better = gain > now + 1e-6 * alike.abs().amax(dim=(1, 2))
            order[~better] = torch.arange(groups[at].units)
            changed |= better
            _reorder(own, groups[at], order)
        result[moving] = own
        moving = moving[changed]
        if not len(moving):
            break
    return result


def _alike(
    weights: torch.Tensor, references: torch.Tensor, group: HiddenGroup, *, outgoing: bool = True
) -> torch.Tensor:
    """(B, n, n) float64 on the CPU: inner products of unit i of the reference and unit j of the network."""
    alike: torch.Tensor | None = None
    for field in group.rows:
        shape = (len(weights), group.units, -1)
        own, wanted = _part(weights, field).view(shape), _part(references, field).view(shape)
        found = torch.einsum("bir,bjr->bij", wanted.double(), own.double())
        alike = found if alike is None else alike + found
    assert alike is not None
    if outgoing:
        by_unit = (len(weights), -1, group.units, group.block)
        own = _part(weights, group.target).view(by_unit)
        wanted = _part(references, group.target).view(by_unit)
        alike = alike + torch.einsum("boik,bojk->bij", wanted.double(), own.double())
    return alike.cpu()


def _reorder(weights: torch.Tensor, group: HiddenGroup, order: torch.Tensor) -> None:
    """Put unit `order[b, i]` of network b at place i, in place."""
    rows = torch.arange(len(weights), device=weights.device)[:, None]
    order = order.to(weights.device)
    for field in group.rows:
        values = _part(weights, field).view(len(weights), group.units, -1)
        values.copy_(values[rows, order])
    values = _part(weights, group.target).view(len(weights), -1, group.units, group.block)
    values = values.transpose(1, 2)  # (B, n, o, k)
    values.copy_(values[rows, order])


def _part(weights: torch.Tensor, field: Field) -> torch.Tensor:
    """The values of a tensor in (B, P) networks, a view."""
    return weights[:, field.offset : field.offset + field.spec.num_elements]


def assignment() -> Any:
    """A solver: (B, n, n) similarities of wanted and own units to (B, n) orders of largest sum.

    Raises:
        NotInstalledError: scipy is missing.
    """
    if find_spec("scipy") is None:
        raise NotInstalledError(
            "Matching of hidden units", ["scipy"], "pip install 'zooplatform[generate]'"
        )
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    def solve(alike: torch.Tensor) -> torch.Tensor:
        orders = [linear_sum_assignment(one, maximize=True)[1] for one in alike.numpy()]
        return torch.from_numpy(np.stack(orders))

    return solve


# --- candidates -------------------------------------------------------------------------------------------------------


def _nearest_as_they_are(
    weights: torch.Tensor, others: torch.Tensor, counts: torch.Tensor, candidates: int
) -> torch.Tensor:
    """(B, c) the c nearest of the others that count; fewer than `candidates` when there are not so many."""
    amount = min(candidates, len(others))
    usable = others.nan_to_num(0, 0, 0)
    centre = usable.mean(dim=0)  # differences of large numbers lose digits
    usable = usable - centre
    chosen = []
    for at in _blocks(torch.arange(len(weights)), len(others)):
        own = weights[at].nan_to_num(0, 0, 0) - centre
        distances = torch.cdist(own, usable).masked_fill(~counts[at], torch.inf)
        chosen.append(distances.topk(amount, dim=1, largest=False).indices)
    return torch.cat(chosen)


def _blocks(indices: torch.Tensor, width: int) -> Iterator[torch.Tensor]:
    """The indices in parts, each of so many rows of `width` values as are worked on at once."""
    size = max(1, _VALUES // max(1, width))
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
