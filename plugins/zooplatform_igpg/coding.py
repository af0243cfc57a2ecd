"""What a fitted tokenizer is: settings, normalisation and quantiser together; values to codes and back, and on disk.

Legend for shapes: N networks, V values of one, n chunks, S tokens of a chunk, T = n * S tokens, K codes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch

from zooplatform.errors import ArtifactError, TokenizerError
from zooplatform.fit_state import drop_prefix, read_state, with_prefix, write_state
from zooplatform.interfaces import TokenBatch
from zooplatform_igpg.allocation import even_bits, limits_of, total_bits
from zooplatform_igpg.normalise import Normaliser
from zooplatform_igpg.quantizers import TableCoder
from zooplatform_igpg.vectors import make_plan
from zooplatform_igpg.vq_config import TABLES, VqConfig
from zooplatform_igpg.vqvae import LearnedCoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from zooplatform.interfaces import LayerSpec, Layout
    from zooplatform_igpg.quantizers import Coder
    from zooplatform_igpg.vectors import VectorPlan

__all__ = ["Coding"]

_FORMAT = 1
_DESCRIPTION, _TENSORS = "tokenizer.json", "tokenizer.safetensors"
_SLAB = 1 << 22  # values that are coded at once


class Coding:
    """A fitted quantiser with what goes before it.

    Attributes:
        config: how networks are cut, and all other settings.
        normaliser: how weights are scaled.
        coder: the quantiser.
        bits: of the chunks of each layer by architecture, where layers have different numbers of codes.
        device: where it runs.
    """

    def __init__(
        self,
        config: VqConfig,
        normaliser: Normaliser,
        coder: Coder,
        bits: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.config, self.normaliser, self.coder = config, normaliser, coder
        self.bits = dict(bits or {})
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Move the quantiser."""
        self.device = device
        self.coder.to(device)

    def plan(self, layout: Layout, layers: Sequence[LayerSpec]) -> VectorPlan:
        """How networks of a layout are cut."""
        return make_plan(layout, tuple(layers), self.config.mode, self.config.chunk_size)

    def limits(self, plan: VectorPlan) -> torch.Tensor | None:
        """(n,) how many of the first codes each chunk may have; None where that is all."""
        if not self.config.bits:
            return None
        return limits_of(plan, self._bits(plan))

    def num_bits(self, plan: VectorPlan) -> float:
        """Of the codes of a network, padding included."""
        if self.config.bits:
            return float(total_bits(plan, self._bits(plan)))
        each = self.coder.tokens_per_chunk * math.log2(self.coder.num_codes)
        return plan.num_chunks * each

    def _bits(self, plan: VectorPlan) -> Sequence[int]:
        known = self.bits.get(plan.architecture)
        return [even_bits(self.config)] * len(plan.layers) if known is None else known

    # --- values and codes -----------------------------------------------------------------------------------------

    def encode(self, plan: VectorPlan, values: torch.Tensor) -> torch.Tensor:
        """(N, n, S) codes of values (N, V)."""
        pair = self.normaliser.pair(plan)
        shape = (len(values), plan.num_chunks, self.coder.tokens_per_chunk)
        codes = torch.empty(shape, dtype=torch.int64, device=values.device)
        limits = self.limits(plan)
        for rows in _slabs(len(values), plan):
            chunks = plan.chunks(pair.normalise(values[rows])).to(self.device)
            if limits is None:
                found = self.coder.encode(chunks, plan.mask, plan.positions)
            else:
                assert isinstance(self.coder, TableCoder)  # what the configuration of bits demands
                found = self.coder.encode(chunks, plan.mask, plan.positions, limits)
            codes[rows] = found.to(values.device)
        return codes

    def decode(self, plan: VectorPlan, codes: torch.Tensor) -> torch.Tensor:
        """(N, V) values from codes (N, n, S)."""
        values = torch.empty((len(codes), plan.num_values), device=codes.device)
        for rows in _slabs(len(codes), plan):
            chunks = self.coder.decode(codes[rows].to(self.device), plan.positions)
            values[rows] = plan.from_chunks(chunks).to(values.device)
        return self.normaliser.pair(plan).undo(values)

    # --- batches --------------------------------------------------------------------------------------------------

    def batch(
        self, plan: VectorPlan, codes: torch.Tensor, aside: torch.Tensor | None
    ) -> TokenBatch:
        """Codes (N, n, S) as a batch."""
        tokens = codes.flatten(1)
        number = len(tokens)
        mask = torch.ones((1, tokens.shape[1]), dtype=torch.bool, device=tokens.device)
        positions = self.positions(plan).to(tokens.device)
        scales = {} if aside is None else {"aside": aside}
        return TokenBatch(tokens, mask.expand(number, -1), positions.expand(number, -1, -1), scales)

    def positions(self, plan: VectorPlan) -> torch.Tensor:
        """(T, 6): those of the chunks, each as often as it has tokens."""
        each = self.coder.tokens_per_chunk
        positions = plan.positions.repeat_interleave(each, dim=0)
        inner = torch.arange(each).repeat(plan.num_chunks)
        positions[:, 0] = torch.arange(len(positions))
        for column in (2, 5):
            positions[:, column] = positions[:, column] * each + inner
        return positions

    def codes(self, plan: VectorPlan, batch: TokenBatch) -> torch.Tensor:
        """(N, n, S) codes of a batch.

        Raises:
            TokenizerError: its tokens are not of this layout, or no codes.
        """
        tokens, mask, positions = batch.tokens, batch.mask, batch.positions
        needed = plan.num_chunks * self.coder.tokens_per_chunk
        fits = tokens.ndim == 2 and tokens.shape[1] >= needed and not tokens.is_floating_point()
        if fits:
            known = self.positions(plan)[:, : positions.shape[2]].to(positions.device)
            shown = positions[:1] if positions.stride(0) == 0 else positions
            fits = (
                bool(mask[:, :needed].all())
                and not bool(mask[:, needed:].any())
                and bool((shown[:, :needed] == known).all())
            )
        if not fits:
            raise TokenizerError(
                f"Tokens {tuple(tokens.shape)} are not those of this layout, which has {needed}. Decode with the "
                "tokenizer, layout and layers that encoded them."
            )
        codes = tokens[:, :needed].to(torch.int64)
        number = self.coder.num_codes
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < number:
            raise TokenizerError(
                f"Tokens lie between {int(codes.min())} and {int(codes.max())}; those of this tokenizer are codes "
                f"from 0 to {number - 1}."
            )
        return codes.view(len(codes), plan.num_chunks, self.coder.tokens_per_chunk)

    # --- storing --------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer.safetensors`."""
        tensors = with_prefix("coder", self.coder.state()) | with_prefix(
            "known", self.normaliser.known
        )
        write_state(folder / _TENSORS, tensors, {"format": _FORMAT})
        described = {
            "format": _FORMAT,
            "tokenizer": "vq",
            "config": self.config.describe(),
            "pooled": {key: list(pair) for key, pair in self.normaliser.pooled.items()},
            "bits": {key: list(bits) for key, bits in self.bits.items()},
        }
        text = json.dumps(described, indent=2, sort_keys=True)
        (folder / _DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Coding:
        """Read what `save` wrote.

        Raises:
            ArtifactError: a file is missing, damaged or of another format.
            NotInstalledError: its quantiser needs a library that is missing.
        """
        path = folder / _DESCRIPTION
        config, pooled, bits = _description(path)
        tensors, _ = read_state(folder / _TENSORS)
        state = drop_prefix("coder", tensors)
        try:
            coder: Coder = (
                TableCoder.from_state(state)
                if config.quantizer in TABLES
                else LearnedCoder.from_state(state, config)
            )
        except (RuntimeError, KeyError, ValueError) as exc:
            raise ArtifactError(
                f"{folder / _TENSORS} does not fit {path}: {str(exc)[:300]}. Fit the tokenizer again."
            ) from exc
        normaliser = Normaliser(config.normalise, drop_prefix("known", tensors), pooled)
        return cls(config, normaliser, coder, bits)


def _description(
    path: Path,
) -> tuple[VqConfig, dict[str, tuple[float, float]], dict[str, list[int]]]:
    """The settings, pooled normalisation and bits of layers in `tokenizer.json`."""
    try:
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = (described["format"], described["tokenizer"])
        if found != (_FORMAT, "vq"):
            raise ArtifactError(
                f"{path} holds tokenizer {found[1]!r} in format {found[0]!r}; this is 'vq' in format {_FORMAT}. "
                "Load it with what saved it."
            )
        pooled = {str(key): (float(a), float(b)) for key, (a, b) in described["pooled"].items()}
        bits = {str(k): [int(one) for one in v] for k, v in described.get("bits", {}).items()}
        return VqConfig.parse(described["config"]), pooled, bits
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. Fit the tokenizer again.") from None
    except ArtifactError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ArtifactError(f"{path} is damaged ({exc}). Fit the tokenizer again.") from exc


def _slabs(number: int, plan: VectorPlan) -> list[slice]:
    step = max(1, _SLAB // max(1, plan.num_chunks * plan.size))
    return [slice(start, min(start + step, number)) for start in range(0, number, step)]
