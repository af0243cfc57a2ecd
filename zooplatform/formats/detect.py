"""What a file is, by its first bytes."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats import safetensors
from zooplatform.formats.archives import ARCHIVE_ERRORS
from zooplatform.formats.files import OpenFile

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMATS", "INDEX_SUFFIX", "detect", "is_index", "looks_like_weights"]

# Format name -> what people call it.
FORMATS = {
    "safetensors": "safetensors",
    "shard-index": "sharded checkpoint",
    "torch-zip": "torch checkpoint",
    "torch-legacy": "torch checkpoint of before torch 1.6",
    "npz": "numpy archive",
    "npy": "numpy array",
    "onnx": "ONNX model",
    "hdf5": "HDF5 file",
    "gguf": "GGUF file",
}
INDEX_SUFFIX = ".index.json"
# Files so named are meant to be weights; `.bin` and `.tar` can be anything.
_WEIGHT_SUFFIXES = frozenset(
    (
        ".safetensors",
        ".pt",
        ".pth",
        ".ckpt",
        ".npz",
        ".npy",
        ".onnx",
        ".h5",
        ".hdf5",
        ".keras",
        ".gguf",
    )
)
_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_HEAD_BYTES = 4096
_UNKNOWN = "It is in no known format of weights."
_KNOWN = "Known formats: safetensors, torch (.pt .pth .bin .ckpt), numpy, ONNX, HDF5, GGUF."


def is_index(name: str) -> bool:
    """Whether a file of this name is the index of a sharded checkpoint that can be read."""
    return name.endswith(
        tuple(kind + INDEX_SUFFIX for kind in (".safetensors", ".bin", ".pt", ".pth"))
    )


def looks_like_weights(path: Path) -> bool:
    """Whether a walk through a folder should take `path` for a checkpoint: by its name, else by its content."""
    if is_index(path.name) or path.suffix.lower() in _WEIGHT_SUFFIXES:
        return True
    try:
        detect(path)
    except SourceError as exc:
        # An LFS pointer or a web page in place of weights must be said; any other binary file is none.
        return path.suffix.lower() == ".bin" and exc.reason != _UNKNOWN
    return True


def detect(path: Path) -> str:
    """The format of the file at `path`, a key of `FORMATS`.

    Raises:
        SourceError: it holds no weights in a known format; the text says what it holds instead.
    """
    if is_index(path.name):
        return "shard-index"
    with OpenFile(path) as file:
        size = file.size
        head = file.read_at(0, min(size, _HEAD_BYTES))
    found = _by_magic(head, size, path)
    if found is not None:
        return found
    _explain(head, size, path)
    if path.suffix.lower() == ".safetensors":
        return "safetensors"
    raise SourceError(path, _UNKNOWN, _KNOWN)


def _by_magic(head: bytes, size: int, path: Path) -> str | None:
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_kind(path)
    if head[:6] == b"\x93NUMPY":
        return "npy"
    if head[:4] in (b"GGUF", b"FUGG"):
        return "gguf"
    # An HDF5 signature may follow a user block of 512 bytes, 1 kB, 2 kB ...; Keras and PyTorch write none.
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if head[:1] == b"\x80" and _TORCH_MAGIC in head[:16]:
        return "torch-legacy"
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        raise SourceError(
            path,
            "It is a plain Python pickle, which can hold code; nothing of it was run.",
            "Save the weights with safetensors or torch.save(model.state_dict(), path) where you trust it.",
        )
    if safetensors.looks_like(head, size):
        return "safetensors"
    # A ModelProto starts with field 1 (ir_version, a varint) and has field 7 (graph).
    if path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a")):
        return "onnx" if size else None
    return None


def _zip_kind(path: Path) -> str:
    """torch and numpy both write zip archives; their members tell them apart."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except ARCHIVE_ERRORS as exc:
        raise SourceError(
            path, f"It is a broken zip archive: {exc}.", "Copy or download it again."
        ) from exc
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise SourceError(
            path,
            "It is a TorchScript archive, which holds code beside its weights.",
            "Save the weights alone: torch.save(torch.jit.load(path).state_dict(), new_path) where you trust the file.",
        )
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "torch-zip"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if "model.weights.h5" in names:
        raise SourceError(
            path,
            "It is a Keras archive.",
            "Unpack it and give its model.weights.h5: unzip FILE model.weights.h5",
        )
    raise SourceError(
        path, "It is a zip archive that holds neither torch nor numpy weights.", "Unpack it."
    )


def _explain(head: bytes, size: int, path: Path) -> None:
    """Say plainly what stands in place of weights, where that can be told."""
    if not size:
        raise SourceError(path, "It is empty.", "Copy or download it again.")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        raise SourceError(
            path,
            "It is a Git LFS pointer, not the weights themselves.",
            "Run `git lfs pull` in its folder.",
        )
    if text[:1] == b"<":
        raise SourceError(
            path,
            "It is an HTML or XML page, most likely the answer of a web server, not weights.",
            "Download the file itself.",
        )
    if text[:2] == b"\x1f\x8b" or text[:6] == b"\xfd7zXZ\x00" or text[:3] == b"BZh":
        raise SourceError(path, "It is compressed.", "Unpack it first.")
    if b"ustar" in head[257:263]:
        raise SourceError(
            path,
            "It is a tar archive.",
            "Unpack it; a torch checkpoint of before 2017 must be saved again with a newer torch.",
        )
