"""Chunks to codes and back: what every quantiser does, and those that are plain tables.

Legend for shapes: B networks, n chunks of a network, C values of a chunk, K codes, q levels, S tokens of a chunk (level
after level), d values of a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from zooplatform_igpg.kmeans import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Coder", "TableCoder", "mask_groups"]


class Coder(Protocol):
    """A fitted quantiser.

    Attributes:
        num_codes: K.
        levels: q.
        tokens_per_chunk: S; the token j of a chunk is of level j modulo q.
    """

    num_codes: int
    levels: int
    tokens_per_chunk: int

    def encode(
        self, chunks: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """(B, n, S) int64 from normalised chunks (B, n, C), zero in padding; nothing is random.

        `mask` (n, C) and `positions` (n, 6) are those of the plan.
        """

    def decode(self, codes: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B, n, C) from codes (B, n, S)."""

    def code_vectors(self) -> torch.Tensor:
        """(q, K, d) float32: what a code stands for."""

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors to be stored."""

    def to(self, device: torch.device) -> None:
        """Move to a device."""


class TableCoder:
    """Codes that stand for vectors of weights: nearest in encoding, looked up and added in decoding.

    Attributes:
        tables: (q, K, C).
    """

    def __init__(self, tables: torch.Tensor) -> None:
        self.tables = tables
        self.levels, self.num_codes, self.size = tables.shape
        self.tokens_per_chunk = self.levels

    def encode(
        self,
        chunks: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        limits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Coder.encode`. Padding has no part in what is nearest.

        With `limits` (n,) a chunk has one of so many of the first codes.
        """
        number = len(chunks)
        shape = (number, len(mask), self.levels)
        codes = torch.empty(shape, dtype=torch.int64, device=chunks.device)
        kinds = mask if limits is None else torch.cat([mask, limits[:, None]], dim=1)
        for kind, rows in mask_groups(kinds):
            real = kind[: mask.shape[1]].bool()
            most = self.num_codes if limits is None else int(kind[-1])
            own = chunks if len(rows) == len(mask) else chunks[:, rows]
            whole = bool(real.all())
            rest = (own if whole else own[..., real]).flatten(0, 1)
            for level, table in enumerate(self.tables[:, :most]):
                shown = table if whole else table[:, real]
                found = nearest(rest, shown)
                codes[:, rows, level] = found.view(number, len(rows))
                if level + 1 < self.levels:
                    rest = rest - shown[found]
        return codes

    def decode(self, codes: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """See `Coder.decode`."""
        chunks = self.tables[0][codes[..., 0]]
        for level in range(1, self.levels):
            chunks = chunks + self.tables[level][codes[..., level]]
        return chunks

    def code_vectors(self) -> torch.Tensor:
        """The tables: vectors of normalised weights."""
        return self.tables.cpu()

    def state(self) -> dict[str, torch.Tensor]:
        return {"tables": self.tables}

    def to(self, device: torch.device) -> None:
        self.tables = self.tables.to(device)

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> TableCoder:
        """The reverse of `state`."""
        return cls(state["tables"])


def mask_groups(mask: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Which values are real (C,), and the chunks (m,) of which that is so; most chunks of a network share one. Rows may
    hold more that tells chunks apart."""
    if not len(mask):
        return []
    kinds, of_chunk = torch.unique(mask, dim=0, return_inverse=True)
    return [(real, (of_chunk == at).nonzero().squeeze(1)) for at, real in enumerate(kinds)]
