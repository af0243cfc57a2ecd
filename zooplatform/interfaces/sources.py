"""What a source gives: records, headers, open checkpoints and populations.

Legend for shapes: N networks, P parameters of one network, E bytes of a network kept aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from zooplatform.interfaces.tensors import Layout


__all__ = [
    "Checkpoint",
    "CheckpointHeader",
    "CheckpointRecord",
    "LineageRecord",
    "MetricRecord",
    "ModelInfo",
    "ModelRef",
    "Origin",
    "PopulationBatch",
    "PopulationSource",
    "Progress",
    "Relation",
    "Source",
    "SourceFile",
]

Relation: TypeAlias = Literal["checkpoint_of", "finetuned_from", "generated_by", "trained_on"]
Origin: TypeAlias = Literal["reported", "measured", "predicted"]


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
