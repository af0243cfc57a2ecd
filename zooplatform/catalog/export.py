"""Checkpoints back to safetensors files, streamed tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zooplatform.catalog.files import fsync_dir
from zooplatform.errors import CatalogError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zooplatform.catalog.reader import Reader

__all__ = ["SAFETENSORS_NAMES", "export_checkpoint"]

# torch's names to the names of the format (https://github.com/huggingface/safetensors, "Format")
SAFETENSORS_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float4_e2m1fn_x2": "F4",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
}  # fmt: skip
_OTHER_FORMATS = frozenset(
    (".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy", ".onnx", ".h5", ".hdf5", ".gguf")
)


def export_checkpoint(reader: Reader, checkpoint_id: str, path: Path) -> Path:
    """See `Catalog.export`."""
    row = reader.checkpoint_row(checkpoint_id)
    if row["state"] != "stored":
        raise CatalogError(
            f"Checkpoint {checkpoint_id}: only its header was ingested, there are no weights to export. Ingest its "
            "reference again without --header-only."
        )
    tensors = [] if row["shard_id"] is not None else reader.tensor_rows(row)
    files = reader.snapshot.rows_of("files", checkpoint_id, row["commit_id"])
    files = sorted(files, key=lambda f: f["file_index"])
    originals = _originals(files)
    as_folder = path.is_dir() or not path.suffix
    if not as_folder and path.suffix.lower() in _OTHER_FORMATS:
        raise CatalogError(
            f"{path}: only safetensors is written, which readers of {path.suffix} files do not take. Give a name that "
            "ends in .safetensors, or a folder."
        )
    if len(originals) == 1 and not as_folder:
        return _write_original(reader, originals[0], tensors, path)
    if originals and as_folder:
        return _write_folder(reader, files, tensors, path)
    if as_folder:
        path = path / "model.safetensors"
    return _write_new(reader, checkpoint_id, tensors, path)


def _write_folder(
    reader: Reader, files: list[dict[str, Any]], tensors: list[dict[str, Any]], path: Path
) -> Path:
    originals = _originals(files)
    for file in originals:
        _write_original(reader, file, tensors, path / Path(file["path"]).name)
    if len(originals) > 1:
        index = next((f for f in files if f["format"] == "shard-index" and f["header"]), None)
        if index is not None:
            _write(path / Path(index["path"]).name, [index["header"]], index["sha256"])
        else:
            _write(path / "model.safetensors.index.json", [_new_index(originals, tensors)], None)
    return path


def _originals(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The safetensors files among those that a checkpoint came in."""
    return [f for f in files if f["header"] is not None and f["format"] != "shard-index"]


def _new_index(originals: list[dict[str, Any]], tensors: list[dict[str, Any]]) -> bytes:
    """An index for shards that came without one."""
    names = {f["file_index"]: Path(f["path"]).name for f in originals}
    weight_map = {t["name"]: names[t["source_file"]] for t in tensors if t["source_file"] in names}
    total = sum(t["size_bytes"] for t in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode() + b"\n"


def _write_original(
    reader: Reader, file: dict[str, Any], tensors: list[dict[str, Any]], path: Path
) -> Path:
    own = sorted(
        (t for t in tensors if t["source_file"] == file["file_index"]),
        key=lambda t: t["source_offset"],
    )
    return _write(path, _with_header(file["header"], reader, own), file["sha256"])


def _with_header(header: bytes, reader: Reader, tensors: list[dict[str, Any]]) -> Iterable[Any]:
    yield header
    yield from _stored(reader, tensors)


def _stored(reader: Reader, tensors: list[dict[str, Any]]) -> Iterable[Any]:
    for tensor in tensors:
        # One mapping per tensor, so that a checkpoint larger than memory passes through little of it.
        yield reader.tensor_bytes(tensor, {}).data


def _write_new(
    reader: Reader, checkpoint_id: str, tensors: list[dict[str, Any]], path: Path
) -> Path:
    """A new safetensors file: tensors in state-dict order, the header padded so that data starts aligned."""
    if not tensors:
        state = reader.state_dict(checkpoint_id)
        listed = [
            (name, str(t.dtype).removeprefix("torch."), list(t.shape), t.numel() * t.element_size())
            for name, t in state.items()
        ]
        chunks: Iterable[Any] = (_tensor_bytes(t) for t in state.values())
    else:
        listed = [(t["name"], t["dtype"], list(t["shape"]), t["size_bytes"]) for t in tensors]
        chunks = _stored(reader, tensors)
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", "zooplatform.checkpoint_id": checkpoint_id}
    }
    offset = 0
    for name, dtype, shape, size in listed:
        if dtype not in SAFETENSORS_NAMES:
            raise CatalogError(
                f"Checkpoint {checkpoint_id}: tensor {name!r} is {dtype}, which safetensors cannot hold. Read it with "
                "`Catalog.state_dict` instead."
            )
        if dtype == "float4_e2m1fn_x2":  # torch counts pairs, the format counts values
            shape = [*shape[:-1], shape[-1] * 2] if shape else [2]
        header[name] = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _write(path, _chain(len(text).to_bytes(8, "little") + text, chunks), None)


def _chain(first: bytes, rest: Iterable[Any]) -> Iterable[Any]:
    yield first
    yield from rest


def _tensor_bytes(tensor: Any) -> npt.NDArray[np.uint8]:
    import torch

    flat = tensor.contiguous().reshape(-1)
    raw: npt.NDArray[np.uint8] = (
        flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, dtype=np.uint8)
    )
    return raw


def _write(path: Path, chunks: Iterable[Any], sha256: str | None) -> Path:
    """Write beside the target and rename, so that `path` holds all of it or what it held before."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    hasher = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as handle:
            for chunk in chunks:
                hasher.update(chunk)
                handle.write(chunk)
            handle.flush()
            os.fsync(handle.fileno())
        if sha256 is not None and hasher.hexdigest() != sha256:
            raise IntegrityError(
                f"{path}: the exported bytes differ from the file that was ingested (SHA-256 {sha256}); nothing was "
                "written. Run `zoo check --deep`."
            )
        temporary.replace(path)
        fsync_dir(path.parent)
    except OSError as exc:
        raise CatalogError(f"{path} cannot be written ({exc.strerror or exc}).") from exc
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path
