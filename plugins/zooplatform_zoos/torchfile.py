"""Torch files without code: the guarded reader that the importers share."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from zooplatform.errors import SourceError
from zooplatform_zoos.pickles import next_pickle

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.interfaces import StateDict

__all__ = ["check_tensor", "check_zip", "read_torch", "state_dict_of"]

_WRAPPERS = ("model", "state_dict", "model_state_dict", "net")
_LEGACY_PICKLES = 5
_PREFIXES = ("module.", "_orig_mod.")


def read_torch(path: Path, *, header_only: bool = False) -> Any:
    """Unpickle a torch file (zip or legacy) with torch's restricted unpickler, on the CPU.

    Args:
        path: the file.
        header_only: map the file, so that the weights of a zip file are not read.

    Raises:
        SourceError: the file is missing, damaged, inflated, or asks for code.
    """
    if not path.is_file():
        raise SourceError(path, "there is no such file.")
    is_zip = zipfile.is_zipfile(path)
    if is_zip and not header_only:
        check_zip(path)
    try:
        _scan(path, is_zip=is_zip)
        with warnings.catch_warnings():
            # torch warns of pickle protocols that it did not write itself, and then reads or refuses them.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=True if header_only and is_zip else None,
            )
    except SourceError:
        raise
    except pickle.UnpicklingError as error:
        raise SourceError(
            path,
            f"refused, it is damaged or asks for code to be run: {_first_line(error)}",
            "Save the plain state dict with torch.save and try again.",
        ) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        MemoryError,
        OverflowError,
        ImportError,
        AssertionError,
        RecursionError,
    ) as error:
        # Whatever the reader stumbles over in a damaged file; UnicodeDecodeError is a ValueError.
        raise SourceError(
            path, f"not a readable torch file: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _scan(path: Path, *, is_zip: bool) -> None:
    """Look at the pickles of a torch file before torch does."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith("data.pkl"):
                    data = archive.read(info)
                    next_pickle(io.BytesIO(data), len(data), path)
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        # Magic number, version, system, object, list of storages; a file of fewer is refused by torch.
        for _ in range(_LEGACY_PICKLES):
            if file.tell() < size:
                next_pickle(file, size, path)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def check_zip(path: Path) -> None:
    """Refuse zip files that torch reads without complaint: twins, wrong checksums, inflated members."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                raise SourceError(path, "two members of the zip file have one name.")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise SourceError(path, "members are compressed, which torch.save never does.")
            if sum(member.file_size for member in members) > size:
                raise SourceError(path, "members claim more bytes than the file has.")
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise SourceError(path, f"damaged zip file: {error}", "Fetch the file again.") from error
    if broken is not None:
        raise SourceError(path, f"member {broken!r} has a wrong checksum.", "Fetch the file again.")


def state_dict_of(content: object, ref: object) -> tuple[StateDict, tuple[str, ...]]:
    """Find the state dict in `content`: unwrap training checkpoints and strip wrapper prefixes.

    Returns:
        The tensors in file order, and notes on what was left out.

    Raises:
        SourceError: there is no tensor, or a tensor cannot be stored.
    """
    notes: list[str] = []
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            inner = content.get(wrapper)
            if isinstance(inner, Mapping) and _has_tensors(inner):
                others = sorted(str(key) for key in content if key != wrapper)
                if others:
                    notes.append(f"left out beside {wrapper!r}: {', '.join(others)[:200]}")
                content = inner
                break
    if not isinstance(content, Mapping) or not _has_tensors(content):
        raise SourceError(ref, "there is no state dict (names with tensors) in it.")
    state: StateDict = {}
    dropped: list[str] = []
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            state[name] = check_tensor(value, f"{ref}, tensor {name!r}")
        else:
            dropped.append(str(name))
    if dropped:
        notes.append(f"entries that are no tensors were left out: {', '.join(dropped)[:200]}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            notes.append(f"the prefix {prefix!r} was removed from the names")
    return state, tuple(notes)


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in content.values())


def check_tensor(tensor: torch.Tensor, ref: object) -> torch.Tensor:
    """Refuse tensors without real, dense bytes of their own (meta, sparse, quantised, expanded)."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise SourceError(ref, "it is sparse, quantised or has no data.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        # A view with stride 0 claims any size from four bytes.
        raise SourceError(ref, "it claims more elements than its storage holds.")
    return tensor.detach()
