"""What the tokenizer `vq` can be told.

{"base": "kmeans", "codebook_size": 64}        # a named configuration, changed
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError
from zooplatform_igpg.normalise import NORMALISATIONS
from zooplatform_igpg.settings import at_least, checked, on_base
from zooplatform_igpg.vectors import MODES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONFIGS", "LEARNED", "QUANTIZERS", "TABLES", "VqConfig"]

TABLES = ("kmeans", "scalar")
LEARNED = ("gumbel", "rvq", "fsq")
QUANTIZERS = (*TABLES, *LEARNED)

_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": MODES,
    "normalise": NORMALISATIONS,
    "quantizer": QUANTIZERS,
    "network": ("mlp", "transformer"),
    "logits": ("linear", "distance"),
    "metric": ("plain", "hessian"),
}

CONFIGS: dict[str, dict[str, Any]] = {
    # A fit in seconds, for tests and first looks.
    "debug": {"mode": "unit", "chunk_size": 2, "codebook_size": 16, "iterations": 5},
    # The sizes that the paper's tables imply, IGPG (arXiv 2504.02012), with a codebook of 1,024 and 64 dimensions.
    "paper": {
        "quantizer": "gumbel", "mode": "network", "chunk_size": 256, "slots": 16, "code_dim": 64,
        "codebook_size": 1024, "width": 1024, "depth": 4, "steps": 20_000, "logits": "linear",
    },
    "kmeans": {"quantizer": "kmeans", "mode": "unit", "chunk_size": 4, "codebook_size": 512},
    "scalar": {"quantizer": "scalar", "mode": "unit", "codebook_size": 8},
    "gumbel": {"quantizer": "gumbel", "mode": "layer", "chunk_size": 16, "slots": 4},
    "rvq": {"quantizer": "rvq", "mode": "layer", "chunk_size": 16, "slots": 1, "levels": 4},
    "fsq": {"quantizer": "fsq", "mode": "layer", "chunk_size": 16, "slots": 4},
    # 2.4 bits a weight, written for the function: the best rate for which whole networks stay useful.
    "best": {
        "quantizer": "kmeans", "mode": "unit", "chunk_size": 4, "codebook_size": 512,
        "feedback": True, "refit": True,
    },
    # 2 bits a weight, shared out among layers by what their errors do.
    "shared": {
        "quantizer": "kmeans", "mode": "unit", "chunk_size": 4, "codebook_size": 2048, "bits": 2.0,
        "feedback": True, "refit": True,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VqConfig:
    """A whole tokenizer.

    Attributes:
        mode: how networks are cut, one of `vectors.MODES`.
        chunk_size: values of a chunk; `scalar` has 1.
        normalise: one of `normalise.NORMALISATIONS`.
        quantizer: one of `QUANTIZERS`.
        codebook_size: K; `fsq` has the product of `fsq_levels` instead.
        bits: bits a weight that are shared out among layers, to each the more codes the more its errors change outputs
            (`allocation`); 0 gives all layers all codes.
        levels: tables of residuals, each chunk's codes one after the other (`kmeans`, `rvq`).
        sample: chunks that tables are learnt from.
        iterations: at most so many of Lloyd's.
        feedback: whether encoding for the function pushes errors into the weights still to be coded.
        refit: whether it first fits each layer anew to what the original network computed.
        metric: how such encoding chooses codes: `plain` nearest in weights, or `hessian`, nearest in outputs.
        beam: for every unit it keeps so many sequences of codes; 1 takes the best code at every chunk. One level only.
        sweeps: how often it goes over all codes again, each chosen anew with all others held.
        tries: so many encodings are made, in other orders, of which the one nearest in outputs is kept.
        damping: what is added to the diagonal of a layer's second moments, as a share of its mean.
        refit_damping: the same in refitting, where it holds to the original weights.
        feedback_images: unlabelled images that such encoding looks at.
        feedback_rows: at most so many patches of them for a layer.
        network: encoder and decoder, `mlp` chunk by chunk or `transformer` over the chunks of a network.
        slots: tokens of a chunk before levels.
        code_dim: values of a code of `gumbel` and `rvq`.
        width, depth, heads: of encoder and decoder.
        fsq_levels: levels of each value of a code of `fsq`.
        steps, batch_size, learning_rate, weight_decay, warmup: of fitting; a batch is of networks.
        commitment, codebook_weight: gamma and beta of the loss.
        logits: of `gumbel`, a `linear` map of the latent or minus the `distance` to the codes.
        hard: whether fitting sees one code (straight through) or a mixture of them.
        tau_start, tau_end, cycles: the temperature falls from one to the other, so many times.
        decay: of the moving averages of `rvq`.
        restart: steps without use after which a code begins anew; 0 never.
        functional_weight: weight of the difference of logits beside that of the weights, which is 1.
        functional_images: images that logits are compared on.
    """

    mode: str = "unit"
    chunk_size: int = 4
    normalise: str = "layer"
    quantizer: str = "kmeans"
    codebook_size: int = 512
    bits: float = 0.0
    levels: int = 1
    sample: int = 200_000
    iterations: int = 25
    feedback: bool = False
    refit: bool = False
    metric: str = "hessian"
    beam: int = 16
    sweeps: int = 2
    tries: int = 1
    damping: float = 0.01
    refit_damping: float = 0.01
    feedback_images: int = 256
    feedback_rows: int = 2048
    network: str = "mlp"
    slots: int = 1
    code_dim: int = 16
    width: int = 256
    depth: int = 2
    heads: int = 4
    fsq_levels: tuple[int, ...] = (8, 8, 8)
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05
    commitment: float = 0.25
    codebook_weight: float = 1.0
    logits: str = "distance"
    hard: bool = True
    tau_start: float = 1.0
    tau_end: float = 1e-4
    cycles: int = 4
    decay: float = 0.95
    restart: int = 100
    functional_weight: float = 0.0
    functional_images: int = 32

    def __post_init__(self) -> None:
        for name in (
            *("chunk_size", "levels", "sample", "iterations", "feedback_images", "feedback_rows"),
            *(
                "beam",
                "tries",
                "slots",
                "code_dim",
                "width",
                "depth",
                "heads",
                "batch_size",
                "cycles",
            ),
        ):
            at_least(name, getattr(self, name), 1)
        at_least("codebook_size", self.codebook_size, 2)
        if self.quantizer in TABLES and self.slots != 1:
            raise ConfigError(f"slots is {self.slots}; {self.quantizer} has one code for a chunk.")
        if self.quantizer == "scalar" and self.chunk_size != 1:
            raise ConfigError(
                "chunk_size of the quantizer scalar is 1; take kmeans for larger ones."
            )
        if self.quantizer in ("gumbel", "fsq") and self.levels != 1:
            raise ConfigError(f"levels is {self.levels}; only kmeans and rvq have several.")
        if self.feedback and (self.mode != "unit" or self.quantizer not in TABLES):
            raise ConfigError(
                "feedback pushes errors along the inputs of a unit: it needs mode unit, and quantizer kmeans or scalar."
            )
        if self.refit and not self.feedback:
            raise ConfigError("refit is a part of feedback; set feedback too.")
        if self.bits and not (self.feedback and self.levels == 1 and self.bits > 0):
            raise ConfigError(
                f"bits is {self.bits}; it lies above 0, and layers share it by what coding with feedback changes: set "
                "feedback, and one level."
            )
        if self.bits and self.codebook_size & (self.codebook_size - 1):
            raise ConfigError(
                f"codebook_size is {self.codebook_size}; with bits it is a power of two, as chunks have whole bits."
            )
        if not self.fsq_levels or min(self.fsq_levels) < 2:
            raise ConfigError(f"fsq_levels is {list(self.fsq_levels)}; give numbers from 2 on.")
        if self.width % self.heads and self.network == "transformer":
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}.")
        if not 0 < self.tau_end <= self.tau_start:
            raise ConfigError("tau_end lies above 0 and not above tau_start.")
        if self.functional_weight and self.quantizer not in LEARNED:
            raise ConfigError(
                f"functional_weight: {self.quantizer} learns no network. Take one of {', '.join(LEARNED)}."
            )

    @property
    def num_codes(self) -> int:
        """K."""
        return math.prod(self.fsq_levels) if self.quantizer == "fsq" else self.codebook_size

    @property
    def tokens_per_chunk(self) -> int:
        return self.slots * self.levels

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> VqConfig:
        """From a mapping; an empty one is `best`.

        Raises:
            ConfigError: a key is not known, or its value does not fit.
        """
        table = on_base(given, CONFIGS, "best")
        if table.get("quantizer") == "scalar":
            table.setdefault("chunk_size", 1)
        defaults = {field.name: field.default for field in fields(cls)}
        return cls(**{n: checked(n, value, defaults, _CHOICES) for n, value in table.items()})

    def describe(self) -> dict[str, Any]:
        """Everything, as `parse` takes it."""
        return {**asdict(self), "fsq_levels": list(self.fsq_levels)}
