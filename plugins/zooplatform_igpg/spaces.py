"""What of networks becomes codes: the tokenizer's indices, or scalar codes of principal components of basins.

Components of what networks do, in place of what they are, are in `activations`.

Legend for shapes: N networks, P values of one, T tokens, M basins of a blueprint, r components of a basin, L levels,
K codes, d values of a code.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Protocol

import torch

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fit_state import read_state, write_state
from zooplatform.interfaces import LAYER_TYPES, TokenBatch
from zooplatform_igpg.prepared import variances
from zooplatform_igpg.transformer import Places

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_igpg.config import IgpgConfig
    from zooplatform_igpg.prepared import PreparedNetworks

__all__ = ["Codec", "KltCodec", "VqCodec", "make_codec", "principal_axes"]

_FUNCTIONAL = ("feedback", "refit")
_WIDEST = 3.2  # standard deviations that codes of components reach to


class Codec(Protocol):
    """Networks of known blueprints to codes and back.

    Attributes:
        by_row: decoding takes time, and gives each network the same bits whatever is decoded beside it.
    """

    by_row: bool

    def fit(self, data: GeneratorData, train: PreparedNetworks, seed: int) -> dict[str, float]:
        """Learn from prepared networks; returns what it measured."""

    def places(self, blueprint: int) -> Places:
        """Where the tokens of a blueprint are."""

    def mask(self, blueprint: int) -> torch.Tensor:
        """(T,) bool: which tokens are of the network; the others are padding."""

    def code_vectors(self) -> torch.Tensor:
        """(L, K, d) what codes stand for; NaN where a level has fewer."""

    def num_bits(self, blueprint: int) -> float:
        """Of the codes of a network."""

    def encode(
        self, weights: torch.Tensor, blueprint: int, basins: torch.Tensor, dataset: str = ""
    ) -> torch.Tensor:
        """(N, T) codes of prepared networks (N, P) of one blueprint and data set; basins (N,)."""

    def decode(self, codes: torch.Tensor, blueprint: int, basins: torch.Tensor) -> torch.Tensor:
        """(N, P) prepared networks."""

    def know(self, data: GeneratorData) -> None:
        """Give it what it does not store: images, and how networks are built."""

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


def make_codec(config: IgpgConfig, blueprints: Sequence[Blueprint]) -> Codec:
    """The codec that a configuration asks for, not fitted."""
    space = config.space
    if space.codec == "klt":
        return KltCodec(blueprints, space.klt_rank, space.klt_codes, space.klt_grid)
    if space.codec == "activations":
        from zooplatform_igpg.activations import ActivationCodec

        return ActivationCodec(
            blueprints, space.klt_rank, space.klt_codes, space.klt_grid,
            images=space.activation_images, positions=space.activation_positions, ridge=space.ridge,
        )  # fmt: skip
    return VqCodec(blueprints, config.tokenizer, config.space.encode, config.space.center != "none")


class VqCodec:
    """The tokenizer `vq`.

    Args:
        blueprints: of all networks.
        settings: of the tokenizer.
        encode: `plain`, `functional` or `auto`.
        centred: whether it sees differences, which are no networks that could be run.
    """

    by_row = False

    def __init__(
        self,
        blueprints: Sequence[Blueprint],
        settings: Mapping[str, Any],
        encode: str,
        centred: bool,
    ) -> None:
        from zooplatform_igpg.tokenizer import VqTokenizer

        self.blueprints = tuple(blueprints)
        self.settings, self.encoding, self.centred = dict(settings), encode, centred
        self.tokenizer = VqTokenizer()
        self._data: GeneratorData | None = None
        self._places: dict[int, tuple[Places, torch.Tensor]] = {}

    def fit(self, data: GeneratorData, train: PreparedNetworks, seed: int) -> dict[str, float]:
        settings = dict(self.settings)
        if self.centred:
            # Differences are no networks that images could be shown to.
            settings |= dict.fromkeys(_FUNCTIONAL, False) | {"functional_weight": 0.0, "bits": 0.0}
        report = self.tokenizer.fit_networks(data, config=settings, seed=seed)
        self.know(data)
        for number in sorted(set(train.networks.blueprints.tolist())):
            sample = train.read(train.of_blueprint(number)[:1])
            blueprint = self.blueprints[number]
            batch = self.tokenizer.encode_population(
                sample.weights.to(_dtype(blueprint)),
                layout=blueprint.vector.layout,
                layers=blueprint.vector.layers(),
                aside=self._aside(blueprint, 1),
            )
            layers = blueprint.vector.layers()
            levels = self.tokenizer.token_levels(blueprint.vector.layout, layers)
            places = Places(_six_columns(batch.positions[0]), levels.clone().long())
            self._places[number] = places, batch.mask[0].clone()
        return dict(report.metrics)

    def places(self, blueprint: int) -> Places:
        return self._places[blueprint][0]

    def mask(self, blueprint: int) -> torch.Tensor:
        return self._places[blueprint][1]

    def code_vectors(self) -> torch.Tensor:
        return self.tokenizer.code_vectors()

    def num_bits(self, blueprint: int) -> float:
        vector = self.blueprints[blueprint].vector
        values = sum(f.spec.num_elements for f in vector.fields if not f.aside)
        return values * self.tokenizer.bits_per_weight(vector.layout, vector.layers())

    def know(self, data: GeneratorData) -> None:
        """Give it the images and the builder that encoding for the function needs; they are not stored."""
        self._data = data

    @property
    def functional(self) -> bool:
        """Whether networks are encoded for what they compute."""
        if self.encoding == "auto":
            feedback = bool(getattr(self.tokenizer.config, "feedback", False))
            return feedback and not self.centred
        return self.encoding == "functional"

    def encode(
        self, weights: torch.Tensor, blueprint: int, basins: torch.Tensor, dataset: str = ""
    ) -> torch.Tensor:
        drawn = self.blueprints[blueprint]
        weights = weights.to(_dtype(drawn))
        if self.functional and self._data is not None and dataset in self._data.images:
            batch = self.tokenizer.encode_functional(
                weights,
                blueprint=drawn,
                images=self._data.images[dataset].x,
                build=self._data.build,
                progress=self._data.progress,
            )
        else:
            batch = self.tokenizer.encode_population(
                weights,
                layout=drawn.vector.layout,
                layers=drawn.vector.layers(),
                aside=self._aside(drawn, len(weights)),
            )
        return batch.tokens

    def decode(self, codes: torch.Tensor, blueprint: int, basins: torch.Tensor) -> torch.Tensor:
        places, mask = self._places[blueprint]
        drawn = self.blueprints[blueprint]
        number = len(codes)
        batch = TokenBatch(
            codes, mask.expand(number, -1), places.positions.expand(number, -1, -1), {}
        )
        weights, _ = self.tokenizer.decode_population(
            batch, layout=drawn.vector.layout, layers=drawn.vector.layers()
        )
        return weights.float()

    def _aside(self, blueprint: Blueprint, number: int) -> torch.Tensor | None:
        if not blueprint.aside:
            return None
        one = torch.frombuffer(bytearray(blueprint.aside), dtype=torch.uint8)
        return one.expand(number, -1)

    def save(self, folder: Path) -> None:
        inside = folder / "tokenizer"
        inside.mkdir(exist_ok=True)
        self.tokenizer.save(inside)
        tensors = {}
        for number, (places, mask) in self._places.items():
            tensors[f"{number}.positions"] = places.positions.to(torch.int32)
            tensors[f"{number}.levels"] = places.levels.to(torch.int32)
            tensors[f"{number}.mask"] = mask
        write_state(folder / "places.safetensors", tensors, {})

    def load(self, folder: Path) -> None:
        self.tokenizer.load(folder / "tokenizer")
        tensors, _ = read_state(folder / "places.safetensors")
        numbers = {int(name.partition(".")[0]) for name in tensors}
        self._places = {
            n: (
                Places(tensors[f"{n}.positions"].long(), tensors[f"{n}.levels"].long()),
                tensors[f"{n}.mask"],
            )
            for n in numbers
        }


class KltCodec:
    """Principal components of every basin (the Karhunen-Loève transform), each of unit variance, as scalar codes.

    Args:
        blueprints: of all networks.
        rank: components at most.
        codes: K.
        grid: how codes lie: `even`, equally wide parts from -3.2 to 3.2 deviations, so that how likely a code is tells
            how dense networks lie there, and a low temperature draws networks near the mean; or `likely`, equally
            likely parts of a normal distribution, each standing for its mean.
    """

    by_row = False

    def __init__(
        self, blueprints: Sequence[Blueprint], rank: int, codes: int, grid: str = "even"
    ) -> None:
        self.blueprints = tuple(blueprints)
        self.rank, self.codes = rank, codes
        self._set_grid(grid)
        self._bases: dict[
            int, torch.Tensor
        ] = {}  # (M, r, P), rows in units of their standard deviation
        self._ranks: dict[int, torch.Tensor] = {}  # (M,) components that a basin has

    def _set_grid(self, grid: str) -> None:
        """Where one code ends and the next begins (K - 1,), and what each stands for (K,)."""
        self.grid = grid
        if grid == "even":
            self._edges = torch.linspace(-_WIDEST, _WIDEST, self.codes + 1)[1:-1]
            self._values = (torch.arange(self.codes) + 0.5) / self.codes * 2 * _WIDEST - _WIDEST
            return
        codes = self.codes
        self._edges = torch.special.ndtri(torch.arange(1, codes) / codes)
        density = (-self._edges.square() / 2).exp() / (2 * torch.pi) ** 0.5
        density = torch.cat([torch.zeros(1), density, torch.zeros(1)])
        self._values = (density[:-1] - density[1:]) * codes

    def fit(self, data: GeneratorData, train: PreparedNetworks, seed: int) -> dict[str, float]:
        explained = []
        for number in sorted(set(train.networks.blueprints.tolist())):
            assert train.basins is not None
            own = train.of_blueprint(number)
            basins = train.basins[own]
            count = int(basins.max()) + 1
            width = self.blueprints[number].vector.width
            largest = max(int((basins == basin).sum()) for basin in range(count))
            rank = max(1, min(self.rank, largest - 1, width))
            bases = torch.zeros((count, rank, width))
            ranks = torch.zeros(count, dtype=torch.int64)
            for basin in range(count):
                chosen = own[basins == basin]
                if len(chosen) < 2:
                    continue
                parts: list[torch.Tensor] = []
                train.weights_of(chosen, lambda _, w, keep=parts: keep.append(w))  # type: ignore[misc]
                rows = torch.cat(parts) - self._middle(number)
                axes, share = principal_axes(rows, rank)
                bases[basin, : len(axes)] = axes
                ranks[basin] = len(axes)
                explained.append(share)
            self._bases[number], self._ranks[number] = bases, ranks
        return {"klt_explained": sum(explained) / max(1, len(explained))}

    def know(self, data: GeneratorData) -> None:
        pass  # it needs neither

    def _middle(self, blueprint: int) -> torch.Tensor:
        """(P,) what stands for no difference: ratios of variances are 1."""
        return variances(self.blueprints[blueprint].vector).float()

    def places(self, blueprint: int) -> Places:
        rank = self._rank(blueprint)
        positions = torch.zeros((rank, 6), dtype=torch.int64)
        positions[:, 0] = positions[:, 2] = positions[:, 5] = torch.arange(rank)
        positions[:, 3] = LAYER_TYPES.index("other")
        positions[:, 4] = -1
        return Places(positions, torch.zeros(rank, dtype=torch.int64))

    def mask(self, blueprint: int) -> torch.Tensor:
        return torch.ones(self._rank(blueprint), dtype=torch.bool)

    def _rank(self, blueprint: int) -> int:
        """T."""
        return self._bases[blueprint].shape[1]

    def code_vectors(self) -> torch.Tensor:
        return self._values[None, :, None].clone()

    def num_bits(self, blueprint: int) -> float:
        return self._rank(blueprint) * math.log2(self.codes)

    def encode(
        self, weights: torch.Tensor, blueprint: int, basins: torch.Tensor, dataset: str = ""
    ) -> torch.Tensor:
        bases = self._bases[blueprint]
        scores = torch.zeros((len(weights), bases.shape[1]))
        for basin in sorted(set(basins.tolist())):
            own, basis = basins == basin, bases[basin]
            along = (weights[own] - self._middle(blueprint)) @ basis.T
            scores[own] = along / basis.square().sum(dim=1).clamp_min(1e-20)
        return torch.bucketize(scores.nan_to_num(), self._edges)

    def decode(self, codes: torch.Tensor, blueprint: int, basins: torch.Tensor) -> torch.Tensor:
        found = self._middle(blueprint).repeat(len(codes), 1)
        for basin in sorted(set(basins.tolist())):
            own = basins == basin
            found[own] += self._values[codes[own]] @ self._bases[blueprint][basin]
        return found

    def save(self, folder: Path) -> None:
        tensors = {f"{n}.bases": bases for n, bases in self._bases.items()}
        tensors |= {f"{n}.ranks": ranks for n, ranks in self._ranks.items()}
        said = {"rank": self.rank, "codes": self.codes, "grid": self.grid}
        write_state(folder / "klt.safetensors", tensors, said)

    def load(self, folder: Path) -> None:
        tensors, values = read_state(folder / "klt.safetensors")
        if (values["rank"], values["codes"]) != (self.rank, self.codes):
            raise ArtifactError(
                f"{folder} holds components of another configuration ({json.dumps(values)}). Fit again."
            )
        self._set_grid(values.get("grid", "likely"))
        numbers = {int(name.partition(".")[0]) for name in tensors}
        self._bases = {n: tensors[f"{n}.bases"] for n in numbers}
        self._ranks = {n: tensors[f"{n}.ranks"] for n in numbers}


def principal_axes(rows: torch.Tensor, rank: int) -> tuple[torch.Tensor, float]:
    """Principal axes (r, P) of differences (N, P), each as long as the standard deviation along it, and the share of
    the variance that they explain; r is less than `rank` where there are not so many."""
    # The small side is decomposed: networks are few, values are many.
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    values, order = values.clamp_min(0).sort(descending=True)
    useful = int((values > 1e-9 * values[0]).sum()) if values[0] > 0 else 0
    kept = min(rank, useful)
    axes = (vectors[:, order[:kept]].T.float() @ rows) / max(1, len(rows) - 1) ** 0.5
    return axes, float(values[:kept].sum() / values.sum().clamp_min(1e-30))


def _six_columns(positions: torch.Tensor) -> torch.Tensor:
    """(T, 6): tokenizers may give the first columns only."""
    missing = 6 - positions.shape[1]
    if missing < 0:
        raise ConfigError(f"Tokens with {positions.shape[1]} columns of positions are not known.")
    more = positions.new_zeros((len(positions), missing))
    return torch.cat([positions, more], dim=1).clone()


def _dtype(blueprint: Blueprint) -> torch.dtype:
    found = getattr(torch, blueprint.vector.dtype, torch.float32)
    assert isinstance(found, torch.dtype)
    return found
