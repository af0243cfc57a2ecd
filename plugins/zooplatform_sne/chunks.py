"""The encoder of the paper: chunks to a layer, layers to a network, with set modules.

SNE, arXiv 2305.16625. The layers of a network are flattened, padded and cut into chunks of c values by
`zooplatform_chunk`. Six set modules, shared by all layers and architectures, make

    values of a chunk  --Phi1, + layer type, + layer depth, Psi2-->  a chunk   (h)
    chunks of a layer  --Phi3, Psi4-->                               a layer   (h)
    layers of a network  -- + type, + depth, Phi5, Psi6-->           a network (h)

with Phi a stack of set attention blocks and Psi pooling by attention. The order of the chunks of a layer does not count
unless `chunk_position` is set, and as published that of the values in a chunk never does: `chunk_map = "linear"` reads
a chunk as a vector instead, in place of Phi1 and Psi2.

Memory: chunks, and the chunks of layers, pass through their modules in blocks of `max_chunks`. When there are several,
they are computed again in the backward pass, so that what is kept of a network is one vector of size h per chunk.
A layer of more than `max_set` chunks is cut into sets of that many, which attend within themselves and are pooled as
one.

Legend for shapes: B networks, P parameters, T chunks of a network, c values of a chunk, h size of every vector,
L layers, n chunks of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from zooplatform.errors import ConfigError
from zooplatform.interfaces import LAYER_TYPES, LayerSpec, TensorSpec
from zooplatform_chunk.chunk import ChunkRule, ChunkTokenizer
from zooplatform_chunk.plan import Cut, make_plan
from zooplatform_sne.bounded import SpanEncoder, in_blocks
from zooplatform_sne.invariance import InvarianceSettings, PermutedEncoder
from zooplatform_sne.places import PlaceEncoding, type_encoding
from zooplatform_sne.sets import SetSettings, SetToSet, SetToVector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.interfaces import Layout, NetworkBatch
    from zooplatform.layout import VectorLayout

__all__ = ["ChunkEncoder", "ChunkMap", "ChunkSettings", "SneRule"]

ChunkMap: TypeAlias = Literal["sets", "linear"]
Bias: TypeAlias = Literal["separate", "appended"]


@dataclass(frozen=True, kw_only=True)
class SneRule(ChunkRule):
    """Chunks as `ChunkRule` cuts them; a bias may begin chunks of its own.

    Attributes:
        bias: `appended` to the weight of its layer where that is not cut into rows or kernels, or `separate`.
    """

    bias: Bias = "separate"

    def cut(self, layer_type: str, tensors: Sequence[TensorSpec]) -> list[Cut]:
        """Separate vectors are runs of their own."""
        if self.bias == "appended":
            return super().cut(layer_type, tensors)
        return [cut for tensor in tensors for cut in super(SneRule, self).cut(layer_type, [tensor])]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSettings:
    """Settings of the chunk encoder.

    Attributes:
        sets: of all set modules; `sets.dim` is h.
        chunk_size: c.
        chunk_map: chunks as `sets` of values (published), or each as a vector through a `linear` map.
        chunk_position: tell the place of a chunk in its layer.
        layer_type, layer_depth: tell the type of a layer, and its depth in the network.
        neuron_rows: chunks of linear layers hold weights of one neuron each.
        kernels: chunks of convolutions hold values of one kernel each.
        bias: `separate` chunks after those of the weight, or `appended` to it.
        scaling: of weights: `none`, `asinh` (of `gain` times the weight), or `std` (by the spread of the layer, which
            is then told to the network level as its logarithm).
        gain: factor inside `asinh`.
        max_chunks: chunks that are encoded at once.
        max_set: chunks of a layer that attend to each other.
        invariance: how the order of hidden units is unlearned.
    """

    sets: SetSettings = field(default_factory=SetSettings)
    chunk_size: int = 64
    chunk_map: ChunkMap = "sets"
    chunk_position: bool = False
    layer_type: bool = True
    layer_depth: bool = True
    neuron_rows: bool = True
    kernels: bool = False
    bias: Bias = "separate"
    scaling: Literal["none", "std", "asinh"] = "asinh"
    gain: float = 5.0
    max_chunks: int = 8192
    max_set: int = 1024
    invariance: InvarianceSettings = field(default_factory=InvarianceSettings)

    def __post_init__(self) -> None:
        for name, known in (("chunk_map", get_args(ChunkMap)), ("bias", get_args(Bias))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; use {' or '.join(known)}.")
        for name in ("chunk_position", "layer_type", "layer_depth"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; use true or false.")
        for name in ("max_chunks", "max_set"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; use a whole number from 1 on.")
        self.rule()

    def rule(self) -> SneRule:
        """How networks are cut.

        Raises:
            ConfigError: one of its settings is not usable.
        """
        return SneRule(
            chunk_size=self.chunk_size,
            neuron_rows=self.neuron_rows,
            kernels=self.kernels,
            bias=self.bias,
            scaling=self.scaling,
            gain=self.gain,
        )


class _Cutting(NamedTuple):
    """How the networks of a layout are cut, for all of them alike.

    Attributes:
        layout, layers: of what is cut: the tensors that lie in the weights, as float32.
        by_length: numbers of real values of a chunk, padding behind them not counted, and the chunks that have so
            many. Chunks of one length are one batch of sets, so that padding costs nothing and needs no mask.
        spans: (first chunk, number of chunks) of every layer with chunks.
        types: (L,) index into `LAYER_TYPES`, of those layers.
        places: (L,) of those layers among all layers of the plan.
    """

    layout: Layout
    layers: tuple[LayerSpec, ...]
    by_length: tuple[tuple[int, Tensor], ...]
    spans: tuple[tuple[int, int], ...]
    types: Tensor
    places: Tensor


class ChunkEncoder(PermutedEncoder):
    """Weights to chunks, to layers, to one vector per network."""

    def __init__(self, settings: ChunkSettings | None = None) -> None:
        settings = settings or ChunkSettings()
        super().__init__(settings.invariance)
        self.settings, self.rule = settings, settings.rule()
        sets = settings.sets
        self.dim = sets.dim
        if settings.chunk_map == "sets":
            self.value = nn.Linear(1, sets.dim)
            self.phi1, self.psi2 = SetToSet(sets), SetToVector(sets)
        else:
            self.value = nn.Linear(settings.chunk_size, sets.dim)
            self.chunk = nn.Sequential(nn.GELU(), nn.Linear(sets.dim, sets.dim))
        # Phi3 and Psi4.
        self.layer = SpanEncoder(sets, max_tokens=settings.max_chunks, max_set=settings.max_set)
        self.phi5, self.psi6 = SetToSet(sets), SetToVector(sets)
        self.type_encoding = type_encoding(sets.dim) if settings.layer_type else None
        self.depth_encoding = PlaceEncoding(sets.dim) if settings.layer_depth else None
        self.chunk_encoding = PlaceEncoding(sets.dim) if settings.chunk_position else None
        self.spread = nn.Linear(1, sets.dim) if settings.scaling == "std" else None

    def prepare(self, batch: NetworkBatch) -> dict[str, Tensor]:
        """`chunks` (B, T, c), and with `std` scaling `spread` (B, L), the logarithm of every layer's.

        Raises:
            ConfigError: the architecture has no values to read.
            TokenizerError: a weight is too large for asinh.
        """
        cutting = _cutting(batch.vector, self.rule)
        tokens = ChunkTokenizer(self.rule).encode_population(
            batch.weights.float(), layout=cutting.layout, layers=cutting.layers
        )
        prepared = {"chunks": tokens.tokens}
        if self.spread is not None:
            prepared["spread"] = tokens.scales["std"][:, cutting.places].log()
        return prepared

    def forward(self, prepared: Mapping[str, Tensor], vector: VectorLayout) -> Tensor:
        """(B, h)."""
        cutting = _cutting(vector, self.rule)
        chunks = prepared["chunks"]
        codes = self._layer_codes(cutting, chunks.device)  # (L, h)
        layers = self.layer(self._encode_chunks(cutting, chunks, codes), cutting.spans) + codes
        if self.spread is not None:
            layers = layers + self.spread(prepared["spread"][:, :, None])
        result: Tensor = self.psi6(self.phi5(layers))
        return result

    def _layer_codes(self, cutting: _Cutting, device: torch.device) -> Tensor:
        """(L, h): what is told of every layer: its type and its depth."""
        codes = torch.zeros((len(cutting.spans), self.dim), device=device)
        if self.type_encoding is not None:
            codes = codes + self.type_encoding(cutting.types.to(device))
        if self.depth_encoding is not None:
            codes = codes + self.depth_encoding(len(cutting.spans))
        return codes

    def _encode_chunks(self, cutting: _Cutting, chunks: Tensor, codes: Tensor) -> Tensor:
        """(B, T, h) from `chunks` (B, T, c)."""
        device, number = chunks.device, len(chunks)
        counts = torch.tensor([count for _, count in cutting.spans], device=device)
        layer = torch.arange(len(counts), device=device).repeat_interleave(counts)
        parts = []
        for length, members in cutting.by_length:
            index = members.to(device)
            told = codes[layer[index]].repeat(number, 1)
            if self.settings.chunk_map == "linear":
                # A vector is read whole: what is behind its end are zeros.
                length = self.settings.chunk_size
            values = chunks[:, index, :length].reshape(-1, length)
            at_once = max(1, self.settings.max_chunks * self.settings.chunk_size // length)
            part = in_blocks(self._encode_values, at_once, values, told)
            parts.append(part.view(number, len(index), self.dim))
        order = torch.cat([members for _, members in cutting.by_length]).to(device)
        result = torch.cat(parts, dim=1)[:, order.argsort()]
        if self.chunk_encoding is not None:
            places = [self.chunk_encoding(count) for _, count in cutting.spans]
            result = result + torch.cat(places)
        return result

    def _encode_values(self, values: Tensor, told: Tensor) -> Tensor:
        """(rows, h) from chunks (rows, c) and what is told of their layers (rows, h)."""
        if self.settings.chunk_map == "linear":
            result: Tensor = self.chunk(self.value(values) + told)
        else:
            elements = self.phi1(self.value(values[:, :, None]))
            result = self.psi2(elements + told[:, None])
        return result


def _cutting(vector: VectorLayout, rule: SneRule) -> _Cutting:
    """The cutting of an architecture.

    Raises:
        ConfigError: it has no values to read.
    """
    inside = tuple(f.spec for f in vector.fields if not f.aside)
    layout = tuple(TensorSpec(s.name, "float32", s.shape, 4 * s.num_elements) for s in inside)
    names = {spec.name for spec in layout}
    layers = tuple(
        LayerSpec(s.index, s.name, s.type, tuple(n for n in s.tensors if n in names))
        for s in vector.layers()
    )
    return _cut(layout, tuple(layer for layer in layers if layer.tensors), rule)


@lru_cache(maxsize=64)
def _cut(layout: Layout, layers: tuple[LayerSpec, ...], rule: SneRule) -> _Cutting:
    plan = make_plan(layout, layers, rule)
    if not plan.num_tokens:
        raise ConfigError(
            f"A network of {len(layout)} tensors has no floating-point value to read. "
            "Leave its architecture out of the query."
        )
    spans: dict[int, tuple[int, int]] = {}
    for run in plan.runs:
        first, count = spans.get(run.layer, (run.first, 0))
        spans[run.layer] = (first, count + run.number * run.tokens)
    lengths = plan.mask().sum(1)
    return _Cutting(
        layout=layout,
        layers=layers,
        by_length=tuple((n, (lengths == n).nonzero()[:, 0]) for n in sorted(set(lengths.tolist()))),
        spans=tuple(spans.values()),
        types=torch.tensor([LAYER_TYPES.index(plan.layers[place].type) for place in spans]),
        places=torch.tensor(list(spans)),
    )
