"""Groups of statistics of one layer, each invariant under any order of the hidden units.

A group is a tuple of names and a function from a layer to (B, names) values, or None where the layer has no such thing;
the values are 0 then, and a flag of the group `flags` says so. Legend for shapes: see `views`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform_statnn.views import (
    TINY,
    ordered,
    quantiles,
    quantiles_of_ordered,
    safe_log,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform_statnn.views import LayerView

__all__ = ["PLAIN_GROUPS", "RICH_GROUPS", "Group"]

_FIVE = (0.0, 0.25, 0.5, 0.75, 1.0)
_SHAPE = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_FEW = (0.0, 0.1, 0.5, 0.9, 1.0)
# A unit is unused below this share of what is usual in its layer.
_UNUSED = 0.1


class Group(NamedTuple):
    """Names, each with a line of documentation, and the function that computes them."""

    meanings: dict[str, str]
    compute: Callable[[LayerView], torch.Tensor | None]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.meanings)


def quantile_meanings(prefix: str, at: tuple[float, ...], what: str) -> dict[str, str]:
    return {f"{prefix}_q{round(100 * q):02d}": f"{round(100 * q)} % quantile of {what}" for q in at}


def columns(*parts: torch.Tensor) -> torch.Tensor:
    """(B, n) from parts of (B,) or (B, m)."""
    return torch.cat([p[:, None] if p.ndim == 1 else p for p in (q.float() for q in parts)], dim=1)


def _relative(values: torch.Tensor) -> torch.Tensor:
    """(B, n) as multiples of their mean."""
    return values / values.mean(dim=1, keepdim=True).clamp_min(TINY)


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B,) Pearson's correlation of (B, n) with (B, n); 0 where one of them hardly varies."""
    a, b = a.double(), b.double()
    scale = a.abs().mean(dim=1) * b.abs().mean(dim=1)
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return (a * b).mean(dim=1) / (spread(a) * spread(b) + 1e-6 * scale + TINY)


def participation(values: torch.Tensor) -> torch.Tensor:
    """(B,) share of the n that carry (B, n) non-negative values: 1 when all are equal, 1/n when one carries all."""
    values = values.double()
    total = values.sum(dim=1)
    count = total.square() / values.square().sum(dim=1).clamp_min(TINY * TINY)
    return count / values.shape[1]


# --- the statistics of Unterthiner et al. (2020) ------------------------------------------------


def _moments(values: torch.Tensor, in_order: torch.Tensor) -> torch.Tensor:
    # Two passes in double precision: float32 loses the mean of large layers.
    mean = values.mean(dim=1, dtype=torch.float64)
    var = (values - mean.float()[:, None]).square().mean(dim=1)
    return columns(mean, var, quantiles_of_ordered(in_order, _FIVE))


def _plain_weights(view: LayerView) -> torch.Tensor | None:
    return _moments(view.values, view.ordered_values)


def _plain_biases(view: LayerView) -> torch.Tensor | None:
    return None if view.biases is None else _moments(view.biases, ordered(view.biases))


def _plain_flags(view: LayerView) -> torch.Tensor | None:
    has_bias = torch.full((view.num_networks,), float(view.biases is not None))
    return columns(has_bias, view.bad_share)


PLAIN_GROUPS = (
    Group(
        {
            "weight_mean": "mean of the weights",
            "weight_var": "their variance",
            **quantile_meanings("weight", _FIVE, "the weights"),
        },
        _plain_weights,
    ),
    Group(
        {
            "bias_mean": "mean of the biases",
            "bias_var": "their variance",
            **quantile_meanings("bias", _FIVE, "the biases"),
        },
        _plain_biases,
    ),
    Group(
        {
            "has_bias": "1 where the layer has biases; where not, all that is said of biases is 0",
            "bad_share": "share of values that are no finite number or beyond 1e9: they count as 0 and 1e9",
        },
        _plain_flags,
    ),
)


# --- scale and shape of the distribution --------------------------------------------------------


def _scale(view: LayerView) -> torch.Tensor | None:
    _, inputs, taps = view.plan.shape
    log_rms = safe_log(view.rms)
    has_kernel = torch.full((view.num_networks,), float(view.plan.kernel is not None))
    follows = torch.full((view.num_networks,), float(view.plan.follows))
    return columns(
        log_rms, log_rms + 0.5 * torch.tensor(float(inputs * taps)).log(), has_kernel, follows
    )


def _shape(view: LayerView) -> torch.Tensor | None:
    values = view.values
    scale = values.square().mean(dim=1, keepdim=True).sqrt().clamp_min(TINY)
    unit = values / scale
    mean = unit.mean(dim=1, keepdim=True)
    centred = unit - mean
    square = centred.square()
    var = square.mean(dim=1).clamp_min(1e-6)
    skew = (square * centred).mean(dim=1) / var.pow(1.5)
    kurtosis = square.square().mean(dim=1) / var.square()
    return columns(
        mean,
        unit.abs().mean(dim=1),
        skew,
        kurtosis.clamp_min(1).log(),
        (unit.abs() < _UNUSED).float().mean(dim=1),
        quantiles_of_ordered(view.ordered_values, _SHAPE) / scale,
    )


# --- units ---------------------------------------------------------------------------------------


def _units(view: LayerView) -> torch.Tensor | None:
    into, out = _relative(view.in_norms), _relative(view.out_norms)
    return columns(
        quantiles(into, _FEW),
        spread(into),
        (into < _UNUSED).float().mean(dim=1),
        quantiles(out, _FEW),
        spread(out),
        (out < _UNUSED).float().mean(dim=1),
    )


def _bias_units(view: LayerView) -> torch.Tensor | None:
    biases = view.biases
    if biases is None:
        return None
    bias_rms = biases.square().mean(dim=1).sqrt()
    scale = view.rms.clamp_min(TINY)
    if biases.shape[1] != view.plan.shape[0]:
        # Biases of several tensors: which belongs to which unit is not known.
        ratio = biases / scale[:, None]
        related = torch.zeros(len(biases))
    else:
        fan_in = view.plan.shape[1] * view.plan.shape[2]
        norms = view.in_norms * fan_in**0.5
        ratio = biases / (norms + 0.01 * scale[:, None] * fan_in**0.5).clamp_min(TINY)
        related = correlation(biases.abs(), view.in_norms)
    return columns(
        safe_log(bias_rms),
        (bias_rms / scale).clamp_max(1e6).log1p(),
        quantiles(ratio.clamp(-1e6, 1e6), _FEW),
        related,
        biases.mean(dim=1).abs() / bias_rms.clamp_min(TINY),
    )


# --- matrices ------------------------------------------------------------------------------------


def spectrum_shape(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Shape of singular values (B, R), whatever R: shares of the four largest, quantiles, two kinds of rank."""
    norm = values.square().sum(dim=1, keepdim=True).sqrt().clamp_min(TINY)
    share = values / norm
    top = torch.zeros(len(values), 4, dtype=values.dtype)
    top[:, : min(4, values.shape[1])] = share[:, :4]
    energy = share.square()
    entropy = -(energy * energy.clamp_min(1e-30).log()).sum(dim=1)
    relative = values / values[:, :1].clamp_min(TINY)
    return (
        top,
        quantiles(relative, (0.25, 0.5, 0.75)),
        -safe_log(energy[:, 0]),
        entropy.exp() / values.shape[1],
    )


def _matrix(view: LayerView) -> torch.Tensor | None:
    if not view.plan.is_matrix:
        return None
    spectrum = view.spectrum
    return columns(safe_log(spectrum[:, 0]), *spectrum_shape(spectrum))


def _kernel_sums(view: LayerView) -> torch.Tensor | None:
    if view.plan.shape[2] == 1:
        return None
    spectrum = view.sums_spectrum
    # 1 where every kernel is constant, 1/K where taps are independent.
    constant = view.sums.square().mean(dim=(1, 2)) / (
        view.plan.shape[2] ** 2 * view.rms.square()
    ).clamp_min(TINY)
    return columns(constant, safe_log(spectrum[:, 0]), *spectrum_shape(spectrum))


def _smoothness(view: LayerView) -> torch.Tensor | None:
    if view.plan.kernel is None:
        return None
    height, width = view.plan.kernel
    maps = view.weight.reshape(*view.weight.shape[:3], height, width)
    mean_square = view.rms.square().clamp_min(TINY)
    rough = []
    for axis, size in ((3, height), (4, width)):
        if size > 1:
            step = maps.diff(dim=axis).square().mean(dim=(1, 2, 3, 4))
            rough.append(step / (2 * mean_square))
        else:
            rough.append(torch.zeros(len(maps)))
    centre = maps[:, :, :, height // 2, width // 2].square().mean(dim=(1, 2)) / mean_square
    return columns(*rough, centre)


def _angles(gram: torch.Tensor) -> torch.Tensor | None:
    """Cosines between different units, from their inner products (B, n, n)."""
    count = gram.shape[1]
    if count < 2:
        return None
    norms = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    floor = 1e-3 * norms.mean(dim=1, keepdim=True) + TINY
    scaled = 1 / (norms + floor)
    cosine = gram * scaled[:, :, None] * scaled[:, None, :]
    above, right = torch.triu_indices(count, count, 1)
    pairs = cosine[:, above, right].float()
    return columns(
        pairs.mean(dim=1), spread(pairs), pairs.abs().mean(dim=1), quantiles(pairs, _FEW)
    )


def _unit_angles(view: LayerView) -> torch.Tensor | None:
    return _angles(view.rows_gram) if view.plan.is_matrix else None


def _input_angles(view: LayerView) -> torch.Tensor | None:
    return _angles(view.inputs_gram) if view.plan.is_matrix else None


def _common(view: LayerView) -> torch.Tensor | None:
    """How much of the energy is common to all units, and to all inputs."""
    if not view.plan.is_matrix:
        return None
    mean_square = view.rms.square().clamp_min(TINY)
    rows = view.weight.mean(dim=1).square().mean(dim=(1, 2)) / mean_square
    inputs = view.weight.mean(dim=2).square().mean(dim=(1, 2)) / mean_square
    return columns(rows, inputs)


def _spectrum_meanings(prefix: str, what: str) -> dict[str, str]:
    return {
        **{
            f"{prefix}_top{n}": f"singular value {n} of {what} over its Frobenius norm"
            for n in range(1, 5)
        },
        **quantile_meanings(
            prefix, (0.25, 0.5, 0.75), f"its singular values over the largest, of {what}"
        ),
        f"{prefix}_stable_rank": f"log of Frobenius norm squared over spectral norm squared, of {what}",
        f"{prefix}_effective_rank": f"exponential of the spectrum's entropy over the full rank, of {what}",
    }


def _angle_meanings(prefix: str, what: str) -> dict[str, str]:
    return {
        f"{prefix}_mean": f"mean cosine between {what}",
        f"{prefix}_std": f"its standard deviation between {what}",
        f"{prefix}_abs": f"mean absolute cosine between {what}",
        **quantile_meanings(prefix, _FEW, f"the cosines between {what}"),
    }


RICH_GROUPS = (
    *PLAIN_GROUPS,
    Group(
        {
            "log_rms": "log of the root mean square r of the first tensor",
            "log_gain": "log of r times the root of the number of inputs",
            "has_kernel": "1 where the weight is a convolution with more than one tap",
            "follows": "1 where the inputs are the units of the matrix layer before it",
        },
        _scale,
    ),
    Group(
        {
            "unit_mean": "mean of the weights over their root mean square",
            "unit_abs": "mean absolute weight over it",
            "skew": "skewness of the weights",
            "log_kurtosis": "log of their kurtosis",
            "near_zero": "share of weights below a tenth of the root mean square",
            **quantile_meanings("unit", _SHAPE, "the weights over their root mean square"),
        },
        _shape,
    ),
    Group(
        {
            **quantile_meanings("in_norm", _FEW, "the units' incoming norms over their mean"),
            "in_norm_std": "their standard deviation",
            "in_unused": "share of units whose incoming norm is below a tenth of the mean",
            **quantile_meanings("out_norm", _FEW, "the inputs' outgoing norms over their mean"),
            "out_norm_std": "their standard deviation",
            "out_unused": "share of inputs whose outgoing norm is below a tenth of the mean",
        },
        _units,
    ),
    Group(
        {
            "bias_log_rms": "log of the root mean square of the biases",
            "bias_to_weight": "log(1 + that over r)",
            **quantile_meanings("bias_ratio", _FEW, "bias over incoming norm, unit by unit"),
            "bias_norm_corr": "correlation of absolute bias and incoming norm",
            "bias_common": "absolute mean of the biases over their root mean square",
        },
        _bias_units,
    ),
    Group(
        {
            "log_spectral": "log of the spectral norm of the matrix (O, I * K)",
            **_spectrum_meanings("sv", "the matrix"),
        },
        _matrix,
    ),
    Group(
        {
            "sum_share": "mean square of kernel sums over K² r²: 1 for constant kernels",
            "sum_log_spectral": "log of the spectral norm of the matrix of kernel sums",
            **_spectrum_meanings("sum_sv", "the kernel sums"),
        },
        _kernel_sums,
    ),
    Group(
        {
            "rough_y": "mean squared difference of vertically adjacent taps over 2 r²: 1 for independent taps",
            "rough_x": "the same for horizontally adjacent taps",
            "centre": "mean square of the middle tap over r²",
        },
        _smoothness,
    ),
    Group(_angle_meanings("unit_cos", "the units' incoming weights"), _unit_angles),
    Group(_angle_meanings("input_cos", "the inputs' outgoing weights"), _input_angles),
    Group(
        {
            "common_units": "energy of the mean over units over the energy of the weights",
            "common_inputs": "energy of the mean over inputs over the energy of the weights",
        },
        _common,
    ),
)
