"""What networks compute beside what they are: the difference of their outputs, with gradients to their weights.

Beside the full error of the weights, never in its place: a decoder that is asked for outputs alone learns to ignore its
codes and to emit one good network, whose reconstructed accuracy is above that of the originals (see the diagnostics:
agreement with the own network, diversity).

Legend for shapes: B networks, V values of one, m images, k outputs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from zooplatform.errors import ConfigError
from zooplatform.fitting import GeneratorData

if TYPE_CHECKING:
    from zooplatform.fitting import FitData
    from zooplatform_igpg.vectors import VectorPlan

__all__ = ["FunctionalLoss", "stacked_outputs"]


class FunctionalLoss:
    """Divergence of the outputs of networks from those of their originals, on training images of their data sets.

    Args:
        data: a `GeneratorData` with images.
        number: m, images of a step.

    Raises:
        ConfigError: there is nothing to compare outputs on.
    """

    def __init__(self, data: FitData | None, number: int) -> None:
        if not isinstance(data, GeneratorData) or not data.images:
            raise ConfigError(
                "functional_weight compares outputs of networks, but there are no images or no way to build them. Fit "
                "the tokenizer with a generator, whose data has both, or set functional_weight to 0."
            )
        self._data, self._number = data, number
        self._modules: dict[int, nn.Module] = {}

    def __call__(
        self,
        plan: VectorPlan,
        found: torch.Tensor,
        original: torch.Tensor,
        rows: tuple[int, ...],
        seed: int,
    ) -> torch.Tensor:
        """Mean KL divergence, a scalar; zero where no network has images.

        Args:
            plan: of the layout.
            found: (B, V) values, with gradients.
            original: (B, V) values.
            rows: numbers of the networks in the training data.
            seed: draws the images.
        """
        kinds: dict[tuple[int, str], list[int]] = {}
        for at, row in enumerate(rows):
            facts = self._data.facts[self._data.train.ids[row]]
            if facts.dataset in self._data.images:
                kinds.setdefault((facts.blueprint, facts.dataset), []).append(at)
        total = found.new_zeros(())
        for (blueprint, dataset), members in kinds.items():
            images = self._data.images[dataset].x
            draw = torch.Generator().manual_seed(seed)
            chosen = images[torch.randperm(len(images), generator=draw)[: self._number]]
            chosen = chosen.to(found.device)
            module = self._module(blueprint).to(found.device)
            with torch.no_grad():
                wanted = stacked_outputs(module, plan, original[members], chosen).log_softmax(-1)
            outputs = stacked_outputs(module, plan, found[members], chosen).log_softmax(-1)
            loss = F.kl_div(outputs, wanted, reduction="sum", log_target=True)
            total = total + loss / (len(rows) * len(chosen))
        return total

    def _module(self, blueprint: int) -> nn.Module:
        if blueprint not in self._modules:
            module = self._data.build(self._data.blueprints[blueprint]).eval()
            for leaf in module.modules():
                if _keeps_statistics(leaf):
                    leaf.forward = partial(_normed, leaf)
            self._modules[blueprint] = module.requires_grad_(requires_grad=False)
        return self._modules[blueprint]


def _keeps_statistics(leaf: nn.Module) -> bool:
    return isinstance(leaf, nn.BatchNorm1d | nn.BatchNorm2d) and leaf.track_running_stats


def _normed(leaf: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a batch norm gives in evaluation, with gradients to its running statistics, which torch's own has not."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    assert isinstance(leaf, nn.BatchNorm1d | nn.BatchNorm2d)
    assert leaf.running_mean is not None
    assert leaf.running_var is not None
    scale = (leaf.running_var + leaf.eps).rsqrt()
    if leaf.weight is not None:
        scale = scale * leaf.weight
    out = (x - leaf.running_mean.view(shape)) * scale.view(shape)
    return out if leaf.bias is None else out + leaf.bias.view(shape)


def stacked_outputs(
    module: nn.Module, plan: VectorPlan, values: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """(B, m, k) outputs of networks (B, V) of one blueprint on images (m, ...)."""
    tensors = {}
    for spec, start in zip(plan.coded, plan.starts, strict=True):
        raw = values[:, start : start + spec.num_elements]
        if plan.logarithms is not None and bool(plan.logarithms[start]):
            raw = plan.variances(raw)
        tensors[spec.name] = raw.reshape(-1, *spec.shape)

    def outputs(one: dict[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = functional_call(module, one, (images,))
        return found

    stacked: torch.Tensor = vmap(outputs)(tensors)
    return stacked
