"""Learned quantisers: a VQ-VAE over chunks of weights, with three ways to make its latents codes.

`gumbel`: logits over a codebook, in fitting mixed by a Gumbel softmax of falling temperature, in encoding the greatest
(IGPG, arXiv 2504.02012, equations 1 and 2). `rvq`: residual quantisation with codebooks that follow by moving averages
(arXiv 2107.03312). `fsq`: every value of a latent rounded to few levels (arXiv 2309.15505). The last two are those of
vector-quantize-pytorch.

Legend for shapes: B networks, n chunks of a network, C values of a chunk, s slots of a chunk (its latents), q levels,
S = s * q tokens of a chunk, K codes, e values of a latent, w width.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from zooplatform.errors import NotInstalledError
from zooplatform.interfaces import LAYER_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform_igpg.vq_config import VqConfig

__all__ = ["LearnedCoder", "Quantised", "VqVae", "build_model"]

_MOST_LAYERS = 64  # layers from here on share one embedding
_WEIGHT_ROWS = 1 << 15  # chunks that a network of chunks sees at once in encoding


class Quantised(NamedTuple):
    """What a quantiser makes of latents: `latents` (M, e) to decode, `codes` (M, q), and its own `loss`."""

    latents: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor


# --- encoder and decoder ----------------------------------------------------------------------------------------------


class _Residual(nn.Module):
    """x + MLP(norm(x)), values (..., w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class _ChunkNet(nn.Module):
    """(B, n, inputs) to (B, n, outputs), told the type and the number of each chunk's layer.

    As `mlp` it looks at every chunk alone, as `transformer` at all chunks of a network.
    """

    def __init__(self, inputs: int, outputs: int, config: VqConfig) -> None:
        super().__init__()
        width = config.width
        self.into = nn.Linear(inputs, width)
        self.types = nn.Embedding(len(LAYER_TYPES), width)
        self.layers = nn.Embedding(_MOST_LAYERS, width)
        self.blocks: nn.Module
        if config.network == "mlp":
            self.blocks = nn.Sequential(*[_Residual(width) for _ in range(config.depth)])
        else:
            layer = nn.TransformerEncoderLayer(
                width,
                config.heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            self.blocks = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
        self.places = config.network == "transformer"
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, outputs)
        for table in (self.types, self.layers):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        number = positions[:, 1].clamp(0, _MOST_LAYERS - 1)
        hidden = self.into(x) + self.types(positions[:, 3]) + self.layers(number)
        if self.places:
            hidden = hidden + _waves(positions[:, 0], hidden.shape[-1])
        out: torch.Tensor = self.out(self.norm(self.blocks(hidden)))
        return out


def _waves(places: torch.Tensor, width: int) -> torch.Tensor:
    """(n, w) sines and cosines of places (n,)."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=places.device) * (-math.log(10_000.0) / half))
    angles = places.unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


# --- quantisers -------------------------------------------------------------------------------------------------------


class _Gumbel(nn.Module):
    """Codes by a Gumbel softmax; `window` counts how often each was the greatest since the last look."""

    levels = 1

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))
        self.to_logits = (
            nn.Linear(config.code_dim, config.codebook_size) if config.logits == "linear" else None
        )
        self.hard, self.restart = config.hard, config.restart
        self.commitment, self.codebook_weight = config.commitment, config.codebook_weight
        self.cycles = config.cycles
        self.tau_start, self.tau_end = config.tau_start, config.tau_end
        self.register_buffer("window", torch.zeros(config.codebook_size))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.window: torch.Tensor
        self.begun: torch.Tensor

    def temperature(self, share: float) -> float:
        """Falls from the first to the last along half a cosine in every cycle; `share` of all steps are done."""
        inner = share * self.cycles % 1.0
        return self.tau_end + (self.tau_start - self.tau_end) * (1 + math.cos(math.pi * inner)) / 2

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """(M, K)."""
        if self.to_logits is not None:
            found: torch.Tensor = self.to_logits(latents)
            return found
        half = self.codebook.square().sum(1) / 2
        return latents @ self.codebook.T - half

    def forward(self, latents: torch.Tensor, share: float) -> Quantised:
        if self.training and not bool(self.begun):  # codes begin where latents are
            every = torch.arange(len(self.codebook), device=latents.device)
            for part in torch.split(every, len(latents)):
                self._begin_again(part, latents.detach())
            self.begun.fill_(True)
        logits = self.logits(latents)
        mixed = F.gumbel_softmax(logits, tau=self.temperature(share), hard=self.hard)
        quantised = mixed @ self.codebook
        codes = logits.detach().argmax(1)
        self.window += torch.bincount(codes, minlength=len(self.window))
        loss = self.commitment * F.mse_loss(latents, quantised.detach())
        loss = loss + self.codebook_weight * F.mse_loss(quantised, latents.detach())
        return Quantised(quantised, codes.unsqueeze(1), loss)

    @torch.no_grad()
    def after_step(self, step: int, latents: torch.Tensor) -> None:
        """Let codes that were not used since the last look begin again at latents (M, e) of the batch."""
        if not self.restart or (step + 1) % self.restart:
            return
        dead = (self.window == 0).nonzero().squeeze(1)
        self.window.zero_()
        self._begin_again(
            dead[torch.randperm(len(dead), device=dead.device)[: len(latents)]], latents
        )

    @torch.no_grad()
    def _begin_again(self, codes: torch.Tensor, latents: torch.Tensor) -> None:
        """Let `codes` stand for as many of the latents (M, e), with the greatest logits there."""
        chosen = latents[torch.randperm(len(latents), device=latents.device)[: len(codes)]]
        self.codebook[codes] = chosen
        if self.to_logits is not None:
            # The logits of a mixture of normal distributions around the codes.
            self.to_logits.weight[codes] = chosen
            self.to_logits.bias[codes] = -chosen.square().sum(1) / 2

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.logits(latents).argmax(1, keepdim=True)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.codebook[codes[:, 0]]

    def code_vectors(self) -> torch.Tensor:
        return self.codebook.detach().unsqueeze(0)


class _ResidualCodes(nn.Module):
    """ResidualVQ of vector-quantize-pytorch."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ

        self.levels = config.levels
        self.inner = ResidualVQ(
            dim=config.code_dim, num_quantizers=config.levels, codebook_size=config.codebook_size,
            decay=config.decay, kmeans_init=True, kmeans_iters=10, commitment_weight=config.commitment,
            threshold_ema_dead_code=1 if config.restart else 0,
        )  # fmt: skip

    def forward(self, latents: torch.Tensor, share: float) -> Quantised:
        quantised, codes, losses = self.inner(latents.unsqueeze(0))
        return Quantised(quantised[0], codes[0], losses.sum())

    def after_step(self, step: int, latents: torch.Tensor) -> None:
        """Its codebooks follow by themselves."""

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(latents.unsqueeze(0))[1][0]
        return found

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner.get_output_from_indices(codes.unsqueeze(0))[0]
        return found

    def code_vectors(self) -> torch.Tensor:
        found: torch.Tensor = self.inner.codebooks.detach()
        return found


class _FiniteCodes(nn.Module):
    """FSQ of vector-quantize-pytorch."""

    levels = 1

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ

        # Two levels have no middle one; they are then placed symmetrically.
        symmetric = 2 in config.fsq_levels
        self.inner = FSQ(list(config.fsq_levels), dim=config.code_dim, preserve_symmetry=symmetric)

    def forward(self, latents: torch.Tensor, share: float) -> Quantised:
        quantised, codes = self.inner(latents.unsqueeze(0))
        return Quantised(quantised[0], codes[0].long().unsqueeze(1), latents.new_zeros(()))

    def after_step(self, step: int, latents: torch.Tensor) -> None:
        """It has no codebook to keep alive."""

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(latents.unsqueeze(0))[1][0]
        return found.long().unsqueeze(1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner.indices_to_codes(codes[:, 0].unsqueeze(0))[0]
        return found

    def code_vectors(self) -> torch.Tensor:
        found: torch.Tensor = self.inner.implicit_codebook.detach()
        return found.unsqueeze(0)


# --- the model --------------------------------------------------------------------------------------------------------


class VqVae(nn.Module):
    """Chunks to latents, latents to codes, and back.

    Attributes:
        quantizer: `_Gumbel`, `_ResidualCodes` or `_FiniteCodes`.
    """

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.slots, self.code_dim = config.slots, config.code_dim
        self.encoder = _ChunkNet(config.chunk_size, config.slots * config.code_dim, config)
        self.decoder = _ChunkNet(config.slots * config.code_dim, config.chunk_size, config)
        kinds: dict[str, Any] = {"gumbel": _Gumbel, "rvq": _ResidualCodes, "fsq": _FiniteCodes}
        self.quantizer = kinds[config.quantizer](config)

    def forward(
        self, chunks: torch.Tensor, positions: torch.Tensor, share: float
    ) -> tuple[torch.Tensor, Quantised, torch.Tensor]:
        """Chunks (B, n, C) as they come back, what the quantiser made, and the latents (B * n * s, e) before it."""
        latents = self.latents(chunks, positions)
        made = self.quantizer(latents, share)
        return self.chunks(made.latents, positions), made, latents

    def latents(self, chunks: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B * n * s, e) from chunks (B, n, C)."""
        out: torch.Tensor = self.encoder(chunks, positions)
        return out.reshape(-1, self.code_dim)

    def chunks(self, latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B, n, C) from latents (B * n * s, e)."""
        out: torch.Tensor = self.decoder(
            latents.view(-1, len(positions), self.slots * self.code_dim), positions
        )
        return out


def build_model(config: VqConfig, seed: int) -> VqVae:
    """A new model, its parameters drawn by the seed.

    Raises:
        NotInstalledError: the quantiser needs a library that is missing.
    """
    if config.quantizer in ("rvq", "fsq") and find_spec("vector_quantize_pytorch") is None:
        raise NotInstalledError(
            f"Quantizer {config.quantizer!r}",
            ["vector-quantize-pytorch"],
            "pip install 'zooplatform[generate]'",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VqVae(config)


class LearnedCoder:
    """A fitted model as a `Coder`."""

    def __init__(self, model: VqVae, config: VqConfig) -> None:
        self.model = model.eval()
        self.num_codes = config.num_codes
        self.levels = config.levels
        self.tokens_per_chunk = config.tokens_per_chunk
        self._whole = config.network == "transformer"

    @torch.no_grad()
    def encode(
        self, chunks: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """See `Coder.encode`."""
        if not len(mask):
            return chunks.new_zeros((len(chunks), 0, self.tokens_per_chunk), dtype=torch.int64)
        self.model.eval()
        places = positions.to(chunks.device)
        parts = [
            self.model.quantizer.encode(self.model.latents(part, places))
            for part in torch.split(chunks, max(1, _WEIGHT_ROWS // len(mask)))
        ]
        return torch.cat(parts).view(len(chunks), len(mask), self.tokens_per_chunk)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """See `Coder.decode`."""
        if not codes.shape[1]:
            return codes.new_zeros((len(codes), 0, 1), dtype=torch.float32)
        self.model.eval()
        places = positions.to(codes.device)
        parts = [
            self.model.chunks(self.model.quantizer.decode(part.reshape(-1, self.levels)), places)
            for part in torch.split(codes, max(1, _WEIGHT_ROWS // codes.shape[1]))
        ]
        return torch.cat(parts)

    def code_vectors(self) -> torch.Tensor:
        """Of the latent space, (q, K, e); of `fsq` the levels themselves."""
        found: torch.Tensor = self.model.quantizer.code_vectors()
        return found.cpu()

    def state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], config: VqConfig) -> LearnedCoder:
        """The reverse of `state`.

        Raises:
            RuntimeError: the tensors are not those of this configuration.
        """
        model = build_model(config, 0)
        model.load_state_dict(dict(state))
        return cls(model, config)
