"""Which checkpoints a path, a folder or a glob names."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from zooplatform.errors import SourceError
from zooplatform.formats import looks_like_weights
from zooplatform.formats.detect import INDEX_SUFFIX, is_index
from zooplatform.formats.sharded import read_index

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SUFFIXES", "find_checkpoints"]

# Of files of weights, in the order in which they are taken off: `model.safetensors.index.json`, `epoch3.pth.tar`.
SUFFIXES = (
    *(".index.json", ".tar", ".safetensors", ".pt", ".pth", ".bin", ".ckpt"),
    *(".npz", ".npy", ".onnx", ".h5", ".hdf5", ".gguf"),
)

_log = logging.getLogger(__name__)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<suffix>\.[a-z]+)")
_REPOSITORY = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)?(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)/?"
)
# What training code keeps beside a checkpoint.
_TRAINING = re.compile(
    r"optimizer\.(pt|bin)|scheduler\.(pt|bin)|scaler\.pt|training_args\.bin|rng_state.*\.pth|random_states.*"
)


def find_checkpoints(path: str) -> Iterator[Path]:
    """Absolute paths of the checkpoints that `path` names, in a stable order.

    Raises:
        SourceError: nothing is there, or a folder holds no checkpoint.
    """
    given = Path(path).expanduser()
    if not os.path.lexists(given) and glob.has_magic(path):
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207
        if not matches:
            raise SourceError(
                path,
                "No file matches this pattern.",
                "Check the path; quote it so that the shell leaves it alone.",
            )
        # What is gone, or leads nowhere, is passed over, as in a folder.
        there = [match for match in matches if os.path.exists(match)]  # noqa: PTH110
        found = [(match, list(_one(Path(match), required=False))) for match in there]
        if not any(paths for _, paths in found):
            raise SourceError(
                path, "Nothing that matches this pattern holds weights.", "Name the files."
            )
        for _, paths in found:
            yield from paths
        return
    hub = _hub_reference(path)
    if hub is not None and not os.path.lexists(given):
        raise SourceError(
            path,
            "There is no such file or folder.",
            f"Check the path; a repository of the Hugging Face Hub is {hub}.",
        )
    yield from _one(given, required=True)


def _one(path: Path, *, required: bool) -> Iterator[Path]:
    path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(path, "There is no such file or folder.", "Check the path.") from None
    except OSError as exc:  # not permitted, links that lead to each other, a name that is too long
        raise SourceError(
            path, f"It cannot be looked at: {exc.strerror}.", "Check the path and its permissions."
        ) from exc
    if is_folder:
        found = list(_walk(path))
        if not found and required:
            raise SourceError(
                path,
                "The folder holds no checkpoint.",
                "Known are safetensors, torch, numpy, ONNX, HDF5 and GGUF files.",
            )
        yield from found
    elif required or looks_like_weights(path):
        yield path


def _hub_reference(path: str) -> str | None:
    """What `path` would be as a reference, where it is written like a repository of the Hub."""
    found = _REPOSITORY.fullmatch(path)
    if found is None or found["name"].lower().endswith(SUFFIXES):
        return None
    return f"hf-hub:{found['name']}"


def _walk(folder: Path) -> Iterator[Path]:
    """Every checkpoint in `folder` and below; links to folders are not followed."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith("."))
        shards = _shards(Path(here), [name for name in names if is_index(name)], names)
        passed = []
        for name in names:
            path = Path(here, name)
            if name in shards:
                continue
            # Not Path.is_file, which raises where it may not look.
            is_file = os.path.isfile(path)  # noqa: PTH113
            if is_file and not _TRAINING.fullmatch(name) and looks_like_weights(path):
                yield path
            else:
                passed.append(name)
        if passed:
            more = f" and {len(passed) - 5} more" if len(passed) > 5 else ""
            _log.info(
                "%s: passed over %s%s, which hold no weights", here, ", ".join(passed[:5]), more
            )


def _shards(folder: Path, indexes: list[str], names: list[str]) -> frozenset[str]:
    """Files of `folder` that belong to a sharded set whose index is there, also when the index is broken."""
    shards: set[str] = set()
    stems = {index.removesuffix(INDEX_SUFFIX).rpartition(".")[0] for index in indexes}
    for index in indexes:
        try:
            shards.update(read_index(folder / index).shards)
        except SourceError as exc:
            # Opening the index will tell; its shards are no checkpoints of their own.
            _log.info("%s", exc)
    for name in names:
        match = _SHARD.fullmatch(name)
        if match is not None and match["stem"] in stems:
            shards.add(name)
    return frozenset(shards)
