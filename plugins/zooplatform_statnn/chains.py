"""Statistics of layers that follow each other: what passes through hidden units, forwards and backwards.

A unit's incoming and outgoing weights belong together, which statistics of single layers cannot see. All sums run over
units, so that no order of the hidden units changes them. Legend for shapes: see `views`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zooplatform_statnn.groups import (
    columns,
    correlation,
    participation,
    quantile_meanings,
    spectrum_shape,
)
from zooplatform_statnn.views import TINY, quantiles, safe_log, singular_values, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform_statnn.views import LayerView

__all__ = ["CHAIN_MEANINGS", "LINK_MEANINGS", "chain_statistics", "link_statistics"]

_FEW = (0.0, 0.1, 0.5, 0.9, 1.0)

LINK_MEANINGS = {
    "linked": "1 where a next layer reads the units of this one; where not, the rest of this group is 0",
    "through_log": "mean log of incoming times outgoing norm of the hidden units",
    "through_std": "standard deviation of that log",
    **quantile_meanings("through", _FEW, "incoming times outgoing norm over the mean"),
    "through_unused": "share of hidden units where it is below a tenth of the mean",
    "in_out_corr": "correlation of the logs of incoming and outgoing norm",
    "balance": "mean log of outgoing over incoming norm",
    "aligned": "cosine of the inner products of incoming and of outgoing weights of the hidden units",
    "product_log": "log Frobenius norm of the product of both layers' kernel sums, over those of the two",
    "product_gain": "log of the product's spectral norm over those of the two",
    **{
        f"product_{name}": f"{text} of the product"
        for name, text in (
            ("top1", "singular value 1 over the Frobenius norm"),
            ("top2", "singular value 2 over it"),
            ("top3", "singular value 3 over it"),
            ("top4", "singular value 4 over it"),
            ("q25", "25 % quantile of the singular values over the largest"),
            ("q50", "50 % quantile of them"),
            ("q75", "75 % quantile of them"),
            ("stable_rank", "log of Frobenius norm squared over spectral norm squared"),
            ("effective_rank", "exponential of the entropy over the full rank"),
        )
    },
    "bias_through": "log(1 + norm of the biases seen through the next layer's kernel sums, over its own spread)",
}

CHAIN_MEANINGS = {
    "path_log": "log of the mean over units of the running product of squared weights (path norm)",
    "path_units": "share of units that carry it",
    "mean_log": "log of the root mean square over units of the running product of kernel sums applied to ones",
    "mean_common": "absolute mean of that over its root mean square",
    "relevance_units": "share of units that carry the product of forward and backward path norms",
    "relevance_std": "standard deviation of its log",
    **quantile_meanings("relevance", _FEW, "that product over its mean"),
    "backward_log": "log of the mean path norm from this layer's units to the outputs",
}


def link_statistics(view: LayerView, after: LayerView | None) -> torch.Tensor:
    """(B, names) of a layer and the one that reads its units."""
    if after is None:
        return torch.zeros(view.num_networks, len(LINK_MEANINGS))
    into, out = view.in_norms, after.out_norms
    floor_in, floor_out = 1e-3 * view.rms[:, None] + TINY, 1e-3 * after.rms[:, None] + TINY
    log_in, log_out = (into + floor_in).log(), (out + floor_out).log()
    through = into * out
    relative = through / through.mean(dim=1, keepdim=True).clamp_min(TINY)
    product = (
        after.sums.double() @ view.sums.double() if _small(view, after) else after.sums @ view.sums
    )
    norms = [_frobenius(view.sums), _frobenius(after.sums)]
    spectrum = singular_values(product)
    tops = [view.sums_spectrum[:, 0], after.sums_spectrum[:, 0]]
    return columns(
        torch.ones(view.num_networks),
        (log_in + log_out).mean(dim=1),
        spread(log_in + log_out),
        quantiles(relative, _FEW),
        (relative < 0.1).float().mean(dim=1),
        correlation(log_in, log_out),
        (log_out - log_in).mean(dim=1),
        _aligned(view, after),
        safe_log(_frobenius(product)) - safe_log(norms[0]) - safe_log(norms[1]),
        safe_log(spectrum[:, 0]) - safe_log(tops[0]) - safe_log(tops[1]),
        *spectrum_shape(spectrum),
        _bias_through(view, after),
    )


def _small(view: LayerView, after: LayerView) -> bool:
    return max(view.sums[0].numel(), after.sums[0].numel()) <= 1 << 20


def _frobenius(matrix: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = matrix.square().sum(dim=(1, 2))
    return total.sqrt()


def _aligned(view: LayerView, after: LayerView) -> torch.Tensor:
    """(B,) how much the next layer reads what this one writes strongly: 1 is the same directions."""
    incoming, outgoing = view.rows_gram, after.inputs_gram
    if incoming.shape[1] < view.plan.shape[0]:
        # Both hold their own strongest units only; the units of the two are not the same.
        return torch.zeros(view.num_networks)
    dot: torch.Tensor = (incoming * outgoing).sum(dim=(1, 2))
    lengths: torch.Tensor = _frobenius(incoming) * _frobenius(outgoing)
    cosine: torch.Tensor = dot / lengths.clamp_min(TINY * TINY)
    return cosine


def _bias_through(view: LayerView, after: LayerView) -> torch.Tensor:
    biases = view.biases
    if biases is None or biases.shape[1] != view.plan.shape[0]:
        return torch.zeros(view.num_networks)
    seen = (after.sums @ biases[:, :, None])[..., 0].square().mean(dim=1).sqrt()
    own = after.rms * (after.plan.shape[1] * after.plan.shape[2]) ** 0.5
    ratio: torch.Tensor = seen / own.clamp_min(TINY)
    return ratio.clamp_max(1e6).log1p()


def chain_statistics(views: Sequence[LayerView]) -> list[torch.Tensor]:
    """(B, names) of every layer: running products from the first matrix layer of its chain, and back from the last.

    Products are normalised layer by layer and their logs summed, so that no depth overflows. A layer that follows no
    other begins anew.
    """
    matrices = [at for at, view in enumerate(views) if view.plan.is_matrix]
    forward: dict[int, tuple[torch.Tensor, ...]] = {}
    for place, at in enumerate(matrices):
        view = views[at]
        before = forward[matrices[place - 1]] if view.plan.follows else None
        forward[at] = _forwards(view, before)
    empty = torch.zeros(views[0].num_networks, len(CHAIN_MEANINGS))
    found = [empty] * len(views)
    energy: torch.Tensor | None = None
    log = torch.zeros(views[0].num_networks)
    for place, at in reversed(list(enumerate(matrices))):
        view = views[at]
        carried, path_log, mean, mean_log = forward[at]
        linked = place + 1 < len(matrices) and views[matrices[place + 1]].plan.follows
        if linked and energy is not None:
            after = views[matrices[place + 1]]
            energy = (after.energy.mT @ energy[:, :, None])[..., 0] * after.plan.shape[2]
            energy, gain = _normalised(energy)
            log = log + gain
        else:
            energy, log = torch.ones_like(carried), torch.zeros_like(path_log)
        relevance = carried * energy
        relevance = relevance / relevance.mean(dim=1, keepdim=True).clamp_min(TINY)
        rms = mean.square().mean(dim=1).sqrt()
        found[at] = columns(
            path_log,
            participation(carried),
            mean_log,
            mean.mean(dim=1).abs() / rms.clamp_min(TINY),
            participation(relevance),
            spread((relevance + 1e-3).log()),
            quantiles(relevance, _FEW),
            log,
        )
    return found


def _forwards(
    view: LayerView, before: tuple[torch.Tensor, ...] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Path energy (B, O) and its log (B,), response to ones (B, O) and its log (B,); the vectors normalised."""
    if before is None:
        ones = torch.ones(view.num_networks, view.plan.shape[1])
        before = (ones, torch.zeros(len(ones)), ones, torch.zeros(len(ones)))
    energy, energy_log, mean, mean_log = before
    energy = (view.energy @ energy[:, :, None])[..., 0] * view.plan.shape[2]
    energy, gain = _normalised(energy)
    mean = (view.sums @ mean[:, :, None])[..., 0]
    rms = mean.square().mean(dim=1).sqrt()
    return (
        energy,
        energy_log + gain,
        mean / rms[:, None].clamp_min(TINY),
        mean_log + safe_log(rms),
    )


def _normalised(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, n) over their mean, and its log (B,)."""
    mean = values.mean(dim=1)
    return values / mean[:, None].clamp_min(TINY), safe_log(mean)
