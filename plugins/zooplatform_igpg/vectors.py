"""Networks as chunks: which value of a network lies where in its chunks, and back.

The values of a network are those of its main dtype, in the order of the layout, as `NetworkBatch.weights` has them;
everything else (the counters of BatchNorm, tensors of other dtypes) stays as bytes. Running variances are coded as
logarithms. Chunks are cut in one of three modes:

`network`: all layers one after the other, weight then bias, as one vector (IGPG, arXiv 2504.02012, architecture-wise);
`layer`: every layer begins a new chunk (layer-wise);
`unit`: every output unit of a matrix or convolution begins a new chunk: its incoming weights, then its bias.

Legend for shapes: N networks, V values of one, E bytes of one aside, n chunks, C values of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform.errors import TokenizerError
from zooplatform.interfaces import LAYER_TYPES, POSITION_COLUMNS
from zooplatform.layout import VectorLayout, architecture_id
from zooplatform_chunk.layers import complete_layers
from zooplatform_chunk.values import from_bytes, to_bytes, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.interfaces import LayerSpec, Layout, TensorSpec

__all__ = ["MODES", "VectorPlan", "make_plan", "tensor_kind"]

MODES = ("network", "layer", "unit")

# Main dtypes whose values are coded; networks of others (integers, packed types) are bytes throughout.
_CODED = frozenset({"float64", "float32", "float16", "bfloat16"})
# What is added to a variance before its logarithm, as BatchNorm does before its root.
_EPSILON = 1e-5


class _Block(NamedTuple):
    """Runs of equal length: `indices` (runs, length) into the values; `units` says that each is of one unit."""

    indices: torch.Tensor
    units: bool


@dataclass(frozen=True, eq=False)
class VectorPlan:
    """How the networks of one layout are cut into chunks.

    Attributes:
        layout: every tensor in state-dict order.
        layers: every layer of it.
        architecture: its id.
        coded: tensors whose values are coded, in state-dict order.
        aside: the others, as `VectorLayout` has them aside.
        starts: where each coded tensor begins among the values.
        num_values: V.
        size: C.
        order: (n * C,) which value lies at each place of the chunks; V where there is none.
        places: (V,) where each value lies in the chunks.
        mask: (n, C) bool, True where there is a value.
        positions: (n, 6) int64 of chunks, see `POSITION_COLUMNS`.
        logarithms: (V,) bool, values coded as logarithms; None where there are none.
    """

    layout: Layout
    layers: tuple[LayerSpec, ...]
    architecture: str
    coded: tuple[TensorSpec, ...]
    aside: tuple[TensorSpec, ...]
    starts: tuple[int, ...]
    num_values: int
    size: int
    order: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    logarithms: torch.Tensor | None

    @property
    def num_chunks(self) -> int:
        return len(self.mask)

    @property
    def aside_bytes(self) -> int:
        return sum(spec.size_bytes for spec in self.aside)

    def layer_of(self) -> dict[str, LayerSpec]:
        """The layer of every tensor by name."""
        return {name: layer for layer in self.layers for name in layer.tensors}

    # --- values ---------------------------------------------------------------------------------------------------

    def values(self, columns: Mapping[str, torch.Tensor], number: int) -> torch.Tensor:
        """(N, V) float32 from every tensor as (N, numbers); variances as logarithms.

        Raises:
            TokenizerError: a value is infinite or not a number.
        """
        parts = [columns[spec.name].to(torch.float32) for spec in self.coded]
        values = torch.cat(parts, dim=1) if parts else torch.empty((number, 0))
        if not bool(values.isfinite().all()):
            bad = [s.name for s, part in zip(self.coded, parts, strict=True) if _odd(part)]
            raise TokenizerError(
                f"{', '.join(bad[:10])} hold values that are infinite, not numbers or too large for float32, for which "
                "there is no code. Leave such networks out."
            )
        if self.logarithms is not None:
            raw = values[:, self.logarithms]
            values[:, self.logarithms] = raw.clamp_(min=0).add_(_EPSILON).log_()
        return values

    def columns(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every coded tensor as (N, numbers) in its dtype: the reverse of `values`, exact where nothing is a
        logarithm or wider than float32."""
        if self.logarithms is not None:
            values = values.clone()
            values[:, self.logarithms] = self.variances(values[:, self.logarithms])
        found = {}
        for spec, start in zip(self.coded, self.starts, strict=True):
            dtype = torch_dtype(spec)
            assert dtype is not None  # only torch's own types are coded
            part = values[:, start : start + spec.num_elements]
            if dtype in (torch.float16, torch.bfloat16):
                largest = torch.finfo(dtype).max
                part = part.clamp(-largest, largest)
            found[spec.name] = part.to(dtype)
        return found

    @staticmethod
    def variances(logarithms: torch.Tensor) -> torch.Tensor:
        """Running variances from the logarithms that they are coded as."""
        return (logarithms.exp() - _EPSILON).clamp(min=0)

    # --- chunks ---------------------------------------------------------------------------------------------------

    def chunks(self, values: torch.Tensor) -> torch.Tensor:
        """(N, n, C) from values (N, V), zero where there is none."""
        padded = torch.cat([values, values.new_zeros((len(values), 1))], dim=1)
        order = self.order.to(values.device)
        return padded.index_select(1, order).view(len(values), self.num_chunks, self.size)

    def from_chunks(self, chunks: torch.Tensor) -> torch.Tensor:
        """(N, V): the reverse of `chunks`; what stands in padding is dropped."""
        return chunks.flatten(1).index_select(1, self.places.to(chunks.device))

    # --- bytes ----------------------------------------------------------------------------------------------------

    def bytes_aside(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(N, E) uint8."""
        return torch.cat([to_bytes(columns[spec.name]) for spec in self.aside], dim=1)

    def columns_aside(self, raw: torch.Tensor | None, number: int) -> dict[str, torch.Tensor]:
        """The tensors that are not coded as (N, numbers); zeros where their bytes are not there."""
        if raw is None:
            raw = torch.zeros((number, self.aside_bytes), dtype=torch.uint8)
        parts = torch.split(raw, [spec.size_bytes for spec in self.aside], dim=1)
        return {
            spec.name: from_bytes(part, torch_dtype(spec) or torch.uint8)
            for spec, part in zip(self.aside, parts, strict=True)
        }

    def matrices(
        self, columns: Mapping[str, torch.Tensor], number: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights (N, P) and bytes aside (N, E) as `Population` has them, which may sort tensors otherwise."""
        vector = VectorLayout(self.layout)
        main = [columns[f.spec.name] for f in vector.fields if not f.aside]
        rest = [to_bytes(columns[f.spec.name]) for f in vector.fields if f.aside]
        dtype = getattr(torch, vector.dtype)
        weights = torch.cat(main, dim=1) if main else torch.empty((number, 0), dtype=dtype)
        return weights, torch.cat(rest, dim=1) if vector.aside_bytes else None


def tensor_kind(name: str) -> str:
    """What values of a tensor are, by the last part of its name: `weight`, `bias`, `running_mean`, ..."""
    last = name.rpartition(".")[2]
    if last in ("running_mean", "running_var"):
        return last
    return next((kind for kind in ("weight", "bias") if last.endswith(kind)), "other")


@lru_cache(maxsize=32)
def make_plan(layout: Layout, layers: tuple[LayerSpec, ...], mode: str, size: int) -> VectorPlan:
    """Cut a layout.

    Args:
        layout: of the networks.
        layers: of the layout; tensors that none of them names are grouped by their names.
        mode: one of `MODES`.
        size: C.

    Raises:
        TokenizerError: the layers are not of this layout.
    """
    whole = complete_layers(layout, layers)
    main = VectorLayout(layout).dtype
    coded = tuple(spec for spec in layout if spec.dtype == main and main in _CODED)
    starts, at = [], 0
    for spec in coded:
        starts.append(at)
        at += spec.num_elements
    inside = {
        spec.name: torch.arange(start, start + spec.num_elements).view(spec.shape)
        for spec, start in zip(coded, starts, strict=True)
    }
    layer_of_value = torch.zeros(at + 1, dtype=torch.int64)
    blocks: list[_Block] = []
    for place, layer in enumerate(whole):
        tensors = [inside[name] for name in layer.tensors if name in inside]
        tensors = [indices for indices in tensors if indices.numel()]
        for indices in tensors:
            layer_of_value[indices.flatten()] = place
        if tensors:
            blocks += _unit_blocks(tensors) if mode == "unit" else [_flat(tensors)]
    if mode == "network" and blocks:
        blocks = [_flat([block.indices for block in blocks])]
    order, units, inner = _laid_out(blocks, size, at)
    table = order.view(-1, size)
    places = torch.empty(at, dtype=torch.int64)
    real = order < at
    places[order[real]] = real.nonzero().squeeze(1)
    logarithms = torch.zeros(at, dtype=torch.bool)
    for name, indices in inside.items():
        if tensor_kind(name) == "running_var":
            logarithms[indices.flatten()] = True
    return VectorPlan(
        layout=layout,
        layers=whole,
        architecture=architecture_id(layout),
        coded=coded,
        aside=tuple(spec for spec in layout if spec not in coded),
        starts=tuple(starts),
        num_values=at,
        size=size,
        order=order,
        places=places,
        mask=table < at,
        positions=_positions(whole, layer_of_value[table[:, 0]], units, inner),
        logarithms=logarithms if bool(logarithms.any()) else None,
    )


def _odd(part: torch.Tensor) -> bool:
    return not bool(part.isfinite().all())


def _flat(tensors: list[torch.Tensor]) -> _Block:
    return _Block(torch.cat([t.flatten() for t in tensors]).unsqueeze(0), units=False)


def _unit_blocks(tensors: list[torch.Tensor]) -> list[_Block]:
    """Rows of the first tensor with what the others hold for each of them, then the rest in one run."""
    first = tensors[0]
    if (
        first.ndim < 2
    ):  # values of a norm, lone vectors: a chunk for each of them would be mostly padding
        return [_flat(tensors)]
    number = first.shape[0]
    together = [t for t in tensors if t.ndim and t.shape[0] == number]
    rest = [t for t in tensors if not t.ndim or t.shape[0] != number]
    rows = torch.cat([t.reshape(number, -1) for t in together], dim=1)
    return [_Block(rows, units=True), *([_flat(rest)] if rest else [])]


def _laid_out(
    blocks: list[_Block], size: int, padding: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(n * size,) values in their places, and of every chunk its unit (-1 for none) and its number in its run."""
    parts: list[torch.Tensor] = []
    units: list[torch.Tensor] = []
    inner: list[torch.Tensor] = []
    for indices, of_units in blocks:
        runs, length = indices.shape
        chunks = -(-length // size)
        full = indices.new_full((runs, chunks * size), padding)
        full[:, :length] = indices
        parts.append(full.flatten())
        unit = torch.arange(runs) if of_units else torch.full((runs,), -1)
        units.append(unit.repeat_interleave(chunks))
        inner.append(torch.arange(chunks).repeat(runs))
    if not parts:
        none = torch.empty(0, dtype=torch.int64)
        return none, none, none
    return torch.cat(parts), torch.cat(units), torch.cat(inner)


def _positions(
    layers: tuple[LayerSpec, ...],
    layer_of_chunk: torch.Tensor,
    units: torch.Tensor,
    inner: torch.Tensor,
) -> torch.Tensor:
    """(n, 6), see `POSITION_COLUMNS`; a chunk is of the layer of its first value."""
    positions = torch.zeros((len(units), len(POSITION_COLUMNS)), dtype=torch.int64)
    positions[:, 0] = torch.arange(len(units))
    for place in range(len(layers)):
        own = layer_of_chunk == place
        positions[own, 1] = layers[place].index
        positions[own, 2] = torch.arange(int(own.sum()))
        positions[own, 3] = LAYER_TYPES.index(layers[place].type)
    positions[:, 4], positions[:, 5] = units, inner
    return positions
