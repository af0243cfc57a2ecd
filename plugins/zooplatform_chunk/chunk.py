"""Chunks: layers flattened, zero-padded and cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zooplatform.errors import ConfigError
from zooplatform_chunk.plan import Cut
from zooplatform_chunk.tokenizer import BlockTokenizer, ScaledRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.interfaces import TensorSpec

__all__ = ["ChunkRule", "ChunkTokenizer"]


@dataclass(frozen=True, kw_only=True)
class ChunkRule(ScaledRule):
    """Settings of `chunk`.

    Attributes:
        chunk_size: values of a token.
        neuron_rows: every output unit of a matrix begins a new token, so that no token holds weights of two units.
        kernels: every kernel of a convolution begins a new token.
    """

    chunk_size: int = 64
    neuron_rows: bool = False
    kernels: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.chunk_size, int) or self.chunk_size < 1:
            raise ConfigError(f"chunk_size is {self.chunk_size!r}; use a whole number from 1 on.")
        for switch in ("neuron_rows", "kernels"):
            if not isinstance(getattr(self, switch), bool):
                raise ConfigError(f"{switch} is {getattr(self, switch)!r}; use true or false.")

    def cut(self, layer_type: str, tensors: Sequence[TensorSpec]) -> list[Cut]:
        """Tensors with rows or kernels of their own, then all others one after the other."""
        cuts, flat = [], []
        for spec in tensors:
            axes = len(spec.shape)
            if self.kernels and layer_type == "conv" and axes > 2:
                units, channels = spec.shape[:2]
                cuts.append(Cut((spec,), units * channels, channels))
            elif self.neuron_rows and layer_type != "conv" and axes > 1:
                cuts.append(Cut((spec,), spec.num_elements // spec.shape[-1], 1))
            else:
                flat.append(spec)
        return [*cuts, Cut(tuple(flat))] if flat else cuts

    def token_width(self, cuts: Sequence[tuple[str, Cut]]) -> int:
        """The chunk size."""
        return self.chunk_size


class ChunkTokenizer(BlockTokenizer[ChunkRule]):
    """Pad and chunk: the weights of a layer, then its bias, as tokens of `chunk_size` values."""

    name = "chunk"

    def __init__(self, rule: ChunkRule | None = None) -> None:
        super().__init__(rule or ChunkRule())
