"""Writers in processes of their own, which the tests start by the hundred and kill at any moment.

Run as a script it is a server: it has imported everything once, and forks a process for every line of JSON that it is
given. Starting a writer so takes milliseconds instead of seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform import catalog as catalog_package
from zooplatform.catalog import open_catalog
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    TensorSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from zooplatform.catalog import Catalog

LAYOUT = (
    TensorSpec("layers.0.weight", "float32", (6, 4), 96),
    TensorSpec("layers.0.bias", "float32", (6,), 24),
)
WIDTH = 30
STILL_RUNNING = 1000  # beyond every exit code
ROWS = 3  # checkpoints of a batch
TENSORS = 3  # of a single checkpoint
# Modules of the catalog that mark the steps of what they do.
MARKED = ("commits", "compaction", "garbage", "leases", "merging", "shards", "tables")


def population(writer: int, number: int, rows: int = ROWS) -> PopulationBatch:
    """The batch that writer `writer` appends as its `number`-th; the weights follow from both."""
    draw = np.random.default_rng([writer, number])
    records = [
        CheckpointRecord(
            model=ModelInfo(
                key=f"w{writer}b{number}r{row}", name=f"w{writer}b{number}", source="test:"
            ),
            step=row,
            metrics=(MetricRecord(name="test_accuracy", value=number + row / 10, split="test"),),
        )
        for row in range(rows)
    ]
    weights = draw.standard_normal((rows, WIDTH)).astype(np.float32)
    return PopulationBatch(
        layout=LAYOUT,
        weights=weights,
        rows=records,
        family="cnn",
        config={"preset": "mlp", "widths": [4, 6], "activation": "tanh"},
    )


def tensors(writer: int, number: int) -> dict[str, npt.NDArray[np.float32]]:
    """The single checkpoint that a writer ingests as its `number`-th: one tensor that all share, two of its own."""
    draw = np.random.default_rng([writer, number, 1])
    return {
        "shared": np.arange(100, dtype=np.float32),
        "own.weight": draw.standard_normal((17, 5)).astype(np.float32),
        "own.bias": draw.standard_normal(17).astype(np.float32),
    }


def tensor_file(folder: Path, writer: int, number: int) -> Path:
    """That checkpoint as a file."""
    from safetensors.numpy import save_file

    path = folder / f"w{writer}b{number}.safetensors"
    if not path.exists():
        save_file(tensors(writer, number), path)
    return path


def digest(arrays: dict[str, Any]) -> str:
    """Of names, shapes and bytes."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        hasher.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
    return hasher.hexdigest()


# --- jobs ------------------------------------------------------------------------------------------------------------


def write_one(
    catalog: Catalog, folder: Path, kind: str, writer: int, number: int
) -> tuple[str, ...]:
    if kind == "population":
        return catalog.append(population(writer, number), zoo=f"zoo-{writer % 2}")
    return catalog.ingest(tensor_file(folder, writer, number)).checkpoint_ids


def write(
    path: str, kind: str, writer: int, start: int, count: int, acknowledge: str, seen: str = ""
) -> None:
    """Write batches `start` to `start + count`; each is acknowledged durably once the catalog said it is stored.

    With `seen`, a file in which a reader says how many states it saw, the second batch waits for one and the third for
    two, so that the reader sees what happens however seldom it gets a turn.
    """
    catalog = open_catalog(path, create=True)
    folder = Path(acknowledge).parent
    kinds = ("population", "tensors") if kind == "both" else (kind,)
    with Path(acknowledge).open("a", encoding="utf-8") as log:
        for number in range(start, start + count):
            _wait_for(seen, min(number - start, 2))
            ids = write_one(catalog, folder, kinds[number % len(kinds)], writer, number)
            log.write(json.dumps([kinds[number % len(kinds)], writer, number, ids]) + "\n")
            log.flush()
            os.fsync(log.fileno())


def _wait_for(seen: str, states: int) -> None:
    deadline = time.monotonic() + 30
    while seen and int(Path(seen).read_text(encoding="utf-8") or 0) < states:
        assert time.monotonic() < deadline, "the reader sees nothing"
        time.sleep(0.005)


def compact(path: str, times: int = 1) -> None:
    catalog = open_catalog(path)
    for _ in range(times):
        catalog.compact()


def collect(path: str, grace: float = 0.0, times: int = 1) -> None:
    catalog = open_catalog(path)
    for _ in range(times):
        catalog.gc(grace_seconds=grace)


JOBS: dict[str, Callable[..., None]] = {"write": write, "compact": compact, "collect": collect}


def mark_steps(hook: Callable[[str], None]) -> None:
    """Call `hook` at every step of the protocol."""
    for name in MARKED:
        module = importlib.import_module(f"{catalog_package.__name__}.{name}")
        assert hasattr(module, "reached")
        vars(module)["reached"] = hook


def kill_at(number: int) -> None:
    """Have this process killed at its `number`-th step."""
    seen = 0

    def hook(step: str) -> None:
        nonlocal seen
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    mark_steps(hook)


def record_steps(path: str) -> None:
    """Write down the steps of this process."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def hook(step: str) -> None:
        os.write(handle, step.encode() + b"\n")

    mark_steps(hook)


def serve() -> None:
    """Fork a process for every request and answer with its number, or say how one ended."""
    # What a write imports when it needs it; no thread may be started before a fork, so nothing is run.
    for name in (
        *("safetensors.numpy", "torch", "zooplatform_cnn.adapter"),
        *("zooplatform_generic.adapter", "zooplatform_local.source"),
        *("zooplatform_stats.properties", "zooplatform_timm.adapter"),
    ):
        importlib.import_module(name)
    with suppress(ModuleNotFoundError):  # pyarrow imports it where it is installed
        importlib.import_module("pandas")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else STILL_RUNNING
        else:
            answer = os.fork()
            if answer == 0:
                _run(request)
        print(json.dumps(answer), flush=True)


def _run(request: dict[str, Any]) -> None:
    """The life of a forked process."""
    code = 1
    try:
        if "kill_at" in request:
            kill_at(request["kill_at"])
        if "record" in request:
            record_steps(request["record"])
        if "file_limit" in request:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY)
            )
        JOBS[request["job"]](**request["arguments"])
        code = 0
    except BaseException:  # noqa: BLE001 - it is written down, and the process ends
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(request["errors"]).write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
