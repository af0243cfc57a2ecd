"""What crosses the plugin border: descriptors, records and protocols.

Nothing heavy is imported here at run time, so that listing plugins stays cheap. Legend for shapes: N networks,
P parameters of one network, E bytes of a network kept aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeAlias,
    runtime_checkable,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from zooplatform.fitting import Blueprint, FitData, GeneratorData
    from zooplatform.layout import VectorLayout

__all__ = [
    "LAYER_TYPES",
    "POSITION_COLUMNS",
    "ArchitectureAdapter",
    "ArchitectureSpec",
    "BackendSpec",
    "Checkpoint",
    "CheckpointHeader",
    "CheckpointRecord",
    "CommandSpec",
    "Condition",
    "FitReport",
    "GeneratedBatch",
    "Generator",
    "GeneratorSpec",
    "LayerSpec",
    "Layout",
    "LineageRecord",
    "MetricRecord",
    "ModelInfo",
    "ModelRef",
    "NetworkBatch",
    "PopulationBatch",
    "PopulationSource",
    "PopulationTokenizer",
    "Predictor",
    "PredictorSpec",
    "Progress",
    "PropertySpec",
    "Source",
    "SourceFile",
    "SourceSpec",
    "SqlFunction",
    "SqlView",
    "StateDict",
    "TensorSpec",
    "TokenBatch",
    "Tokenizer",
    "TokenizerSpec",
]

StateDict: TypeAlias = "dict[str, torch.Tensor]"
Config: TypeAlias = Mapping[str, Any]
Relation: TypeAlias = Literal["checkpoint_of", "finetuned_from", "generated_by", "trained_on"]
Origin: TypeAlias = Literal["reported", "measured", "predicted"]


# --- tensors and layouts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named array: its name in the state dict, dtype, shape and size.

    `dtype` is torch's name without the prefix (`float32`, `bfloat16`, `float4_e2m1fn_x2`); formats whose elements torch
    does not know keep their own name (`f6_e2m3`, `gguf.q4_k`) and stay bytes. `shape` is torch's shape: for packed
    types it counts stored elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


Layout: TypeAlias = tuple[TensorSpec, ...]

LAYER_TYPES = ("conv", "linear", "norm", "embedding", "attention", "recurrent", "other")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What a layer is, for the tensors that belong to it.

    `index` counts layers from the input; `type` is one of `LAYER_TYPES`; `tensors` are state-dict names, weight first.
    """

    index: int
    name: str
    type: str
    tensors: tuple[str, ...]


# --- what a source gives ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRecord:
    """A value of a checkpoint: `value` as given by its origin, accuracies as fractions."""

    name: str
    value: float
    dataset: str = ""
    split: str = ""
    origin: Origin = "reported"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageRecord:
    """An edge from the model being ingested to `parent`: a model id, or a reference such as `hf-hub:org/name`."""

    parent: str
    relation: Relation
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A trained network as its source describes it.

    `key` identifies it within the source (a canonical reference, a run directory); with `revision` it decides the model
    id, so the same thing ingested twice is the same model. `config` holds hyper-parameters as given, `metadata` what
    else the source says (`tags`, `library`, model card).
    """

    key: str
    name: str
    source: str
    revision: str = ""
    license: str | None = None
    base_model: str | None = None
    seed: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[LineageRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file that a checkpoint came from.

    `header` is the exact header of a `.safetensors` file (its 8 length bytes included), or all of a `shard-index`,
    which export needs to give the same file back; `tensors` are the state-dict names held by the file, in the order of
    their bytes.
    """

    path: str
    format: str
    size_bytes: int
    sha256: str | None = None
    header: bytes | None = None
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeader:
    """All that is known of a checkpoint before any weight is read.

    `tensors` are in state-dict order. `tied` maps a name to the earlier name whose storage it shares. `metadata` is the
    file's own string metadata, `config` the model's configuration (`config.json`), `notes` what was left out and why.
    """

    tensors: Layout
    format: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """One openable thing of a source: canonical `ref` (with its scheme) and resolved `revision`.

    `key` is the `ModelInfo.key` of what it opens, where that is known before; what is stored already is then not
    opened.
    """

    ref: str
    name: str
    revision: str = ""
    key: str = ""


@runtime_checkable
class Checkpoint(Protocol):
    """One open checkpoint: header first, bytes on demand; a context manager that frees what it holds."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def header(self) -> CheckpointHeader: ...
    @property
    def files(self) -> tuple[SourceFile, ...]: ...
    @property
    def step(self) -> int | None: ...
    @property
    def epoch(self) -> float | None: ...
    @property
    def metrics(self) -> tuple[MetricRecord, ...]: ...

    def buffer(self, name: str) -> memoryview:
        """The C-contiguous little-endian bytes of tensor `name`, `TensorSpec.size_bytes` long.

        Valid until the next call or `close`, so that a source may reuse one buffer.
        """

    def verify(self) -> None:
        """Called after every tensor was read and before anything is committed.

        Raises:
            SourceError: a file is not what it claims to be.
        """

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Progress(Protocol):
    """Where a source says how far it is; the command line shows it on stderr."""

    def __call__(self, what: str, done: int, total: int | None) -> None: ...


class Source(Protocol):
    """Single checkpoints behind a scheme."""

    def list(
        self, ref: str, *, revision: str | None = None, limit: int | None = None
    ) -> Iterator[ModelRef]:
        """The checkpoints that `ref` (the text after the scheme) names; resolves every revision to a hash.

        Raises:
            SourceError: the reference is malformed, missing, gated or out of reach.
        """

    def open(
        self, ref: ModelRef, *, header_only: bool = False, progress: Progress | None = None
    ) -> Checkpoint:
        """Open one. With `header_only` no weight byte may be fetched and `Checkpoint.buffer` need not work.

        Raises:
            SourceError: the file is refused; the text names it, the reason and the remedy.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """One row of a population: which model it belongs to, when it was taken and what was measured."""

    model: ModelInfo
    step: int | None = None
    epoch: float | None = None
    metrics: tuple[MetricRecord, ...] = ()
    lineage: tuple[LineageRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationBatch:
    """Checkpoints of one architecture as one matrix.

    Attributes:
        layout: every tensor in state-dict order. Tensors of the dtype of `weights` lie in its columns in this order;
            the others (for example the int64 counters of BatchNorm) lie in `aside` in this order, as bytes.
        weights: (N, P), C-contiguous, float16/32/64.
        rows: N records.
        aside: (N, E) uint8, or None when every tensor has one dtype.
        family: architecture adapter that builds the network (`cnn`, `timm`), or empty.
        config: what that adapter needs to build it.
        failed: (reference, reason) of checkpoints that could not be read, met since the last batch. The last batch may
            have no rows and an empty layout when only such reports are left.
        notes: what was normalised or left out and why, met since the last batch.
    """

    layout: Layout
    weights: npt.NDArray[Any]
    rows: Sequence[CheckpointRecord]
    aside: npt.NDArray[np.uint8] | None = None
    family: str = ""
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


class PopulationSource(Protocol):
    """Many checkpoints behind one reference, in batches of bounded size."""

    def batches(
        self,
        ref: str,
        *,
        done: frozenset[tuple[str, int | None]] = frozenset(),
        progress: Progress | None = None,
    ) -> Iterator[PopulationBatch]:
        """Yield every checkpoint that is not in `done` ((model key, step) pairs already stored), in a stable order."""

    def describe(self, ref: str) -> Mapping[str, str]:
        """`name`, `license`, `citation` and `revision` of the zoo, as far as known."""


# --- what the other kinds of plugin give -----------------------------------------------------------------------------


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


# --- descriptors: plain data that hooks return -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A named implementation behind an interface; `factory` is imported only when it is used.

    Attributes:
        name: `[a-z][a-z0-9-]*`, unique per kind.
        factory: dotted path `package.module:Class`, called without arguments.
        summary: one line for `zoo plugins`.
        requires: import names that must be there; when one is missing the error shows `install`.
        install: the pip line that brings them.
        config_schema: name of the JSON schema of its configuration, or None.
    """

    name: str
    factory: str
    summary: str
    requires: tuple[str, ...] = ()
    install: str = ""
    config_schema: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec(BackendSpec):
    """`scheme` is the text before the colon; `population` says that the factory gives a PopulationSource."""

    scheme: str
    population: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureSpec(BackendSpec):
    """`families` are glob patterns of family names; of several adapters that match, the highest `specificity` wins."""

    families: tuple[str, ...] = ()
    specificity: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec(BackendSpec):
    token_kind: Literal["float", "index"] = "float"  # noqa: S105 - not a password


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorSpec(BackendSpec):
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSpec(BackendSpec):
    tokenizer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertySpec(BackendSpec):
    """A value computed from the weights at ingest and stored as a `measured` metric named `name`.

    The factory gives a callable `compute(state: StateDict, layers: tuple[LayerSpec, ...]) -> float | None`.
    """

    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlFunction:
    """A SQL macro, applied to every connection: `name(parameters) AS sql`.

    `null_handling` says in words what a NULL argument gives; `returns` is the DuckDB type.
    """

    name: str
    parameters: tuple[str, ...]
    sql: str
    returns: str
    summary: str
    null_handling: str = "NULL in, NULL out"


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlView:
    """A view over the catalog's views: `CREATE VIEW name AS sql`."""

    name: str
    sql: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    """A click command at `target` (`package.module:command`), shown as `zoo NAME`; may not replace a built-in."""

    name: str
    target: str
    summary: str
