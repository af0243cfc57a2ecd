"""Networks as sets of neurons: a token per output unit of a layer, units to a layer, layers to a network.

A unit is its incoming row, its bias, its outgoing column where the next layer is known (`hidden_groups`), and the
logarithms of the lengths of row and column. Rows and columns have another length in every layer. They are cut into
pieces of `width` values, the last one padded with zeros; a piece passes through a linear map, its place in the row is
added, then GELU, and the pieces of a row are averaged. With a width of at least the longest row that is one linear map
of the padded row; beyond it any length is read by the same parameters.

The units of a layer are a set, so that their own order does not count; the order of the units before and after them,
along rows and columns, does, and is unlearned by augmentation or the logit-invariance term (`invariance`).

Matrices that are not of a known chain (attention, embeddings, recurrent layers) give a token per row without a column.
A vector that is no bias (normalisations, class tokens) is one token.

Legend for shapes: B networks, P parameters, U units of a network, n units of a matrix, r values of a row, q pieces of a
row, h size of every vector, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zooplatform.errors import ConfigError
from zooplatform.interfaces import LAYER_TYPES
from zooplatform.symmetry import hidden_groups
from zooplatform_chunk.layers import complete_layers
from zooplatform_sne.bounded import SpanEncoder, in_blocks
from zooplatform_sne.invariance import InvarianceSettings, PermutedEncoder
from zooplatform_sne.places import PlaceEncoding, type_encoding
from zooplatform_sne.sets import SetSettings, SetToSet, SetToVector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import Field, VectorLayout

__all__ = ["NeuronEncoder", "NeuronSettings"]

# Log row length, log column length, bias, and whether there is a column.
_FEATURES = 4
# Added to a length before its logarithm: dead units have rows of zeros.
_LEAST_LENGTH = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronSettings:
    """Settings of the neuron encoder.

    Attributes:
        sets: of all set modules; `sets.dim` is h.
        width: values of a piece of a row or column.
        columns: read outgoing columns.
        gain: weights and biases are read as asinh(gain * value).
        max_rows: pieces that are encoded at once.
        max_set: units of a layer that attend to each other.
        invariance: how the order of hidden units is unlearned.
    """

    sets: SetSettings = field(default_factory=lambda: SetSettings(depth=1))
    width: int = 160
    columns: bool = True
    gain: float = 5.0
    max_rows: int = 65_536
    max_set: int = 1024
    invariance: InvarianceSettings = field(default_factory=InvarianceSettings)

    def __post_init__(self) -> None:
        for name in ("width", "max_rows", "max_set"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; use a whole number from 1 on.")
        if not isinstance(self.columns, bool):
            raise ConfigError(f"columns is {self.columns!r}; use true or false.")
        if not isinstance(self.gain, int | float) or not 1e-6 <= self.gain <= 1e6:
            raise ConfigError(f"gain is {self.gain!r}; use a number from 1e-6 to 1e6.")


class _Units(NamedTuple):
    """Units of one tensor: `number` rows of `length` values from `offset` on.

    Attributes:
        bias: offset of the biases, or None.
        target: weight that the units feed and the values of it per output and unit, or None.
    """

    offset: int
    number: int
    length: int
    bias: int | None = None
    target: tuple[Field, int] | None = None

    def rows(self, weights: Tensor) -> Tensor:
        """(B, n, r)."""
        values = weights[:, self.offset : self.offset + self.number * self.length]
        return values.reshape(-1, self.number, self.length)

    def columns(self, weights: Tensor) -> Tensor | None:
        """(B, n, values of a column)."""
        if self.target is None:
            return None
        weight, block = self.target
        values = weights[:, weight.offset : weight.offset + weight.spec.num_elements]
        values = values.reshape(len(weights), -1, self.number, block)
        return values.transpose(1, 2).flatten(2)

    def features(self, weights: Tensor, gain: float) -> Tensor:
        """(B, n, 4)."""
        rows, columns = self.rows(weights), self.columns(weights)
        features = rows.new_zeros((len(weights), self.number, _FEATURES))
        features[:, :, 0] = (rows.norm(dim=-1) + _LEAST_LENGTH).log()
        if columns is not None:
            features[:, :, 1] = (columns.norm(dim=-1) + _LEAST_LENGTH).log()
            features[:, :, 3] = 1.0
        if self.bias is not None:
            features[:, :, 2] = (gain * weights[:, self.bias : self.bias + self.number]).asinh()
        return features


class _NeuronPlan(NamedTuple):
    """The units of an architecture: of every layer that has some, its type and its tensors' units."""

    layers: tuple[tuple[int, tuple[_Units, ...]], ...]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first unit, number of units) of every layer."""
        spans, first = [], 0
        for _, units in self.layers:
            count = sum(u.number for u in units)
            spans.append((first, count))
            first += count
        return spans


class _RowMap(nn.Module):
    """Rows of any length to vectors, see the module."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.width = width
        self.piece, self.place = nn.Linear(width, dim), PlaceEncoding(dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, rows: Tensor) -> Tensor:
        """(N, h) from (N, r)."""
        pieces = -(-rows.shape[1] // self.width)
        padded = functional.pad(rows, (0, pieces * self.width - rows.shape[1]))
        codes = self.piece(padded.view(len(rows), pieces, self.width)) + self.place(pieces)
        result: Tensor = self.out(functional.gelu(codes).mean(1))
        return result


class NeuronEncoder(PermutedEncoder):
    """Weights to units, to layers, to one vector per network."""

    def __init__(self, settings: NeuronSettings | None = None) -> None:
        settings = settings or NeuronSettings()
        super().__init__(settings.invariance)
        self.settings = settings
        sets = settings.sets
        self.dim = sets.dim
        self.row = _RowMap(settings.width, sets.dim)
        self.column = _RowMap(settings.width, sets.dim) if settings.columns else None
        self.feature = nn.Linear(_FEATURES, sets.dim)
        self.type_encoding = type_encoding(sets.dim)
        self.depth_encoding = PlaceEncoding(sets.dim)
        self.layer = SpanEncoder(sets, max_tokens=settings.max_rows, max_set=settings.max_set)
        self.phi, self.psi = SetToSet(sets), SetToVector(sets)

    def prepare(self, batch: NetworkBatch) -> dict[str, Tensor]:
        """`weights` (B, P) as asinh(gain * weight), and `features` (B, U, 4) of the units.

        Raises:
            ConfigError: the architecture has no values to read.
        """
        plan = self._plan(batch.vector)
        weights, gain = batch.weights.float(), self.settings.gain
        features = [u.features(weights, gain) for _, units in plan.layers for u in units]
        return {"weights": (weights * gain).asinh(), "features": torch.cat(features, dim=1)}

    def forward(self, prepared: Mapping[str, Tensor], vector: VectorLayout) -> Tensor:
        """(B, h)."""
        plan, weights = self._plan(vector), prepared["weights"]
        types = torch.tensor([kind for kind, _ in plan.layers], device=weights.device)
        told = self.type_encoding(types) + self.depth_encoding(len(plan.layers))  # (L, h)
        tokens = []
        for place, (_, layer) in enumerate(plan.layers):
            for units in layer:
                token = self._map(self.row, units.rows(weights)) + told[place]
                columns = units.columns(weights)
                if self.column is not None and columns is not None:
                    token = token + self._map(self.column, columns)
                tokens.append(token)
        features = self.feature(prepared["features"])
        layers = self.layer(torch.cat(tokens, dim=1) + features, plan.spans)
        result: Tensor = self.psi(self.phi(layers + told))
        return result

    def _map(self, module: _RowMap, rows: Tensor) -> Tensor:
        """(B, n, h) from (B, n, r)."""
        number, count, length = rows.shape
        at_once = max(1, self.settings.max_rows // -(-length // self.settings.width))
        codes = in_blocks(module, at_once, rows.reshape(number * count, length))
        return codes.view(number, count, self.dim)

    def _plan(self, vector: VectorLayout) -> _NeuronPlan:
        targets = {}
        if self.settings.columns:
            for group in hidden_groups(vector):
                targets[group.rows[0].offset] = (group.target, group.block)
        layers = []
        for layer in complete_layers(vector.layout, vector.layers()):
            found = [vector.by_name[name] for name in layer.tensors]
            fields = [f for f in found if not f.aside and f.spec.num_elements]
            if fields:
                units = _units_of(fields, targets)
                layers.append((LAYER_TYPES.index(layer.type), units))
        if not layers:
            raise ConfigError(
                f"A network of {len(vector.layout)} tensors has no floating-point value to read. "
                "Leave its architecture out of the query."
            )
        return _NeuronPlan(tuple(layers))


def _units_of(fields: list[Field], targets: Mapping[int, tuple[Field, int]]) -> tuple[_Units, ...]:
    """The units of a layer's tensors: a vector as long as a matrix has rows, found next, is its bias."""
    matrices = [f for f in fields if len(f.spec.shape) > 1]
    vectors = [f for f in fields if len(f.spec.shape) <= 1]
    units = []
    for matrix in matrices:
        count = matrix.spec.shape[0]
        bias = next((v for v in vectors if v.spec.shape == (count,)), None)
        if bias is not None:
            vectors.remove(bias)
        length = prod(matrix.spec.shape[1:])
        offset = None if bias is None else bias.offset
        units.append(_Units(matrix.offset, count, length, offset, targets.get(matrix.offset)))
    return (*units, *(_Units(v.offset, 1, v.spec.num_elements) for v in vectors))
