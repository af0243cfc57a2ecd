"""A read-out fitted to a few labelled images: what the layers below it are worth before anything is trained.

The last linear layer of every network is replaced by a ridge regression from what it is given to the classes; all other
weights stay as they are. No gradient is taken, so this is the least that a user of a generated network could do. It is
done to every row of the card alike, random networks included: features of random layers can be read too.

What the read-out is given is found by asking: with its weights set to a part of the identity and its biases to zero,
logits are features. So it works for whatever a bench can ask.

Legend for shapes: B networks, P values of one network, N images, K outputs, H features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from zooplatform.errors import ConfigError
from zooplatform.formats.extras import need
from zooplatform.growing.ranges import derive_seed

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from zooplatform.fitting import Blueprint
    from zooplatform.growing.images import Split
    from zooplatform.scorecard.networks import Bench, Networks

__all__ = ["with_readout"]

# Penalties of the regression as shares of the mean square of a feature; the best is taken by leaving images out.
_PENALTIES = np.logspace(-5, 1, 13)


class _Place(NamedTuple):
    """Where the read-out lies among the P values: K x H weights from `weight`, K biases from `bias`, if it has them."""

    weight: int
    bias: int | None
    outputs: int
    features: int


def with_readout(bench: Bench, networks: Networks, per_class: int, seed: int) -> Networks:
    """The same networks with read-outs fitted to images of the training part.

    Args:
        bench: asks the networks; images are drawn from its training part.
        networks: any of them.
        per_class: labelled images of each class; fewer where there are not so many.
        seed: of the draw, the same for all networks.

    Raises:
        ConfigError: an architecture does not end in a linear layer, or gives fewer outputs than there are classes.
        NotInstalledError: scikit-learn is missing.
    """
    linear = need("sklearn.linear_model", "generate", "Fitting a read-out (--readout)")
    x, y = _drawn(bench.data.train, bench.data.num_classes, per_class, seed)
    fitted = []
    for part in networks.parts:
        place = _place(part.blueprint, bench.data.num_classes)
        weights = part.weights.clone()
        features = _features(bench, part.blueprint, weights, place, x)
        for row, own in zip(weights, features, strict=True):
            if bool(own.isfinite().all()):
                regression = linear.RidgeCV(alphas=len(y) * _PENALTIES)
                _fit(regression, row, own.double().numpy(), y, bench.data.num_classes, place)
        fitted.append(weights)
    return networks.with_weights(fitted)


def _drawn(images: Split, classes: int, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(derive_seed(seed, "read-out") % 2**63)
    order = torch.randperm(len(images.y), generator=draw)
    own = [order[images.y[order] == label][:per_class] for label in range(classes)]
    chosen = torch.cat(own)
    return images.x[chosen], images.y[chosen]


def _place(blueprint: Blueprint, classes: int) -> _Place:
    """Of the last matrix, which `_features` makes sure is the read-out."""
    fields = [field for field in blueprint.vector.fields if not field.aside]
    matrices = [field for field in fields if len(field.spec.shape) == 2]
    if not matrices or matrices[-1].spec.shape[0] < classes:
        raise ConfigError(_refusal(blueprint, f"no last layer of {classes} outputs or more"))
    last = matrices[-1]
    outputs, features = last.spec.shape
    prefix = last.spec.name.rpartition(".")[0]
    bias = next((field for field in fields if field.spec.name == f"{prefix}.bias"), None)
    return _Place(last.offset, None if bias is None else bias.offset, outputs, features)


def _features(
    bench: Bench, blueprint: Blueprint, weights: Tensor, place: _Place, x: Tensor
) -> Tensor:
    """(B, N, H) what the read-out is given."""
    probed = weights.clone()
    end = place.weight + place.outputs * place.features
    if place.bias is not None:
        probed[:, place.bias : place.bias + place.outputs] = 0

    def asked(first: int, factor: float) -> Tensor:
        some = min(place.outputs, place.features - first)
        matrix = torch.zeros(place.outputs, place.features)
        matrix[torch.arange(some), torch.arange(first, first + some)] = factor
        probed[:, place.weight : end] = matrix.flatten()
        return bench.logits(blueprint, probed, x)[:, :, :some]

    found = [asked(first, 1) for first in range(0, place.features, place.outputs)]
    # Only a last layer that nothing follows gives exactly -2 times as much, and nothing for nothing.
    for factor in (-2, 0):
        again = asked(0, factor)
        if bool(((again != factor * found[0]) & again.isfinite()).any()):
            raise ConfigError(_refusal(blueprint, "logits that are not those of its last matrix"))
    return torch.cat(found, dim=2)


def _fit(
    regression: Any,
    row: Tensor,
    features: npt.NDArray[np.float64],
    y: Tensor,
    classes: int,
    place: _Place,
) -> None:
    """Write the regression into the weights (P,) of a network."""
    scale = float(np.sqrt(np.mean(np.square(features)))) or 1.0
    ridge = regression.fit(features / scale, np.eye(classes)[y.numpy()])
    matrix = np.zeros((place.outputs, place.features))
    matrix[:classes] = ridge.coef_ / scale
    row[place.weight : place.weight + matrix.size] = torch.from_numpy(matrix).flatten().float()
    if place.bias is not None:
        # Below all targets, which are 0 and 1: outputs beyond the classes never win.
        bias = np.full(place.outputs, -1.0)
        bias[:classes] = ridge.intercept_
        row[place.bias : place.bias + place.outputs] = torch.from_numpy(bias).float()


def _refusal(blueprint: Blueprint, has: str) -> str:
    return (
        f"{blueprint.name or blueprint.family} has {has}, so no read-out can be fitted to it. Leave --readout away for "
        "this architecture."
    )
