"""What a network does with fixed inputs, in numbers that no order of hidden units or classes changes.

K smooth random fields, the same for all networks, go through the network as `reading` reads it. Of the answers only
what is alike in all classification tasks is kept: how far the logits move between inputs and how far classes differ
whatever the input is, how sure the answers are one by one and on average (their difference is the mutual information of
input and class), how many classes and directions are used. A network that has learnt to tell images apart moves its
logits with the input, in many directions and with margins, whichever images it has learnt from.

Legend for shapes: B networks, P values of one, K inputs, S side of an input, O classes, R numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from zooplatform_sne.fields import smooth_fields
from zooplatform_sne.reading import CHANNELS, INPUTS_AT_ONCE, logits, readable_chain
from zooplatform_statnn.memory import remembered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.interfaces import NetworkBatch
    from zooplatform_sne.chains import Joint

__all__ = ["describe_responses", "responses"]

_INPUTS, _SIDE = 16, 16
_LARGEST = 1e6  # of a logit
_TINY = 1e-6
_QUANTILES = (0.1, 0.5, 0.9)
_MEANINGS = {
    "spread": "log of the root mean square of the logits around their mean over inputs",
    "offset": "log of the root mean square of that mean: what is answered whatever the input is",
    "offset_to_spread": "log(1 + offset over spread)",
    "entropy": "mean entropy of the answers over log O",
    "entropy_of_mean": "entropy of the mean answer over log O",
    "information": "their difference: mutual information of input and class over log O",
    "confidence": "mean probability of the likeliest class",
    "entropy_of_choices": "entropy of the shares of inputs that each class is the likeliest of, over log O",
    "directions": "participation ratio of the covariance of the logits over O",
    "cubes": "log of the sum of the cubed eigenvalues of that covariance, for a trace of 1",
    "fourths": "log of the sum of their fourth powers",
    **{
        f"margin_q{round(100 * q)}": f"log(1 + {round(100 * q)} % quantile of likeliest minus second logit)"
        for q in _QUANTILES
    },
}


def describe_responses() -> dict[str, str]:
    """What each of the R numbers is, by its name: those read with ReLU, then saturating, then whether it was read."""
    found = {
        f"{activation}_{name}": meaning
        for activation in ("relu", "saturating")
        for name, meaning in _MEANINGS.items()
    }
    return found | {"read": "1; 0 where a network is no chain of layers, and all else is 0, too"}


def responses(batch: NetworkBatch) -> torch.Tensor:
    """(B, R) float32, finite; kept in memory as `zooplatform_statnn.features` keeps statistics."""
    width = len(describe_responses())
    chain = readable_chain(batch.vector)
    if chain is None:
        return torch.zeros(len(batch.weights), width)
    return remembered(batch, "responses", (width,), lambda rows: _responses(rows, chain))


@torch.no_grad()
def _responses(weights: torch.Tensor, chain: Sequence[Joint]) -> torch.Tensor:
    """(B, R) of weights (B, P)."""
    weights = weights.to(torch.float32).nan_to_num(0.0, _LARGEST, -_LARGEST)
    parts = torch.split(weights, max(1, INPUTS_AT_ONCE // _INPUTS))
    answers = zip(*(logits(_inputs(), part, chain) for part in parts), strict=True)
    found = [_summary(torch.cat(one)) for one in answers]
    return torch.cat([*found, weights.new_ones(len(weights), 1)], dim=1)


def _summary(found: torch.Tensor) -> torch.Tensor:
    """(B, R of one activation) from logits (B, K, O)."""
    found = found.nan_to_num(0.0, _LARGEST, -_LARGEST).clamp(-_LARGEST, _LARGEST)
    if found.shape[2] == 1:  # the logit of one class against another
        found = functional.pad(found, (0, 1))
    classes = found.shape[2]
    found = found - found.mean(dim=2, keepdim=True)
    mean = found.mean(dim=1, keepdim=True)
    moved = found - mean
    spread, offset = _rms(moved), _rms(mean)
    probabilities = found.softmax(dim=2)
    entropy = _entropy(probabilities).mean(dim=1)
    of_mean = _entropy(probabilities.mean(dim=1))
    top = found.topk(2, dim=2)
    margins = (top.values[..., 0] - top.values[..., 1]).quantile(
        found.new_tensor(_QUANTILES), dim=1
    )
    chosen = functional.one_hot(top.indices[..., 0], classes).to(found.dtype).mean(dim=1)
    scaled = moved / spread.clamp_min(_TINY)[:, None, None]
    covariance = scaled.transpose(1, 2) @ scaled
    trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(_TINY)
    covariance = covariance / trace[:, None, None]
    squared = covariance @ covariance
    second = squared.diagonal(dim1=1, dim2=2).sum(dim=1)
    return torch.stack(
        [
            spread.clamp_min(_TINY).log(),
            offset.clamp_min(_TINY).log(),
            (offset / spread.clamp_min(_TINY)).log1p(),
            entropy / math.log(classes),
            of_mean / math.log(classes),
            (of_mean - entropy) / math.log(classes),
            probabilities.amax(dim=2).mean(dim=1),
            _entropy(chosen) / math.log(classes),
            1 / (classes * second.clamp_min(_TINY)),
            (squared * covariance).sum(dim=(1, 2)).clamp_min(_TINY).log(),
            squared.square().sum(dim=(1, 2)).clamp_min(_TINY).log(),
            *margins.log1p(),
        ],
        dim=1,
    )


def _rms(values: torch.Tensor) -> torch.Tensor:
    """(B,) root mean square of (B, ..., ...)."""
    return values.square().mean(dim=(1, 2)).sqrt()


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """In nats, over the last axis."""
    found: torch.Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return found


@lru_cache(maxsize=1)
def _inputs() -> torch.Tensor:
    """(K, channels, S, S) in the range of grey levels."""
    return smooth_fields(_INPUTS, _SIDE)[:, None].expand(-1, CHANNELS, -1, -1).contiguous()
