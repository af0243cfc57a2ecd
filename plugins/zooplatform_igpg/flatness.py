"""Noise in those directions in which a network's function hardly changes.

What a layer puts out depends on its weights through its inputs alone. Where inputs hardly vary, weights may: a change
D of the weights of one unit changes its output by D x, whose square is D H D^T on average over the images, with
H = E[x x^T]. Noise with covariance (H + e I)^-1 changes outputs alike in every direction. That is the input side of the
Kronecker-factored Laplace approximation (Ritter, Botev and Barber 2018), taken at the middle of a basin; its output
side is left out.

Such noise makes weights new and leaves answers as they are: it is the cheapest way to distance from training networks,
and a reason not to take distance for novelty of function.

Legend for shapes: B networks, P values of one, m images, r rows (inputs of one output), I inputs of a unit and 1 for
its bias, O units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zooplatform.fitting import GeneratorData
    from zooplatform.layout import VectorLayout
    from zooplatform_igpg.preparing import Preparation

__all__ = ["Flatness", "LayerSpread", "measure"]

_IMAGES = 512
_WIDEST = (
    1024  # layers of more inputs get no noise: their factors would be larger than the networks
)
_DAMPING = 0.01  # e, relative to the mean of the eigenvalues
_ROWS = 1 << 17  # rows of inputs that are looked at of a layer, at most
_PAIRS = 256  # networks of a basin whose distances are looked at


class LayerSpread(NamedTuple):
    """Noise of one layer: first values of weight and bias (-1 without), units, and the factor (I, I) of its rows."""

    weight: int
    bias: int
    units: int
    factor: torch.Tensor


class Flatness:
    """Noise for the networks of one basin.

    Attributes:
        layers: of each layer that gets noise.
        unit: the usual distance of a training network of the basin from the nearest one of another run.
    """

    def __init__(self, layers: Sequence[LayerSpread], unit: float) -> None:
        self.layers, self.unit = tuple(layers), unit
        squares = sum(layer.units * float(layer.factor.square().sum()) for layer in self.layers)
        self._scale = unit / squares**0.5 if squares > 0 else 0.0

    def noise(self, width: int, seeds: Sequence[int]) -> torch.Tensor:
        """(B, P) noise of which each row is, in the root mean square, `unit` long; one seed for each."""
        found = torch.zeros((len(seeds), width))
        for row, seed in enumerate(seeds):
            draw = torch.Generator().manual_seed(seed)
            for layer in self.layers:
                inputs = len(layer.factor)
                own = torch.randn((layer.units, inputs), generator=draw) @ layer.factor
                if layer.bias >= 0:
                    found[row, layer.bias : layer.bias + layer.units] = own[:, -1]
                    own = own[:, :-1]
                found[row, layer.weight : layer.weight + own.numel()] = own.flatten()
        return found * self._scale


def measure(data: GeneratorData, preparation: Preparation) -> dict[int, dict[int, Flatness]]:
    """What noise the networks of each basin bear, by blueprint and basin.

    Basins of data sets without images, and blueprints that cannot be run on them, get none.
    """
    found: dict[int, dict[int, Flatness]] = {}
    for number, table in preparation.tables.items():
        blueprint = data.blueprints[number]
        own = preparation.train.of_blueprint(number)
        basins = preparation.train.basins
        assert basins is not None
        module = data.build(blueprint).eval()
        for basin, dataset in enumerate(table.datasets):
            mine = own[basins[own] == basin]
            images = data.images.get(dataset)
            if images is None or not len(mine):
                continue
            weights = preparation.train.read(mine[:_PAIRS]).weights
            middle = weights[0] if table.means is None else table.means[basin]
            # Differences from the middle are as far from each other as the networks are.
            runs = [preparation.train.networks.facts[row].model_id for row in mine[:_PAIRS]]
            layers = _layers(module, blueprint.vector, middle, images.x[:_IMAGES])
            found.setdefault(number, {})[basin] = Flatness(layers, _usual_distance(weights, runs))
    return found


def _usual_distance(weights: torch.Tensor, runs: Sequence[str]) -> float:
    """Median over networks (N, P) of the distance to the nearest one of another run."""
    number = {name: at for at, name in enumerate(dict.fromkeys(runs))}
    run = torch.tensor([number[name] for name in runs])
    distances = torch.cdist(weights, weights)
    distances[run[:, None] == run[None]] = torch.inf
    nearest = distances.min(dim=1).values
    nearest = nearest[nearest.isfinite()]
    if not len(
        nearest
    ):  # a single run: networks are as far from each other as half of their own length
        return 0.5 * float(weights.norm(dim=1).median())
    return float(nearest.median())


@torch.no_grad()
def _layers(
    module: nn.Module, vector: VectorLayout, weights: torch.Tensor, images: torch.Tensor
) -> list[LayerSpread]:
    """The factors of a network's layers, from what its layers are given."""
    state = module.state_dict()
    for field in vector.fields:
        if not field.aside:
            part = weights[field.offset : field.offset + field.spec.num_elements]
            state[field.spec.name].copy_(part.view(field.spec.shape))
    moments: dict[str, torch.Tensor] = {}
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and f"{name}.weight" in vector.by_name:
            inputs = layer.weight[0].numel()
            plain = getattr(layer, "groups", 1) == 1 and not isinstance(
                getattr(layer, "padding", 0), str
            )
            if plain and inputs <= _WIDEST:
                hooks.append(layer.register_forward_pre_hook(_listener(name, moments)))
    try:
        module(images)
    except (RuntimeError, ValueError):  # it takes other images than these
        return []
    finally:
        for hook in hooks:
            hook.remove()
    return [_spread(name, module.get_submodule(name), vector, moments[name]) for name in moments]


def _listener(name: str, moments: dict[str, torch.Tensor]) -> Callable[..., None]:
    def listen(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        rows = given[0]
        if isinstance(layer, nn.Conv2d):
            assert not isinstance(layer.padding, str)
            rows = F.unfold(
                rows,
                tuple(layer.kernel_size),
                dilation=layer.dilation,
                padding=layer.padding,
                stride=layer.stride,
            )
            rows = rows.transpose(1, 2)
        rows = rows.flatten(0, -2)
        rows = rows[:: max(1, len(rows) // _ROWS)]
        if layer.bias is not None:
            rows = F.pad(rows, (0, 1), value=1.0)
        moments[name] = rows.T @ rows / len(rows)

    return listen


def _spread(name: str, layer: nn.Module, vector: VectorLayout, moment: torch.Tensor) -> LayerSpread:
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp_min(0)
    spread = (values + _DAMPING * values.mean().clamp_min(1e-12)).rsqrt()
    factor = (vectors * spread) @ vectors.T
    bias = vector.by_name.get(f"{name}.bias")
    weight = vector.by_name[f"{name}.weight"]
    return LayerSpread(
        weight.offset,
        -1 if bias is None or layer.bias is None else bias.offset,
        weight.spec.shape[0],
        factor.float(),
    )
