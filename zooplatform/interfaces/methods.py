"""What architectures, tokenizers, predictors and generators are asked, and how they answer.

Legend for shapes: N networks, P parameters of one network, E bytes of a network kept aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from zooplatform.fitting import Blueprint, FitData, GeneratorData
    from zooplatform.interfaces.sources import CheckpointHeader
    from zooplatform.interfaces.tensors import LayerSpec, Layout, StateDict
    from zooplatform.layout import VectorLayout

__all__ = [
    "POSITION_COLUMNS",
    "ArchitectureAdapter",
    "Condition",
    "Config",
    "FitReport",
    "GeneratedBatch",
    "Generator",
    "NetworkBatch",
    "PopulationTokenizer",
    "Predictor",
    "TokenBatch",
    "Tokenizer",
]

Config: TypeAlias = Mapping[str, Any]


class ArchitectureAdapter(Protocol):
    """Knows one family of architectures."""

    def matches(self, header: CheckpointHeader) -> bool: ...

    def describe(self, header: CheckpointHeader) -> Mapping[str, Any]:
        """`{"family", "name", "config"}`; `config` is what `build` needs, empty where it cannot be known."""

    def layers(self, header: CheckpointHeader) -> tuple[LayerSpec, ...]: ...
    def to_canonical(self, state: StateDict) -> StateDict: ...
    def from_canonical(self, state: StateDict, *, layout: Layout) -> StateDict: ...

    def build(self, config: Config) -> nn.Module:
        """An initialised module whose `state_dict` has the layout; raises ArchitectureError when it cannot."""


POSITION_COLUMNS = ("token", "layer", "index", "layer_type", "unit", "chunk")


class TokenBatch(NamedTuple):
    """Tokens of B networks: `tokens` (B, T, C) or code indices (B, T); `mask` (B, T, C) or (B, T), True = real.

    `positions` (B, T, K) int64 says where a token is. Its columns are the first K >= 3 of `POSITION_COLUMNS`: the token
    in its network, its layer (`LayerSpec.index`), the token in its layer; then the layer's type (index into
    `LAYER_TYPES`), the output unit (-1 where a token is not of one unit), the token in its unit or run.

    `scales` holds by name what decode needs beside the tokens, each with B rows: how values were scaled, and the bytes
    of tensors that are no tokens. `mask` and `positions` may be views that all networks share: copy before writing.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    scales: Mapping[str, torch.Tensor]


class Condition(NamedTuple):
    """What generation is told; everything is optional, and a generator uses what it knows of.

    Attributes:
        instruction: plain words.
        dataset: name of a data set that the generator was fitted on.
        architecture_id: a layout that the generator was fitted on, or the beginning of its id.
        images: (K, S, C, H, W) float32 in [0, 1], S examples of each of K classes, of a data set that may be new.
        build_config: configuration of the architecture as its adapter takes it; may be new too. Partial ones
            (`{"activation": "gelu"}`) choose among those that the generator was fitted on.
    """

    instruction: str | None = None
    dataset: str | None = None
    architecture_id: str | None = None
    images: torch.Tensor | None = None
    build_config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What fitting did: values measured on validation data, and notes worth keeping."""

    metrics: Mapping[str, float]
    seconds: float
    notes: tuple[str, ...] = ()


class Tokenizer(Protocol):
    """Weights to tokens and back.

    `layers` describes the tensors of `layout` (`Population.vector.layers()`); tensors that no layer names are grouped
    by their names. `decode` needs the layout and layers that `encode` was given.
    """

    def fit(
        self, states: Iterable[StateDict], *, seed: int, config: Config | None = None
    ) -> None: ...

    def encode(
        self, state: StateDict, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> TokenBatch:
        """One network as a batch of one.

        Raises:
            TokenizerError: the state dict is not of this layout, or a tensor cannot be encoded.
        """

    def decode(
        self, batch: TokenBatch, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> StateDict:
        """The network of a batch of one, in fresh memory.

        Raises:
            TokenizerError: the batch holds another number of networks, or tokens of another layout.
        """

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class PopulationTokenizer(Tokenizer, Protocol):
    """A tokenizer that takes all networks of one architecture at once."""

    def encode_population(
        self,
        weights: torch.Tensor,
        *,
        layout: Layout,
        layers: Sequence[LayerSpec] = (),
        aside: torch.Tensor | None = None,
    ) -> TokenBatch:
        """N networks given as in `PopulationBatch`: `weights` (N, P) and `aside` (N, E) uint8.

        Row n is what `encode` gives for network n.
        """

    def decode_population(
        self, batch: TokenBatch, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weights (N, P) and the bytes aside (N, E), None where the layout has none."""


class NetworkBatch(NamedTuple):
    """B networks of one architecture, as they are stored.

    `weights` (B, P) are the values of the layout's main dtype (`vector.dtype`), `vector.fields` says which tensor lies
    where in them; tensors of other dtypes are not part of it.
    """

    weights: torch.Tensor
    vector: VectorLayout
    ids: tuple[str, ...] = ()
    architecture_id: str = ""


class Predictor(Protocol):
    """Properties of networks from their weights, whatever mix of architectures they are of."""

    def fit(self, data: FitData, *, target: str, config: Config, seed: int) -> FitReport:
        """Learn `target`, on one thread the same for the same data, configuration and seed.

        Raises:
            ConfigError: a key of `config` is unknown or its value does not fit; targets are not finite.
        """

    def embed(self, batch: NetworkBatch) -> torch.Tensor:
        """(B, D) float32.

        Raises:
            ConfigError: it is not fitted, or cannot read networks of this architecture.
        """

    def predict(self, batch: NetworkBatch) -> torch.Tensor:
        """(B,) float64, in the unit of the target; a network's prediction does not depend on its batch."""

    def save(self, folder: Path) -> None:
        """Write what `load` needs into a folder that is there: safetensors and JSON, nothing that runs code."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ArtifactError: a file is missing, damaged or of another format.
        """


class GeneratedBatch(NamedTuple):
    """B generated networks of one blueprint, in the form in which networks are stored.

    Attributes:
        weights: (B, P) float32, or the main dtype of the layout.
        blueprint: their layout, how they are built, and their bytes aside.
        dataset: what the networks are for, as the generator understood its condition; empty if it does not know.
        details: of each network, JSON that its lineage keeps (which training network it is a copy of, say); may be
            empty.
    """

    weights: torch.Tensor
    blueprint: Blueprint
    dataset: str = ""
    details: tuple[Mapping[str, Any], ...] = ()


class Generator(Protocol):
    """Weights of new networks, from an instruction."""

    def fit(self, data: GeneratorData, *, config: Config, seed: int) -> FitReport:
        """Learn from the networks of `data.train`, choose by `data.validation`; on one thread the same for the same
        data, configuration and seed.

        Raises:
            ConfigError: a key of `config` is unknown or its value does not fit; too few networks.
        """

    def sample(
        self,
        n: int,
        *,
        condition: Condition | None = None,
        seed: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[GeneratedBatch]:
        """`n` networks, in batches as they are made; the first networks do not depend on `n`.

        Args:
            n: number of networks.
            condition: what they are for. None leaves everything to the generator.
            seed: one seed gives the same weights; other seeds give others, where anything is random.
            temperature: 0 is the least random that the generator can be.
            top_k: draw among so many of the likeliest codes, where the generator draws codes.
            options: further options of the backend (`top_p`, `guidance`).

        Raises:
            ConfigError: it is not fitted, an option is unknown, or nothing that it knows meets the condition; the
                text lists what it knows.
        """

    def save(self, folder: Path) -> None:
        """As `Predictor.save`."""

    def load(self, folder: Path) -> None:
        """As `Predictor.load`."""
