"""Which files of a repository are its weights, and which of several copies to take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from posixpath import basename, dirname
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Weights", "choose"]

INDEX_SUFFIX = ".index.json"
# The names under which libraries save the one network of a folder, best first.
_STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "adapter_model.bin",
)
# Without a standard name: every file of the best kind that is there.
_KINDS = (
    (".safetensors.index.json", ".safetensors"),
    (".bin.index.json", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar"),
    (".gguf",),
    (".onnx",),
    (".h5", ".hdf5"),
    (".npz", ".npy"),
)
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.[a-z]+")
# What trainers leave beside the weights.
_NO_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*|trainer_state)\.\w+"
)
_WEIGHTS = (
    *tuple(suffix for kind in _KINDS for suffix in kind if not suffix.endswith(INDEX_SUFFIX)),
    ".msgpack",
    ".ot",
    ".tflite",
    ".mlmodel",
    ".pkl",
    ".safetensors.index.json",
)


@dataclass(frozen=True, slots=True)
class Weights:
    """One checkpoint of a repository: a file of weights, or the index of a sharded set.

    `implied` says that naming the repository alone means this checkpoint; `left_out` are other files of
    weights in the same folder and below.
    """

    path: str
    implied: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def sharded(self) -> bool:
        return self.path.endswith(INDEX_SUFFIX)


def choose(paths: Iterable[str], wanted: str = "") -> tuple[Weights, ...]:
    """The checkpoints that `wanted` names.

    Args:
        paths: every file of the repository.
        wanted: a file, taken as it is; a folder; or empty for the repository, which means its top
            folder if there are weights in it, else every folder.

    Returns:
        Checkpoints in the order of their paths; none when there are no weights.
    """
    files = sorted(paths)
    main = _in_folder(files, "")
    if wanted in files:
        if len(main) == 1 and main[0] == wanted:
            return (Weights(wanted, True, _others(files, "", main)),)
        return (Weights(wanted),)
    if wanted:
        inside = [path for path in files if path.startswith(wanted + "/")]
        return tuple(
            Weights(path, False, _others(inside, dirname(path), found))
            for folder in sorted({dirname(path) for path in inside})
            if (found := _in_folder(files, folder))
            for path in found
        )
    if main:
        others = _others(files, "", main)
        return tuple(Weights(path, len(main) == 1, others) for path in main)
    return tuple(
        Weights(path, False, _others(files, folder, found))
        for folder in sorted({dirname(path) for path in files})
        if (found := _in_folder(files, folder))
        for path in found
    )


def _in_folder(files: list[str], folder: str) -> list[str]:
    """The checkpoints that lie in `folder` itself."""
    here = {basename(path): path for path in files if dirname(path) == folder}
    for name in _STANDARD:
        if name in here:
            return [here[name]]
    for suffixes in _KINDS:
        found = [
            path
            for name, path in here.items()
            if name.endswith(suffixes)
            and not _SHARD.fullmatch(name)
            and not _NO_WEIGHTS.fullmatch(name)
        ]
        if found:
            return found
    return []


def _others(files: list[str], folder: str, taken: list[str]) -> tuple[str, ...]:
    """Files of weights in and below `folder` that are neither taken nor shards of what is."""
    sharded = {path.rsplit(".", 3)[0] for path in taken if path.endswith(INDEX_SUFFIX)}
    return tuple(
        path
        for path in files
        if path not in taken
        and (not folder or path.startswith(folder + "/"))
        and path.endswith(_WEIGHTS)
        and not _NO_WEIGHTS.fullmatch(basename(path))
        and not (_SHARD.fullmatch(path) and path.rsplit("-", 3)[0] in sharded)
    )
