"""The tokenizer `vq`: networks as indices into codebooks.

A network is cut into chunks (`vectors`), its weights are normalised as the training networks were (`normalise`), and
every chunk becomes one or several indices (`quantizers`, `vqvae`). Decoding needs the indices alone.

Legend for shapes: N networks, P weights of one, V values that are coded, n chunks, S tokens of a chunk, T = n * S
tokens, K codes, q levels, d values of a code.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from zooplatform.errors import ConfigError, TokenizerError
from zooplatform.interfaces import FitReport
from zooplatform.layout import VectorLayout
from zooplatform_chunk.columns import columns_of_population, columns_of_state
from zooplatform_chunk.values import torch_dtype
from zooplatform_igpg.allocation import measured_bits
from zooplatform_igpg.coding import Coding
from zooplatform_igpg.corpus import Corpus, chunk_sample, measure
from zooplatform_igpg.diagnostics import CodeUse, Reconstruction
from zooplatform_igpg.feedback import encode_for_function
from zooplatform_igpg.kmeans import nested_table, residual_tables
from zooplatform_igpg.quantizers import TableCoder
from zooplatform_igpg.vq_config import CONFIGS, TABLES, VqConfig
from zooplatform_igpg.vq_learning import fit_model
from zooplatform_igpg.vqvae import LearnedCoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from zooplatform.datasets import WeightDataset
    from zooplatform.fitting import Blueprint, FitData
    from zooplatform.interfaces import (
        Config,
        LayerSpec,
        Layout,
        Progress,
        StateDict,
        TokenBatch,
    )
    from zooplatform_igpg.normalise import Normaliser
    from zooplatform_igpg.vectors import VectorPlan

__all__ = ["VqTokenizer"]

_LOOKED_AT = 512  # validation networks that a fit is measured on


class VqTokenizer:
    """Networks as indices into codebooks; see `vq_config` for what it can be told."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = CONFIGS

    def __init__(self) -> None:
        self._coding: Coding | None = None

    @property
    def config(self) -> VqConfig:
        """What it was fitted with.

        Raises:
            ConfigError: it is not fitted.
        """
        return self._fitted().config

    # --- fitting --------------------------------------------------------------------------------------------------

    def fit(self, states: Iterable[StateDict], *, seed: int, config: Config | None = None) -> None:
        """Learn normalisation and codebooks from state dicts, which are held in memory meanwhile.

        Raises:
            ConfigError: a setting is unknown or not usable, or there are too few networks.
        """
        parsed = VqConfig.parse(config or {})
        self._fit(parsed, Corpus(parsed, states), None, seed)

    def fit_networks(self, data: FitData, *, config: Config, seed: int) -> FitReport:
        """Learn from the networks of `data.train`, measure on those of `data.validation`.

        The report has, of the validation networks: `bits_per_weight`, `tokens` of a network (the most), `relative_mse`
        (error of the weights over their size), `normalised_mse` (the same in normalised weights, so that every layer
        counts alike), `perplexity` (of a level), `dead_codes` (never used, of all levels) and `codebook_use` (the
        share that was).

        Args:
            data: a `GeneratorData` lets learned quantisers learn from outputs too (`functional_weight`).
            config: see `VqConfig`.
            seed: of everything random.

        Raises:
            ConfigError: as `fit`.
        """
        began = time.monotonic()
        parsed = VqConfig.parse(config)
        corpus = Corpus(parsed, data.train)
        metrics, notes = self._fit(parsed, corpus, data, seed)
        metrics |= self.measure(data.validation)
        metrics["num_train"] = float(len(corpus))
        return FitReport(metrics=metrics, seconds=time.monotonic() - began, notes=tuple(notes))

    def _fit(
        self, config: VqConfig, corpus: Corpus, data: FitData | None, seed: int
    ) -> tuple[dict[str, float], list[str]]:
        normaliser = measure(corpus, config.normalise)
        if config.quantizer in TABLES:
            tables = _tables(config, corpus, normaliser, data, seed)
            coder = TableCoder(tables.cpu())
            bits = {}
            if config.bits:
                bits = measured_bits(config, coder, normaliser, list(corpus.plans.values()), data)
            self._coding = Coding(config, normaliser, coder, bits)
            return {}, []
        learnt = fit_model(config, corpus, normaliser, data, seed)
        self._coding = Coding(config, normaliser, LearnedCoder(learnt.model, config))
        return learnt.metrics, learnt.notes

    def measure(self, networks: WeightDataset | Iterable[StateDict]) -> dict[str, float]:
        """Rate, error and use of the codebooks, see `fit_networks`, on at most some hundred of the networks."""
        coding = self._fitted()
        use, error = CodeUse(coding.coder.levels, coding.coder.num_codes), Reconstruction()
        most, looked = 0, 0
        for plan, every, _ in Corpus(coding.config, networks).groups():
            values = every[: _LOOKED_AT - looked]
            looked += len(values)
            pair = coding.normaliser.pair(plan)
            codes = coding.encode(plan, values)
            decoded = coding.decode(plan, codes)
            use.add(codes)
            error.add("normalised_mse", pair.normalise(decoded), pair.normalise(values))
            error.add_values("relative_mse", plan.columns(decoded), plan.columns(values))
            error.add_bits(coding.num_bits(plan), plan.num_values)
            most = max(most, codes[0].numel())
            if looked >= _LOOKED_AT:
                break
        sizes = {"tokens": float(most), "num_looked_at": float(looked)}
        return {**error.metrics(), **use.metrics(), **sizes}

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def codebook_size(self) -> int:
        """K: tokens lie in [0, K)."""
        return self._fitted().coder.num_codes

    def code_vectors(self) -> torch.Tensor:
        """(q, K, d) float32: what a code of each level stands for.

        Of `kmeans` and `scalar` they are vectors of normalised weights, of learned quantisers of the latent space.
        """
        return self._fitted().coder.code_vectors().float().cpu()

    def token_levels(self, layout: Layout, layers: Sequence[LayerSpec] = ()) -> torch.Tensor:
        """(T,) int64: whose level's table each token of a network is of."""
        plan, coder = self._fitted().plan(layout, layers), self._fitted().coder
        return torch.arange(coder.tokens_per_chunk).repeat(plan.num_chunks) % coder.levels

    def num_tokens(self, layout: Layout, layers: Sequence[LayerSpec] = ()) -> int:
        """T."""
        coding = self._fitted()
        return coding.plan(layout, layers).num_chunks * coding.coder.tokens_per_chunk

    def bits_per_weight(self, layout: Layout, layers: Sequence[LayerSpec] = ()) -> float:
        """Bits of all tokens over the values that they stand for, padding included."""
        coding = self._fitted()
        plan = coding.plan(layout, layers)
        return coding.num_bits(plan) / plan.num_values if plan.num_values else 0.0

    def to(self, device: str | torch.device) -> None:
        """Where encoding and decoding run; tokens and weights come back to where those given lie.

        Raises:
            ConfigError: it is not fitted.
        """
        self._fitted().to(torch.device(device))

    # --- encoding -------------------------------------------------------------------------------------------------

    def encode(
        self, state: StateDict, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> TokenBatch:
        """One network as tokens (1, T).

        Raises:
            TokenizerError: the state dict is not of this layout, or a value is not finite.
            ConfigError: it is not fitted.
        """
        plan = self._fitted().plan(layout, layers)
        return self._encode(plan, columns_of_state(state, layout), 1)

    def encode_population(
        self,
        weights: torch.Tensor,
        *,
        layout: Layout,
        layers: Sequence[LayerSpec] = (),
        aside: torch.Tensor | None = None,
    ) -> TokenBatch:
        """N networks as tokens (N, T): the nearest codes in normalised weights. Raises as `encode`.

        Args:
            weights: (N, P), `NetworkBatch.weights`.
            layout: of one network.
            layers: `vector.layers()`.
            aside: (N, E) uint8, the tensors of other dtypes; zeros by default.
        """
        plan = self._fitted().plan(layout, layers)
        return self._encode(plan, _columns(weights, aside, layout), len(weights))

    def _encode(
        self, plan: VectorPlan, columns: Mapping[str, torch.Tensor], number: int
    ) -> TokenBatch:
        coding = self._fitted()
        codes = coding.encode(plan, plan.values(columns, number))
        return coding.batch(plan, codes, plan.bytes_aside(columns) if plan.aside_bytes else None)

    def encode_functional(
        self,
        weights: torch.Tensor,
        *,
        blueprint: Blueprint,
        images: torch.Tensor,
        build: Callable[[Blueprint], nn.Module],
        aside: torch.Tensor | None = None,
        progress: Progress | None = None,
    ) -> TokenBatch:
        """N networks as tokens (N, T), the codes chosen for what the networks compute, as `feedback` describes.

        Without `feedback` in its configuration this is `encode_population`.

        Args:
            weights: (N, P), `NetworkBatch.weights`.
            blueprint: how they are built.
            images: (m, C, H, W) or (m, F) in the form that they take; labels are not needed. The first
                `feedback_images` of them are looked at.
            build: makes a network of a blueprint, `GeneratorData.build`.
            aside: (N, E) uint8; those of the blueprint by default.
            progress: where to say how far it is.

        Raises:
            TokenizerError: as `encode`; the network has layers that cannot be coded so.
        """
        layout, layers = blueprint.vector.layout, blueprint.vector.layers()
        if aside is None and blueprint.aside:
            one = torch.frombuffer(bytearray(blueprint.aside), dtype=torch.uint8)
            aside = one.expand(len(weights), -1)
        coding = self._fitted()
        if not coding.config.feedback:
            return self.encode_population(weights, layout=layout, layers=layers, aside=aside)
        plan = coding.plan(layout, layers)
        assert isinstance(coding.coder, TableCoder)  # what the configuration of feedback demands
        columns = _columns(weights, aside, layout)

        def say(done: int, total: int) -> None:
            if progress is not None:
                progress("encoding for the function", done, total)

        codes = encode_for_function(
            coding.coder, plan, coding.normaliser.pair(plan), plan.values(columns, len(weights)),
            build(blueprint), images[: coding.config.feedback_images], coding.config,
            coding.limits(plan), say,
        )  # fmt: skip
        return coding.batch(plan, codes, plan.bytes_aside(columns) if plan.aside_bytes else None)

    # --- decoding -------------------------------------------------------------------------------------------------

    def decode(
        self, batch: TokenBatch, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> StateDict:
        """The network of a batch of one, in fresh memory.

        Raises:
            TokenizerError: the batch holds another number of networks, tokens of another layout or no codes.
        """
        if len(batch.tokens) != 1:
            raise TokenizerError(
                f"The batch holds {len(batch.tokens)} networks and decode gives one. "
                "Slice it, or use decode_population."
            )
        columns = self._decode(self._fitted().plan(layout, layers), batch)
        return {
            s.name: columns[s.name][0].reshape(s.shape if torch_dtype(s) else (-1,)) for s in layout
        }

    def decode_population(
        self, batch: TokenBatch, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weights (N, P) and the bytes aside (N, E), zeros where the batch has none; None where the layout has
        none. Raises as `decode`."""
        plan = self._fitted().plan(layout, layers)
        return plan.matrices(self._decode(plan, batch), len(batch.tokens))

    def _decode(self, plan: VectorPlan, batch: TokenBatch) -> dict[str, torch.Tensor]:
        """Every tensor as (N, numbers), in its dtype."""
        coding = self._fitted()
        codes = coding.codes(plan, batch)
        values = coding.decode(plan, codes)
        aside = plan.columns_aside(batch.scales.get("aside"), len(codes)) if plan.aside else {}
        return {**plan.columns(values), **aside}

    # --- storing --------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer.safetensors`.

        Raises:
            ConfigError: it is not fitted.
        """
        self._fitted().save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ArtifactError: a file is missing, damaged or of another format.
        """
        self._coding = Coding.load(folder)

    # --- helpers --------------------------------------------------------------------------------------------------

    def _fitted(self) -> Coding:
        if self._coding is None:
            raise ConfigError("This tokenizer is not fitted. Call fit, or load one.")
        return self._coding


def _tables(
    config: VqConfig, corpus: Corpus, normaliser: Normaliser, data: FitData | None, seed: int
) -> torch.Tensor:
    """(q, K, C) tables of k-means on chunks of the corpus."""
    sample = chunk_sample(corpus, normaliser, config.sample, 4 * config.codebook_size, seed)
    if data is not None:
        sample = sample.to(data.device)

    def say(iteration: int) -> None:
        if data is not None and data.progress is not None:
            data.progress("k-means", iteration, config.iterations)

    more: dict[str, Any] = {"seed": seed, "iterations": config.iterations, "say": say}
    if config.bits:
        return nested_table(sample, config.codebook_size, **more)[None]
    return residual_tables(sample, config.codebook_size, config.levels, **more)


def _columns(
    weights: torch.Tensor, aside: torch.Tensor | None, layout: Layout
) -> dict[str, torch.Tensor]:
    """Every tensor as (N, numbers); zeros for those aside that are not given."""
    size = VectorLayout(layout).aside_bytes
    if aside is None and size:
        aside = torch.zeros((len(weights), size), dtype=torch.uint8)
    return columns_of_population(weights, aside, layout)
