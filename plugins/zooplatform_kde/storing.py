"""Artifacts: a safetensors file of tensors and a JSON file of all else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zooplatform.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

__all__ = ["read_artifact", "write_artifact"]

_FORMAT = 1
_TENSORS, _DESCRIPTION = "generator.safetensors", "generator.json"


def write_artifact(
    folder: Path, backend: str, described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write what `read_artifact` reads into a folder that is there."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / _TENSORS)
    shapes = {name: list(tensor.shape) for name, tensor in sorted(plain.items())}
    whole = {"format": _FORMAT, "backend": backend, "tensors": shapes, **described}
    text = json.dumps(whole, indent=1, sort_keys=True)
    (folder / _DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def read_artifact(folder: Path, backend: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What `write_artifact` wrote.

    Raises:
        ArtifactError: a file is missing, damaged, of another format or of another backend.
    """
    path = folder / _DESCRIPTION
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        found, of, shapes = described["format"], described["backend"], described["tensors"]
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. Fit the generator again.") from None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ArtifactError(f"{path} is damaged ({exc}). Fit the generator again.") from exc
    if found != _FORMAT:
        raise ArtifactError(
            f"{path} has format {found}, this version reads {_FORMAT}. Install the version that wrote it."
        )
    if of != backend:
        raise ArtifactError(f"{path} is of the generator {of!r}, not {backend!r}.")
    try:
        tensors = load_file(folder / _TENSORS)
    except FileNotFoundError:
        raise ArtifactError(f"{folder / _TENSORS} is missing. Fit the generator again.") from None
    except (SafetensorError, OSError, ValueError) as exc:
        raise ArtifactError(
            f"{folder / _TENSORS} is damaged ({exc}). Fit the generator again."
        ) from exc
    if {name: list(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise ArtifactError(
            f"{folder / _TENSORS} does not hold the tensors that {path} lists. Fit the generator again."
        )
    return described, tensors
