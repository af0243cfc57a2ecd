"""What networks do as codes: principal components of their activations on unlabelled images, each a scalar code.

Networks of independent seeds have nothing in common in their weights, but what they do with an image they do alike
once their hidden units are matched by it (`zooplatform.activations`). So the codes of a network are where its
activations lie among those of the training networks, and a network is written by finding, layer by layer, the weights
that do what the codes say. The images are part of the artifact; their labels are not looked at.

Legend for shapes: N networks, P values of one, T tokens, M data sets of a blueprint (each a basin of its own), r
components, m images, D activations of a network.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform import load_plugins
from zooplatform.activations import ActivationSpace
from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fit_state import read_state, write_state
from zooplatform_igpg.spaces import KltCodec, principal_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_igpg.prepared import PreparedNetworks

__all__ = ["ActivationCodec"]

_FILE = "activations.safetensors"


class _Axes(NamedTuple):
    """What was learnt of one blueprint and data set.

    Attributes:
        middle: (D,) mean activations of the training networks, units matched.
        scale: (D,) factors with which every layer varies alike.
        axes: (r, D) principal components of scaled differences from the middle, in units of their deviation.
        images: (m, ...).
        typical: (P,) the mean of the weights.
    """

    middle: torch.Tensor
    scale: torch.Tensor
    axes: torch.Tensor
    images: torch.Tensor
    typical: torch.Tensor


class ActivationCodec(KltCodec):
    """Principal components of the activations of each blueprint and data set, each of unit variance, as scalar codes.

    Args:
        blueprints: of all networks.
        rank: components at most.
        codes: K.
        grid: how codes lie, see `KltCodec`.
        images: m.
        positions: of a layer's map that count, at most.
        ridge: penalty on the weights of a layer, see `ActivationSpace.solve`.
    """

    by_row = True

    def __init__(
        self,
        blueprints: Sequence[Blueprint],
        rank: int,
        codes: int,
        grid: str = "even",
        *,
        images: int,
        positions: int,
        ridge: float,
    ) -> None:
        super().__init__(blueprints, rank, codes, grid)
        self.images, self.positions, self.ridge = images, positions, ridge
        self._learnt: dict[int, list[_Axes]] = {}
        self._spaces: dict[tuple[int, int], ActivationSpace] = {}

    def fit(self, data: GeneratorData, train: PreparedNetworks, seed: int) -> dict[str, float]:
        assert train.basins is not None
        explained = []
        for number in sorted(set(train.networks.blueprints.tolist())):
            own = train.of_blueprint(number)
            basins = train.basins[own]
            found = []
            for basin in range(int(basins.max()) + 1):
                chosen = own[basins == basin]
                dataset = train.networks.facts[chosen[0]].dataset
                if dataset not in data.images:
                    raise ConfigError(
                        f"codec activations looks at what networks do with images, and those of the data set "
                        f"{dataset!r} are not there. Say where they are (--data-folder), leave its networks out of the "
                        "query, or take another codec."
                    )
                parts: list[torch.Tensor] = []
                train.weights_of(chosen, lambda _, w, keep=parts: keep.append(w))  # type: ignore[misc]
                images = data.images[dataset].x[: self.images].clone()
                axes, share = self._principal(number, torch.cat(parts), images)
                found.append(axes)
                explained.append(share)
            rank = max(len(one.axes) for one in found)
            self._learnt[number] = [one._replace(axes=_filled(one.axes, rank)) for one in found]
        return {"activations_explained": sum(explained) / max(1, len(explained))}

    def _principal(
        self, number: int, weights: torch.Tensor, images: torch.Tensor
    ) -> tuple[_Axes, float]:
        space = self._space(number, images)
        found, middle = space.align(space.record(weights))
        scale = space.scale(found)
        found = (found - middle) * scale
        axes, share = principal_axes(found, min(self.rank, max(1, len(found) - 1)))
        return _Axes(middle, scale, axes, images, weights.mean(dim=0)), share

    def encode(
        self, weights: torch.Tensor, blueprint: int, basins: torch.Tensor, dataset: str = ""
    ) -> torch.Tensor:
        scores = torch.zeros((len(weights), self._rank(blueprint)))
        for basin in sorted(set(basins.tolist())):
            own, learnt = basins == basin, self._learnt[blueprint][basin]
            space = self._space_of(blueprint, basin)
            found = space.match(space.record(weights[own]), learnt.middle)
            along = ((found - learnt.middle) * learnt.scale) @ learnt.axes.T
            scores[own] = along / learnt.axes.square().sum(dim=1).clamp_min(1e-20)
        return torch.bucketize(scores.nan_to_num(), self._edges)

    def decode(self, codes: torch.Tensor, blueprint: int, basins: torch.Tensor) -> torch.Tensor:
        found = torch.empty((len(codes), self.blueprints[blueprint].vector.width))
        for row, basin in enumerate(basins.tolist()):
            learnt = self._learnt[blueprint][basin]
            wanted = learnt.middle + (self._values[codes[row]] @ learnt.axes) / learnt.scale
            space = self._space_of(blueprint, basin)
            found[row] = space.solve(wanted[None], self.ridge, typical=learnt.typical)[0]
        return found

    def _rank(self, blueprint: int) -> int:
        return len(self._learnt[blueprint][0].axes)

    # --- networks to run ----------------------------------------------------------------------------------------------

    def _space(self, blueprint: int, images: torch.Tensor) -> ActivationSpace:
        drawn = self.blueprints[blueprint]
        with torch.random.fork_rng(devices=[]):
            module: nn.Module = (
                load_plugins().architectures.create(drawn.family).build(drawn.config)
            )
        return ActivationSpace(module, drawn.vector, images, positions=self.positions)

    def _space_of(self, blueprint: int, basin: int) -> ActivationSpace:
        key = blueprint, basin
        if key not in self._spaces:
            self._spaces[key] = self._space(blueprint, self._learnt[blueprint][basin].images)
        return self._spaces[key]

    # --- storing ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        tensors = {
            f"{number}.{basin}.{name}": value.contiguous()
            for number, learnt in self._learnt.items()
            for basin, axes in enumerate(learnt)
            for name, value in axes._asdict().items()
        }
        write_state(folder / _FILE, tensors, self._said())

    def load(self, folder: Path) -> None:
        tensors, values = read_state(folder / _FILE)
        if values != self._said():
            raise ArtifactError(
                f"{folder} holds activations of another configuration ({json.dumps(values)}). Fit again."
            )
        found: dict[int, dict[int, dict[str, torch.Tensor]]] = {}
        for name, value in tensors.items():
            number, basin, key = name.split(".")
            found.setdefault(int(number), {}).setdefault(int(basin), {})[key] = value
        self._learnt = {
            number: [_Axes(**basins[basin]) for basin in sorted(basins)]
            for number, basins in found.items()
        }
        self._spaces = {}

    def _said(self) -> dict[str, object]:
        return {
            **{"rank": self.rank, "codes": self.codes, "grid": self.grid},
            **{"positions": self.positions, "ridge": self.ridge},
        }


def _filled(axes: torch.Tensor, rank: int) -> torch.Tensor:
    """(rank, D): with fewer networks there are fewer components, and the others are zero."""
    return torch.cat([axes, axes.new_zeros((rank - len(axes), axes.shape[1]))])
