"""The state of a fit, or what it led to, on disk: tensors and plain values in one safetensors file.

For predictors, tokenizers and generators that go on after an interruption:

    write_state(path, with_prefix("model", model.state_dict()), {"epoch": 3, "fingerprint": digest(config, seed)})
    tensors, values = read_state(path)
    model.load_state_dict(drop_prefix("model", tensors))

The file is replaced as a whole, so a crash leaves the old one or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from zooplatform.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

__all__ = ["digest", "drop_prefix", "read_state", "with_prefix", "write_state"]

_VALUES = "values"


def write_state(path: Path, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
    """Replace `path` by a file with these tensors (any shape, dtype and device) and JSON values, and sync it."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, metadata={_VALUES: json.dumps(values, sort_keys=True)})
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and values that `write_state` wrote.

    Raises:
        ArtifactError: the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})[_VALUES])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. Fit it again.") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as exc:
        raise ArtifactError(
            f"{path} cannot be read ({exc}): it is damaged, or not the state of a fit. Remove it and fit again."
        ) from exc
    return tensors, values


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors with `prefix.` before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def drop_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors whose names begin with the prefix, under what follows it."""
    start = prefix + "."
    return {n.removeprefix(start): tensor for n, tensor in tensors.items() if n.startswith(start)}


def digest(*parts: object) -> str:
    """A name for JSON values and bytes that is the same in every process."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()[:32]
