"""Which units of a network are joined by which weights: the plan by which vectors are sent through it.

Convolutions and linear layers that fit each other (one's outputs are the next one's inputs, or the channels of what it
flattens) make a chain. A normalisation that follows a layer adds values to its units. Every other matrix (attention,
embeddings, recurrent layers, whatever does not fit) is a chain of its own, and tensors without a matrix are loose sets
of values. Fit is judged by sizes alone, in the order of the layers.

Legend for shapes: O outputs, I inputs, K values that join a pair of units (kernel positions, or positions flattened).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt, prod
from typing import TYPE_CHECKING

from zooplatform.errors import ConfigError
from zooplatform.interfaces import LAYER_TYPES
from zooplatform_chunk.layers import complete_layers

if TYPE_CHECKING:
    from zooplatform.interfaces import LayerSpec
    from zooplatform.layout import Field, VectorLayout

__all__ = ["UNIT_VALUES", "Joint", "Loose", "NetworkPlan", "plan_of"]

# What a unit may have beside its weights; running variances and gains are 1 where a network has none.
UNIT_VALUES = ("bias", "second bias", "gain", "shift", "running mean", "running variance")
_NORM_SLOTS = {"weight": 2, "bias": 3, "running_mean": 4, "running_var": 5}


@dataclass(frozen=True)
class Joint:
    """A matrix between units.

    Attributes:
        offset: of its first value in the weight vector.
        outputs, inputs: O and I.
        kernel: the two axes of K; (1, 1) for a plain matrix.
        flattened: K are positions of a flattened map, not of a kernel.
        layer_type: index into `LAYER_TYPES`.
        unit_values: offset of each of `UNIT_VALUES` of the output units, -1 where there is none.
        depth: where its layer is, 0 for the first of the network and 1 for the last.
        first, last: whether its layer is that.
    """

    offset: int
    outputs: int
    inputs: int
    kernel: tuple[int, int]
    flattened: bool
    layer_type: int
    unit_values: tuple[int, ...] = (-1,) * len(UNIT_VALUES)
    depth: float = 0.0
    first: bool = False
    last: bool = False

    @property
    def positions(self) -> int:
        """K."""
        return self.kernel[0] * self.kernel[1]

    @property
    def size(self) -> int:
        return self.outputs * self.inputs * self.positions

    def with_values(self, slot: int, offset: int) -> Joint:
        values = (*self.unit_values[:slot], offset, *self.unit_values[slot + 1 :])
        return replace(self, unit_values=values)


@dataclass(frozen=True)
class Loose:
    """A tensor that joins no units: `size` values from `offset` on, in whatever order."""

    offset: int
    size: int
    layer_type: int
    depth: float
    first: bool
    last: bool


@dataclass(frozen=True)
class NetworkPlan:
    """Chains of joints, the outputs of each the inputs of the next, and the tensors left over."""

    chains: tuple[tuple[Joint, ...], ...]
    loose: tuple[Loose, ...]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.chains)) + len(self.loose)


def plan_of(vector: VectorLayout) -> NetworkPlan:
    """The plan of an architecture.

    Raises:
        ConfigError: it has no values to read.
    """
    return _plan(_Key(vector))


class _Key:
    """A layout that can be looked up: equal where tensors and layers are."""

    def __init__(self, vector: VectorLayout) -> None:
        self.vector = vector
        self._key = (vector.layout, vector.layers())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key


@lru_cache(maxsize=64)
def _plan(key: _Key) -> NetworkPlan:
    layers = complete_layers(key.vector.layout, key.vector.layers())
    builder = _Builder()
    for place, layer in enumerate(layers):
        found = [key.vector.by_name[name] for name in layer.tensors]
        fields = [
            f for f in found if not f.aside and f.spec.num_elements and "float" in f.spec.dtype
        ]
        if fields:
            builder.add(layer, fields, place, len(layers))
    if not builder.chains and not builder.loose:
        raise ConfigError(
            f"A network of {len(key.vector.layout)} tensors has no floating-point value to read. "
            "Leave its architecture out of the query."
        )
    return NetworkPlan(tuple(map(tuple, builder.chains)), tuple(builder.loose))


class _Builder:
    """Takes layers in order; `open` says whether the last chain may go on."""

    def __init__(self) -> None:
        self.chains: list[list[Joint]] = []
        self.loose: list[Loose] = []
        self.open = False

    def add(self, layer: LayerSpec, fields: list[Field], place: int, number: int) -> None:
        where = (LAYER_TYPES.index(layer.type), place / max(number - 1, 1), place == 0)
        last = place == number - 1
        matrices = [f for f in fields if len(f.spec.shape) >= 2]
        vectors = [f for f in fields if len(f.spec.shape) < 2]
        if not matrices and layer.type == "norm" and self._normalise(vectors):
            return
        own = []
        for at, field in enumerate(matrices):
            chains = at == 0 and layer.type in ("conv", "linear")
            joint = self._join(field, where, last, chains)
            if not (chains and self.open and joint.inputs == self.chains[-1][-1].outputs):
                self.chains.append([])
            self.chains[-1].append(joint)
            own.append(self.chains[-1])
            self.open = chains and len(matrices) == 1
        for field in vectors:
            if not any(self._as_bias(chain, field) for chain in own):
                self.loose.append(Loose(field.offset, field.spec.num_elements, *where, last))

    def _join(
        self, field: Field, where: tuple[int, float, bool], last: bool, chains: bool
    ) -> Joint:
        shape = field.spec.shape
        outputs, inputs, rest = shape[0], shape[1], shape[2:]
        kernel = (prod(rest[:-1]), rest[-1]) if rest else (1, 1)
        before = 0
        # Only maps are flattened: the units of a linear layer have no positions.
        if chains and self.open and LAYER_TYPES[self.chains[-1][-1].layer_type] == "conv":
            before = self.chains[-1][-1].outputs
        flattened = not rest and 0 < before < inputs and inputs % before == 0
        if flattened:  # torch flattens channel by channel: the positions of a channel lie together
            positions, inputs = inputs // before, before
            side = isqrt(positions)
            kernel = (side, side) if side * side == positions else (positions, 1)
        type_, depth, first = where
        return Joint(
            field.offset, outputs, inputs, kernel, flattened, type_,
            depth=depth, first=first, last=last,
        )  # fmt: skip

    def _as_bias(self, chain: list[Joint], field: Field) -> bool:
        joint = chain[-1]
        free = [slot for slot in (0, 1) if joint.unit_values[slot] < 0]
        if not free or field.spec.num_elements != joint.outputs:
            return False
        chain[-1] = joint.with_values(free[0], field.offset)
        return True

    def _normalise(self, vectors: list[Field]) -> bool:
        """Give the values of a normalisation to the units before it; False where they have others or none."""
        if not self.open or not self.chains:
            return False
        joint = self.chains[-1][-1]
        for field in vectors:
            slot = _NORM_SLOTS.get(field.spec.name.rpartition(".")[2])
            if slot is None or field.spec.num_elements != joint.outputs:
                return False
            if joint.unit_values[slot] >= 0:
                return False
            joint = joint.with_values(slot, field.offset)
        self.chains[-1][-1] = joint
        return True
