"""Where every value of a network goes: the plan that cuts a layout into tokens.

A layer is cut into runs; a run starts a new token and fills as many as it needs, the last one padded. Runs of equal
length and their tensors are kept together as one `Run`, so that a tensor of all networks is moved by one strided copy.
Legend for shapes: T tokens of a network, C values of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from zooplatform.interfaces import LAYER_TYPES, POSITION_COLUMNS, LayerSpec
from zooplatform_chunk.layers import complete_layers
from zooplatform_chunk.values import is_token, token_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.interfaces import Layout, TensorSpec

__all__ = ["Cut", "Piece", "Plan", "Rule", "Run", "make_plan"]


class Cut(NamedTuple):
    """Tensors of a layer that are cut alike: `number` runs, each with 1 / `number` of every tensor, side by side.

    `per_unit` is how many runs make one output unit, 0 where runs are not of one unit.
    """

    tensors: tuple[TensorSpec, ...]
    number: int = 1
    per_unit: int = 0

    @property
    def length(self) -> int:
        """Values in a run."""
        return sum(spec.num_elements for spec in self.tensors) // self.number


class Rule(Protocol):
    """How a tokenizer cuts; hashable, since plans are kept."""

    def cut(self, layer_type: str, tensors: Sequence[TensorSpec]) -> list[Cut]:
        """The runs of a layer, whose `tensors` are not empty."""

    def token_width(self, cuts: Sequence[tuple[str, Cut]]) -> int:
        """Values of a token, from the layer types and runs of a network."""


class Piece(NamedTuple):
    """A tensor in its runs: values `column` to `column + length` of each."""

    spec: TensorSpec
    column: int
    length: int


class Run(NamedTuple):
    """`number` runs of `tokens` tokens each, from token `first` on; `layer` is the place of the layer in the plan."""

    layer: int
    first: int
    number: int
    tokens: int
    per_unit: int
    pieces: tuple[Piece, ...]

    def view(self, stream: torch.Tensor, piece: Piece, width: int) -> torch.Tensor:
        """(N, number, length): the place of a piece in tokens given as (N, T * C)."""
        span = self.tokens * width
        runs = stream[:, self.first * width : self.first * width + self.number * span]
        inside = runs.view(-1, self.number, span)
        return inside[:, :, piece.column : piece.column + piece.length]


@dataclass(frozen=True)
class Plan:
    """How the networks of one layout are cut.

    Attributes:
        layout: all tensors in state-dict order.
        layers: every layer of the layout.
        runs: in the order of the tokens.
        aside: tensors that are kept as bytes, in state-dict order.
        width: C, at least 1.
        num_tokens: T.
        dtype: of the tokens.
    """

    layout: Layout
    layers: tuple[LayerSpec, ...]
    runs: tuple[Run, ...]
    aside: tuple[TensorSpec, ...]
    width: int
    num_tokens: int
    dtype: torch.dtype

    @property
    def aside_bytes(self) -> int:
        return sum(spec.size_bytes for spec in self.aside)

    @property
    def narrow(self) -> tuple[TensorSpec, ...]:
        """Tensors that are cast to the dtype of the tokens, in the order of the runs."""
        name = str(self.dtype).removeprefix("torch.")
        return tuple(p.spec for run in self.runs for p in run.pieces if p.spec.dtype != name)

    def pieces_by_layer(self) -> list[list[tuple[Run, Piece]]]:
        """The pieces of every layer, in the order of the runs."""
        found: list[list[tuple[Run, Piece]]] = [[] for _ in self.layers]
        for run in self.runs:
            found[run.layer] += [(run, piece) for piece in run.pieces]
        return found

    def mask(self) -> torch.Tensor:
        """(T, C) bool, True where a value is of the network."""
        mask = torch.zeros((1, self.num_tokens * self.width), dtype=torch.bool)
        for run in self.runs:
            for piece in run.pieces:
                run.view(mask, piece, self.width).fill_(True)
        return mask.view(self.num_tokens, self.width)

    def positions(self) -> torch.Tensor:
        """(T, 6) int64, see `POSITION_COLUMNS`."""
        positions = torch.zeros((self.num_tokens, len(POSITION_COLUMNS)), dtype=torch.int64)
        positions[:, 0] = torch.arange(self.num_tokens)
        for run in self.runs:
            begin = next(r.first for r in self.runs if r.layer == run.layer)
            total = run.number * run.tokens
            span = run.per_unit * run.tokens or total
            index = torch.arange(total)
            rows = positions[run.first : run.first + total]
            rows[:, 1] = self.layers[run.layer].index
            rows[:, 2] = index + (run.first - begin)
            rows[:, 3] = LAYER_TYPES.index(self.layers[run.layer].type)
            rows[:, 4] = index // span if run.per_unit else -1
            rows[:, 5] = index % span
        return positions


@lru_cache(maxsize=64)
def make_plan(layout: Layout, layers: tuple[LayerSpec, ...], rule: Rule) -> Plan:
    """Cut a layout by a rule.

    Raises:
        TokenizerError: the layers are not of this layout.
    """
    whole = complete_layers(layout, layers)
    specs = {spec.name: spec for spec in layout}
    cuts: list[tuple[int, Cut]] = []
    for place, layer in enumerate(whole):
        # Tensors without elements have neither tokens nor bytes: the layout says all of them.
        tensors = [s for s in (specs[name] for name in layer.tensors) if s.num_elements]
        tensors = [spec for spec in tensors if is_token(spec)]
        if tensors:
            cuts += [(place, cut) for cut in rule.cut(layer.type, tensors)]
    width = rule.token_width([(whole[place].type, cut) for place, cut in cuts])
    runs: list[Run] = []
    first = 0
    for place, cut in cuts:
        lengths = [spec.num_elements // cut.number for spec in cut.tensors]
        columns = [0, *accumulate(lengths)]
        pieces = tuple(map(Piece, cut.tensors, columns, lengths))
        tokens = -(-columns[-1] // width)
        runs.append(Run(place, first, cut.number, tokens, cut.per_unit, pieces))
        first += cut.number * tokens
    return Plan(
        layout=layout,
        layers=whole,
        runs=tuple(runs),
        aside=tuple(spec for spec in layout if not is_token(spec)),
        width=width,
        num_tokens=first,
        dtype=token_dtype(layout),
    )
