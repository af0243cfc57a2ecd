"""What drawing networks costs: seconds, and memory at its peak."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cost", "measured"]

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What it took to make n networks.

    Attributes:
        n: networks.
        seconds: by the clock.
        peak_bytes: how far the memory of the process grew beyond what it had before.
        peak_of: what `peak_bytes` was read from: `VmHWM` of Linux, set back before; or `ru_maxrss`, which shows only
            growth beyond the highest that the process had before.
        gpu_bytes: highest memory allocated by torch on the accelerator, None without one.
    """

    n: int
    seconds: float
    peak_bytes: int
    peak_of: str
    gpu_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "seconds": self.seconds,
            "seconds_per_network": self.seconds / max(1, self.n),
            "networks_per_second": self.n / self.seconds if self.seconds else None,
            "peak_bytes": self.peak_bytes,
            "peak_of": self.peak_of,
            "gpu_bytes": self.gpu_bytes,
        }


def measured(do: Callable[[], T], count: Callable[[T], int]) -> tuple[T, Cost]:
    """What `do` gives, and its cost; `count` says how many networks it gave."""
    import torch

    accelerator = torch.cuda.is_available()
    if accelerator:
        torch.cuda.reset_peak_memory_stats()
    before, how = _set_back()
    begun = time.perf_counter()
    found = do()
    if accelerator:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    peak = _status("VmHWM") if how == "VmHWM" else _highest()
    return found, Cost(
        n=count(found),
        seconds=seconds,
        peak_bytes=max(0, peak - before),
        peak_of=how,
        gpu_bytes=torch.cuda.max_memory_allocated() if accelerator else None,
    )


def _set_back() -> tuple[int, str]:
    """Bytes that growth counts from, and what will tell the peak."""
    try:
        _CLEAR.write_text("5", encoding="ascii")  # sets the high-water mark to what is used now
        return _status("VmRSS"), "VmHWM"
    except (OSError, LookupError):
        return _highest(), "ru_maxrss"


def _status(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(name)


def _highest() -> int:
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest
