"""What every file of results says of itself, and how such a file is written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import TYPE_CHECKING, Any

from zooplatform import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["machine", "versions", "write_json"]

_LIBRARIES = ("lightgbm", "numpy", "pyarrow", "scikit-learn", "torch")


def versions() -> dict[str, str]:
    """Of the platform, Python, and the libraries that figures depend on."""
    found = {"zooplatform": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(jobs: int, device: str) -> dict[str, Any]:
    """What the times depend on, and the last bits of weights that are trained here."""
    import torch

    found: dict[str, Any] = {
        "system": platform.system(),
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "jobs": jobs,
        "device": device,
    }
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Write a file that is whole or not there, and give what will be read from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    found: dict[str, Any] = json.loads(text)
    return found
