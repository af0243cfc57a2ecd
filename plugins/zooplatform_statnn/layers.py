"""Where the layers of an architecture lie in the weight vector, and how they follow each other.

Legend for shapes: a weight is seen as (O, I, K): O output units, I input units, K values per pair (the taps of a
kernel, or the positions that a flattened channel comes from).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from zooplatform.errors import ConfigError
from zooplatform.interfaces import LAYER_TYPES
from zooplatform.layout import is_parameter

if TYPE_CHECKING:
    from zooplatform.layout import Field, VectorLayout

__all__ = ["LayerPlan", "Piece", "plan_layers"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor in the weight vector: first element, number of elements."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """A layer that carries weights.

    Attributes:
        name: of its first tensor.
        type: index into `LAYER_TYPES`.
        depth: 0 for the first such layer, 1 for the last.
        weights: its first tensor and every other one of two or more dimensions.
        biases: its other trained tensors.
        shape: (O, I, K) of the first tensor.
        kernel: spatial shape of a convolution's kernel, height and width; None elsewhere.
        transposed: the first tensor lies as (I, O): an embedding, whose units are its columns.
        is_matrix: it maps units to units; a vector, as of a norm, has O alone.
        follows: its inputs are the units of the matrix layer before it.
    """

    name: str
    type: int
    depth: float
    weights: tuple[Piece, ...]
    biases: tuple[Piece, ...]
    shape: tuple[int, int, int]
    kernel: tuple[int, int] | None
    transposed: bool
    is_matrix: bool
    follows: bool


def plan_layers(vector: VectorLayout) -> tuple[LayerPlan, ...]:
    """The layers of an architecture whose tensors lie in its weight vector, in order.

    Raises:
        ConfigError: no layer has any.
    """
    return _plan(vector.fields)


@lru_cache(maxsize=256)
def _plan(fields: tuple[Field, ...]) -> tuple[LayerPlan, ...]:
    groups: dict[int, list[Field]] = {}
    for field in fields:
        if not field.aside and field.layer_index is not None and field.spec.num_elements:
            groups.setdefault(field.layer_index, []).append(field)
    if not groups:
        raise ConfigError(
            f"No layer is known of this architecture ({len(fields)} tensors), so there are no statistics of its "
            "layers. Ingest it again with an architecture adapter that describes its layers; `zoo plugins` lists them."
        )
    plans = []
    last = max(len(groups) - 1, 1)
    for place, (_, members) in enumerate(sorted(groups.items())):
        plans.append(_layer(members, place / last))
    return _chained(plans)


def _layer(members: list[Field], depth: float) -> LayerPlan:
    first = members[0]
    weights, biases = [_piece(first)], []
    for field in members[1:]:
        if len(field.spec.shape) >= 2:
            weights.append(_piece(field))
        elif is_parameter(field.spec):
            biases.append(_piece(field))
    dims = first.spec.shape
    kind = first.layer_type or "other"
    kernel = None
    if len(dims) < 2:
        shape = (prod(dims), 1, 1)
    elif kind == "embedding" and len(dims) == 2:
        shape = (dims[1], dims[0], 1)
    else:
        shape = (dims[0], dims[1], prod(dims[2:]))
        if kind == "conv" and shape[2] > 1:
            kernel = (prod(dims[2:-1]), dims[-1])
    # A linear layer of one input is a column, and a matrix all the same.
    maps = len(dims) >= 2 and kind in ("conv", "linear")
    return LayerPlan(
        name=first.spec.name,
        type=LAYER_TYPES.index(kind),
        depth=depth,
        weights=tuple(weights),
        biases=tuple(biases),
        shape=shape,
        kernel=kernel,
        transposed=kind == "embedding" and len(dims) == 2,
        is_matrix=maps or shape[1] > 1 or shape[2] > 1,
        follows=False,
    )


def _piece(field: Field) -> Piece:
    return Piece(field.offset, field.spec.num_elements)


def _chained(plans: list[LayerPlan]) -> tuple[LayerPlan, ...]:
    """Mark the matrix layers whose inputs are the units of the one before, and see their inputs as those units.

    A linear layer behind a flattened map reads every channel at several positions, channel by channel: they become K.
    """
    units = 0
    chained = []
    for plan in plans:
        if plan.is_matrix:
            out, inputs, taps = plan.shape
            if units > 1 and inputs % units == 0 and (inputs == units or plan.kernel is None):
                group = inputs // units
                plan = replace(plan, follows=True, shape=(out, units, group * taps))
            units = out
        chained.append(plan)
    return tuple(chained)
