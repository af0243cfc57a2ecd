"""What every format reader gives, and the checkpoint that a source makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from zooplatform.errors import SourceError
from zooplatform.formats.limits import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from zooplatform.formats.files import OpenFile
    from zooplatform.interfaces import (
        CheckpointHeader,
        MetricRecord,
        ModelInfo,
        SourceFile,
        TensorSpec,
    )

__all__ = ["FileCheckpoint", "Reader", "ReaderBase", "RegionBuffer"]


class Reader(Protocol):
    """Weights in files of one format: a header at once, bytes on demand.

    `files` carry no SHA-256: whoever knows or needs one adds it (`FileCheckpoint`). `opened` are the files as opened.
    """

    header: CheckpointHeader
    files: tuple[SourceFile, ...]
    step: int | None
    epoch: float | None

    @property
    def opened(self) -> tuple[OpenFile, ...]: ...
    def buffer(self, name: str) -> memoryview: ...
    def release(self) -> None: ...
    def verify(self) -> None: ...
    def close(self) -> None: ...


class ReaderBase:
    """Shared by the readers: owns its open files and knows its specs."""

    header: CheckpointHeader
    files: tuple[SourceFile, ...]
    step: int | None = None
    epoch: float | None = None

    def __init__(self) -> None:
        self._opened: list[OpenFile] = []
        self._specs: dict[str, TensorSpec] | None = None

    @property
    def opened(self) -> tuple[OpenFile, ...]:
        return tuple(self._opened)

    def spec(self, name: str) -> TensorSpec:
        if self._specs is None:
            self._specs = {spec.name: spec for spec in self.header.tensors}
        try:
            return self._specs[name]
        except KeyError:
            raise SourceError(
                self.files[0].path,
                f"It holds no tensor {shown(name)}.",
                "Take a name of its header.",
            ) from None

    def release(self) -> None:
        """Give memory back that the next `buffer` takes again."""

    def verify(self) -> None:
        for file in self._opened:
            file.check_unchanged()

    def close(self) -> None:
        for file in self._opened:
            file.close()

    def _own(self, file: OpenFile) -> OpenFile:
        self._opened.append(file)
        return file


class RegionBuffer:
    """One buffer, as large as the largest tensor, that every read of a reader goes through."""

    def __init__(self, tensors: Iterable[TensorSpec]) -> None:
        self._size = max((spec.size_bytes for spec in tensors), default=0)
        self._bytes: npt.NDArray[np.uint8] | None = None

    def fill(self, file: OpenFile, offset: int, size: int) -> memoryview:
        """`size` bytes of `file` from `offset`; valid until the next call."""
        if self._bytes is None:
            # numpy's allocator asks for huge pages, which halves the time of the first pass.
            self._bytes = np.empty(self._size, np.uint8)
        view = self._bytes.data[:size]
        file.read_into(view, offset)
        return view

    def release(self) -> None:
        """Give the memory back."""
        self._bytes = None


class FileCheckpoint:
    """A `Checkpoint` made of a reader and what its source knows about the model.

    Args:
        reader: the open files; closed with the checkpoint.
        info: the model.
        sha256: hashes of its files, by `SourceFile.path`.
        metrics: values that came with it.
        config: the model's configuration (`config.json`).
        notes: what the source has to say, beside the reader's notes.
    """

    def __init__(
        self,
        reader: Reader,
        info: ModelInfo,
        *,
        sha256: Mapping[str, str],
        metrics: tuple[MetricRecord, ...] = (),
        config: Mapping[str, Any] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._reader = reader
        self.info = info
        self.metrics = metrics
        self.header = replace(
            reader.header,
            config=dict(config) if config is not None else reader.header.config,
            notes=(*reader.header.notes, *notes),
        )
        self.files = tuple(replace(file, sha256=sha256.get(file.path)) for file in reader.files)

    @property
    def step(self) -> int | None:
        return self._reader.step

    @property
    def epoch(self) -> float | None:
        return self._reader.epoch

    def buffer(self, name: str) -> memoryview:
        return self._reader.buffer(name)

    def verify(self) -> None:
        self._reader.verify()

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
