"""The codes of a layer's units, of which the best few beginnings are kept.

Coding chunk after chunk, each with the code that leaves least, is greedy: a code that is worse by itself may leave an
error that later chunks make up for better. So for every unit the `width` best sequences of codes go on side by side
(beam search; what GPTQ does, arXiv 2210.17323, is width 1). The error that a sequence leaves is exact at every chunk:
that of the outputs once the weights still to be coded have made up for it as well as they can.

Legend for shapes: B networks, O units, I inputs of a unit, J columns of a chunk, w sequences, K codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Column", "search"]

_AT_ONCE = 1 << 24  # errors of candidates that are held at once


class Column(NamedTuple):
    """A chunk of every unit.

    Attributes:
        own: J of the inputs.
        table: (K, J) in normalised weights.
        metric: (B or 1, J, J), which an error in normalised weights is multiplied by before it is squared.
        inverse: (B or 1, J, J), which an error is multiplied by for what it leaves.
        later: (B or 1, J, I - own.stop), how weights still to be coded make up for what is left.
    """

    own: slice
    table: torch.Tensor
    metric: torch.Tensor
    inverse: torch.Tensor
    later: torch.Tensor


def search(
    weights: torch.Tensor,
    mean: torch.Tensor,
    spread: torch.Tensor,
    columns: Mapping[int, Column],
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes (B, O, chunks) of weights (B, O, I) and the weights that they stand for.

    Args:
        weights: what is to be coded.
        mean, spread: (O, I), the normalisation.
        columns: the chunks in the order of coding, by their number.
        width: w.
    """
    most = max((len(one.table) for one in columns.values()), default=1)
    step = max(1, _AT_ONCE // max(1, len(weights) * width * most))
    if weights.shape[1] > step:  # units have nothing to do with each other
        parts = [
            search(
                weights[:, at : at + step],
                mean[at : at + step],
                spread[at : at + step],
                columns,
                width,
            )
            for at in range(0, weights.shape[1], step)
        ]
        return torch.cat([codes for codes, _ in parts], 1), torch.cat([one for _, one in parts], 1)
    number, units, _ = weights.shape
    # Of every sequence: weights still to be coded, weights coded, codes in the order of coding, and what it leaves.
    rest, found = weights.unsqueeze(2), weights.unsqueeze(2).clone()
    path = torch.empty((number, units, 1, 0), dtype=torch.int64, device=weights.device)
    cost = torch.zeros((number, units, 1), device=weights.device)
    for own, table, metric, inverse, later in columns.values():
        middle, scale = mean[:, None, own], spread[:, None, own]
        left = ((rest[..., own] - middle) / scale).flatten(1, 2)
        errors = _errors(left @ metric, table @ metric, cost.flatten(1))
        errors = errors.view(number, units, -1, len(table))
        many = min(width, errors[0, 0].numel())
        cost, chosen = errors.flatten(2).topk(many, dim=2, largest=False)
        parent, code = chosen // len(table), chosen % len(table)
        rest, found, path = (_taken(one, parent) for one in (rest, found, path))
        path = torch.cat([path, code.unsqueeze(3)], dim=3)
        found[..., own] = table[code] * scale + middle
        error = (rest[..., own] - found[..., own]).flatten(1, 2) @ inverse
        rest[..., own.stop :] -= (error @ later).view(number, units, many, -1)
    best = cost.argmin(2, keepdim=True)
    in_order = _taken(path, best).squeeze(2)
    return in_order[..., torch.tensor(list(columns)).argsort()], _taken(found, best).squeeze(2)


def _errors(wanted: torch.Tensor, shown: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """(B, M, K) squared distances of (B, M, J) to (B or 1, K, J), and `more` (B, M) of each row.

    In as few passes as possible: there are millions.
    """
    shown = shown.expand(len(wanted), -1, -1)
    sizes = shown.square().sum(2).unsqueeze(1)
    found = torch.baddbmm(sizes, wanted, shown.transpose(1, 2), alpha=-2)
    return found.add_((wanted.square().sum(2) + more).unsqueeze(2))


def _taken(given: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, O, w, ...) of the sequences at `places` (B, O, w)."""
    return given.gather(2, places.unsqueeze(3).expand(-1, -1, -1, given.shape[3]))
