"""torch checkpoints, in the zip format and in the one of before torch 1.6.

The file is checked first (`pickles`, and the archive itself); the weights then come through
`torch.load(weights_only=True)` alone, and what it gives is compared with what was planned.
"""

from __future__ import annotations

import io
import pickle
import warnings
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError
from zooplatform.formats.archives import ARCHIVE_ERRORS, check_archive, check_crc
from zooplatform.formats.files import OpenFile
from zooplatform.formats.limits import name_notes, shown
from zooplatform.formats.pickles import RESAVE, read_pickle
from zooplatform.formats.reader import ReaderBase
from zooplatform.formats.unwrap import Found, find_weights
from zooplatform.interfaces import CheckpointHeader, SourceFile, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from zooplatform.formats.planned import PlannedStorage, PlannedTensor

__all__ = ["MAX_VIEW_FACTOR", "TorchReader"]

# A view may show more than its storage holds (expanded tensors) by at most this factor.
MAX_VIEW_FACTOR = 64
_MAX_PICKLE_BYTES = 128 << 20
_AGAIN = "Copy or download it again, or save it again with torch.save."


class TorchReader(ReaderBase):
    """One torch file.

    Args:
        path: the file.
        kind: `torch-zip` or `torch-legacy`.
    """

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__()
        self._path, self._kind = path, kind
        self._file = self._own(OpenFile(path))
        self._loaded: Any = None
        self._checked = False
        found = _plan_zip(self._file) if kind == "torch-zip" else _plan_legacy(self._file)
        self._found = found
        specs = tuple(_spec(name, tensor, path) for name, (_, tensor) in found.tensors.items())
        if sum(spec.size_bytes for spec in specs) > MAX_VIEW_FACTOR * self._file.size:
            raise SourceError(
                path,
                f"Its tensors show more than {MAX_VIEW_FACTOR} times the bytes of the file (views of one storage).",
                RESAVE,
            )
        tied, views = _ties(found)
        notes = (*found.notes, *name_notes(found.tensors, path))
        if views:
            notes = (
                *notes,
                f"{views} tensor(s) are views into storages that others share, stored as their own",
            )
        self.step, self.epoch = found.step, found.epoch
        said = {"architecture": found.architecture} if found.architecture else {}
        self.header = CheckpointHeader(
            tensors=specs, format=kind, metadata=said, tied=tied, notes=notes
        )
        self.files = (
            SourceFile(
                path=path.name,
                format=kind,
                size_bytes=self._file.size,
                tensors=tuple(found.tensors),
            ),
        )

    def buffer(self, name: str) -> memoryview:
        spec = self.spec(name)
        tensor = self._tensor(name)
        import torch

        # Conjugation and negation are flags on a view; contiguous() leaves a contiguous tensor as it is.
        tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
        start = tensor.storage_offset() * tensor.element_size()
        # A view of the bytes, for every dtype: numpy knows neither bfloat16 nor float8.
        raw = torch.empty(0, dtype=torch.uint8).set_(
            tensor.untyped_storage(), start, (spec.size_bytes,), (1,)
        )
        view: memoryview = raw.numpy().data
        return view

    def verify(self) -> None:
        self._check()
        super().verify()

    def close(self) -> None:
        self._loaded = None
        super().close()

    def _check(self) -> None:
        if not self._checked and self._kind == "torch-zip":
            check_crc(self._path)
        self._checked = True

    def _tensor(self, name: str) -> torch.Tensor:
        """Tensor `name` as torch gives it, which must be as planned."""
        if self._loaded is None:
            self._check()
            self._loaded = _load(self._path, mapped=self._kind == "torch-zip")
        path, plan = self._found.tensors[name]
        import torch

        value = self._loaded
        for key in path:
            value = value[key]
        if (
            not isinstance(value, torch.Tensor)
            or tuple(value.shape) != plan.shape
            or str(value.dtype) != f"torch.{plan.dtype}"
            or value.layout != torch.strided
        ):
            raise SourceError(
                self._path,
                f"torch reads tensor {shown(name)} differently than the file states.",
                RESAVE,
            )
        return value


def _load(path: Path, *, mapped: bool) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            # Of pickle protocol 3 and complex32, both of which work.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as exc:
        raise SourceError(
            path, f"torch's restricted unpickler refuses it: {str(exc)[:300]}", RESAVE
        ) from exc
    except AttributeError as exc:
        # What torch.load itself ends with for float8, float4, complex32 and uint16/32/64 here.
        raise SourceError(
            path,
            f"torch cannot read one of its dtypes from the format of before torch 1.6 ({str(exc)[:300]}).",
            "Write it again with torch.save as it is, without _use_new_zipfile_serialization=False.",
        ) from exc
    except (
        RuntimeError,
        ValueError,
        TypeError,
        EOFError,
        LookupError,
        OSError,
        AssertionError,
    ) as exc:
        raise SourceError(path, f"torch cannot read it: {str(exc)[:300]}.", _AGAIN) from exc


def _plan_zip(file: OpenFile) -> Found:
    path = file.path
    with check_archive(path, stored_only=True) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise SourceError(
                path, f"It holds {len(pickles)} pickles named data.pkl; one is needed.", _AGAIN
            )
        prefix = pickles[0].removesuffix("data.pkl")
        if members[pickles[0]].file_size > _MAX_PICKLE_BYTES:
            raise SourceError(
                path, f"Its pickle is larger than {_MAX_PICKLE_BYTES:,} bytes.", RESAVE
            )
        try:
            data = archive.read(pickles[0])
            order = (
                archive.read(f"{prefix}byteorder") if f"{prefix}byteorder" in members else b"little"
            )
        except ARCHIVE_ERRORS as exc:
            raise SourceError(path, f"Its archive is damaged: {exc}.", _AGAIN) from exc
    if order.strip() != b"little":
        raise SourceError(
            path,
            f"It was written in the byte order {shown(order[:16].decode('latin1'))}.",
            "Save it again on a little-endian machine.",
        )
    content, storages = read_pickle(io.BytesIO(data), len(data), path)
    for key, storage in storages.items():
        member = members.get(f"{prefix}data/{key}")
        held = member.file_size if member is not None else None
        if held != storage.size_bytes:
            what = "is missing" if held is None else f"has {held:,} bytes"
            raise SourceError(
                path,
                f"The member data/{key[:40]} {what}; the pickle needs {storage.size_bytes:,}.",
                _AGAIN,
            )
    return find_weights(content, path)


def _plan_legacy(file: OpenFile) -> Found:
    """Five pickles (magic, protocol, system, content, storage keys), then each storage: count, values."""
    path = file.path
    end = min(file.size, _MAX_PICKLE_BYTES)
    with path.open("rb") as stream:
        _, _ = read_pickle(stream, end, path), read_pickle(stream, end, path)
        system, _ = read_pickle(stream, end, path)
        content, storages = read_pickle(stream, end, path)
        keys, _ = read_pickle(stream, end, path)
        position = stream.tell()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise SourceError(
            path,
            "It was written in big-endian byte order.",
            "Save it again on a little-endian machine.",
        )
    if (
        not isinstance(keys, list)
        or len(set(map(str, keys))) != len(keys)
        or set(map(str, keys)) != set(storages)
    ):
        raise SourceError(path, "Its list of storages does not go with its pickle.", _AGAIN)
    for key in keys:
        storage: PlannedStorage = storages[str(key)]
        if int.from_bytes(file.read_at(position, 8), "little") != storage.num_elements:
            raise SourceError(
                path,
                f"The storage {str(key)[:40]} does not have its {storage.num_elements:,} elements.",
                _AGAIN,
            )
        position += 8 + storage.size_bytes
    if position != file.size:
        what = "truncated" if position > file.size else "followed by bytes that belong to no tensor"
        raise SourceError(
            path, f"It is {what}: {position:,} bytes are described, it has {file.size:,}.", _AGAIN
        )
    return find_weights(content, path)


def _spec(name: str, tensor: PlannedTensor, path: Path) -> TensorSpec:
    if tensor.obstacle or tensor.storage is None:
        raise SourceError(
            path,
            f"Tensor {shown(name)} {tensor.obstacle}; only plain tensors can be stored.",
            "Make it plain first (dequantize(), to_dense(), or load the weights onto the CPU) and save it again.",
        )
    if tensor.size_bytes > MAX_VIEW_FACTOR * tensor.storage.size_bytes:
        raise SourceError(
            path,
            f"Tensor {shown(name)} shows {tensor.size_bytes:,} bytes of a storage of {tensor.storage.size_bytes:,}"
            " (an expanded view).",
            "Save tensor.clone() in its place if it is meant.",
        )
    return TensorSpec(name, tensor.dtype, tensor.shape, tensor.size_bytes)


def _ties(found: Found) -> tuple[dict[str, str], int]:
    """Names that show the very same elements as an earlier name, and how many others share a storage."""
    first: dict[object, str] = {}
    tied: dict[str, str] = {}
    per_storage: dict[str, int] = {}
    for name, (_, tensor) in found.tensors.items():
        if tensor.storage is None or not tensor.size_bytes:
            continue
        same = (tensor.storage.key, tensor.dtype, tensor.offset, tensor.shape, tensor.stride)
        earlier = first.setdefault(same, name)
        if earlier != name:
            tied[name] = earlier
        else:
            per_storage[tensor.storage.key] = per_storage.get(tensor.storage.key, 0) + 1
    return tied, sum(count for count in per_storage.values() if count > 1)
