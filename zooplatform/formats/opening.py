"""One door to all formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats.detect import detect
from zooplatform.formats.sharded import ShardedReader, shard_paths

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.formats.reader import Reader

__all__ = ["checkpoint_files", "open_reader"]


def open_reader(path: Path) -> Reader:
    """Open the checkpoint at `path` by its content.

    Args:
        path: a file of weights, or the index of a sharded set.

    Raises:
        SourceError: the file is refused; the text names it, the reason and the remedy.
        NotInstalledError: the library for its format is missing; the text names the extra.
    """
    kind = detect(path)
    if kind == "shard-index":
        return ShardedReader(path, _open_shard)
    return _open_single(path, kind)


def checkpoint_files(path: Path) -> tuple[Path, ...]:
    """Every file that the checkpoint at `path` is made of, itself first."""
    kind = detect(path)
    if kind == "shard-index":
        return (path, *shard_paths(path)[1])
    if kind == "onnx":
        from zooplatform.formats.onnx_file import external_files

        return (path, *external_files(path))
    return (path,)


def _open_shard(path: Path) -> Reader:
    kind = detect(path)
    if kind not in ("safetensors", "torch-zip", "torch-legacy"):
        raise SourceError(
            path, f"A shard in the format {kind} is not taken.", "Save it as safetensors."
        )
    return _open_single(path, kind)


def _open_single(path: Path, kind: str) -> Reader:
    # Imported here: torch, h5py, onnx and gguf are not needed to read the other formats.
    if kind == "safetensors":
        from zooplatform.formats.safetensors import SafetensorsReader

        return SafetensorsReader(path)
    if kind in ("torch-zip", "torch-legacy"):
        from zooplatform.formats.torch_file import TorchReader

        return TorchReader(path, kind)
    if kind in ("npz", "npy"):
        from zooplatform.formats.numpy_file import NumpyReader

        return NumpyReader(path, kind)
    if kind == "onnx":
        from zooplatform.formats.onnx_file import OnnxReader

        return OnnxReader(path)
    if kind == "hdf5":
        from zooplatform.formats.hdf5_file import Hdf5Reader

        return Hdf5Reader(path)
    from zooplatform.formats.gguf_file import GgufReader

    return GgufReader(path)
