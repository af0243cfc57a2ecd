"""Peak memory, each in a fresh process: of an owned load, and of a checkpoint far larger than what it may take.

    python tests/benchmarks/bench_memory.py WHAT ARGUMENT...

is what the fresh processes run; it prints one line of JSON.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import Row, single

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from zooplatform.registry import Registry

__all__ = ["in_fresh_process", "run"]

# 40 blocks of 144 MB and one tensor of 256 MB, over 11 files: a model of 3 billion parameters.
_BLOCKS, _SHARDS = 40, 11
_WIDE, _HIDDEN = 3072, 12_288
_LARGEST = (41_667, 3072)
_SLACK = 500_000_000


# --- the measuring side ----------------------------------------------------------------------------------------------


def in_fresh_process(what: str, *arguments: str) -> dict[str, Any]:
    """Run one thing of this file in a process of its own."""
    command = [sys.executable, str(Path(__file__)), what, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} ended with {done.returncode}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    """Make a sharded float16 checkpoint of 6 GB, take it in, out, and ask for its statistics."""
    free, needed = shutil.disk_usage(work).free, 24e9
    if free < needed:
        note = (
            f"not measured: {needed / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} GB are free"
        )
        show(single("memory", "6 GB sharded float16 checkpoint", 0, unit="MB", note=note))
        return
    source, catalog, out = work / "6GB", work / "6GB catalog", work / "6GB out"
    try:
        made = in_fresh_process("make", str(source))
        bound = 2 * made["largest_bytes"] + _SLACK
        steps = {
            "ingest": (str(catalog), str(source / "model.safetensors.index.json")),
            "statistics": (str(catalog),),
            "state-dict": (str(catalog),),
            "export": (str(catalog), str(out)),
        }
        texts = {
            "ingest": "ingest of a 6 GB sharded float16 checkpoint",
            "statistics": "statistics of it, from `tensor_stats` and by SQL over its values",
            "state-dict": "state_dict of it: mapped, not read",
            "export": "export of it",
        }
        for what, arguments in steps.items():
            if what == "export":
                shutil.rmtree(source)
            seconds = time.perf_counter()
            peak = in_fresh_process(what, *arguments)
            seconds = time.perf_counter() - seconds
            show(
                single(
                    "memory",
                    f"peak memory, {texts[what]} / twice its largest tensor + 500 MB",
                    peak["peak_bytes"] / 1e6,
                    bound / 1e6,
                    bound=1,
                    unit="MB",
                    note=f"whole process, {made['total_bytes'] / 1e9:.2f} GB, largest tensor "
                    f"{made['largest_bytes'] / 1e6:.0f} MB, {seconds:.0f} s",
                )
            )
            if what == "state-dict":
                show(
                    single(
                        "memory",
                        "resident memory that this state_dict adds / bytes of the checkpoint",
                        peak["added_bytes"] / 1e6,
                        made["total_bytes"] / 1e6,
                        unit="MB",
                        note="information: mapped, not read",
                    )
                )
    finally:
        for folder in (source, catalog, out):
            shutil.rmtree(folder, ignore_errors=True)


# --- the measured side -----------------------------------------------------------------------------------------------


def _memory() -> tuple[int, int]:
    """Resident and peak resident bytes of this process; unlike ru_maxrss without those of its parent."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value
    return tuple(int(fields[f].split()[0]) * 1024 for f in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def _make(folder: str) -> dict[str, Any]:
    """Write the checkpoint: distinct random tensors, so that none is stored for another."""
    import numpy as np
    from safetensors.numpy import save_file

    generator = np.random.default_rng(0)

    def weights(*shape: int) -> npt.NDArray[np.float16]:
        # Chance in the sign, in the mantissa and in two bits of the exponent: magnitudes between 2^-7 and 2^-3.
        bits = np.frombuffer(bytearray(generator.bytes(2 * math.prod(shape))), np.uint16)
        bits &= 0x8FFF
        bits |= 0x2000
        return bits.view(np.float16).reshape(shape)

    shapes = {"embed.weight": _LARGEST}
    for block in range(_BLOCKS):
        shapes[f"blocks.{block}.up.weight"] = (_HIDDEN, _WIDE)
        shapes[f"blocks.{block}.down.weight"] = (_WIDE, _HIDDEN)
        shapes[f"blocks.{block}.norm.weight"] = (_WIDE,)
    target = Path(folder)
    target.mkdir()
    names = list(shapes)
    per_file = -(-len(names) // _SHARDS)
    weight_map, total, largest = {}, 0, 0
    for number in range(_SHARDS):
        own = names[number * per_file : (number + 1) * per_file]
        file = f"model-{number + 1:05d}-of-{_SHARDS:05d}.safetensors"
        state = {name: weights(*shapes[name]) for name in own}
        save_file(state, target / file)
        weight_map |= dict.fromkeys(own, file)
        total += sum(t.nbytes for t in state.values())
        largest = max(largest, *(t.nbytes for t in state.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return {"total_bytes": total, "largest_bytes": largest}


def _work(what: str, arguments: list[str]) -> dict[str, Any]:
    import numpy as np

    from zooplatform.catalog import open_catalog

    catalog = open_catalog(arguments[0], create=what == "ingest")
    if what == "owned-load":
        import torch

        population = catalog.population()
        population.read(0)
        before, _ = _memory()
        tensor = torch.from_numpy(population.read(np.arange(len(population))))
        assert tensor.shape == (len(population), population.vector.width)
        return {"grown_bytes": _memory()[1] - before}
    if what == "ingest":
        report = catalog.ingest(arguments[1])
        assert len(report.checkpoint_ids) == 1
        return {}
    (checkpoint,) = catalog.sql("SELECT checkpoint_id FROM checkpoints")[
        "checkpoint_id"
    ].to_pylist()
    if what == "statistics":
        stored = catalog.sql("SELECT name, l2 FROM tensor_stats ORDER BY name")
        computed = catalog.sql(
            "SELECT name, sqrt(sum(list_inner_product(values, values)::DOUBLE)) AS l2 "
            "FROM tensor_values GROUP BY name ORDER BY name"
        )
        assert stored.num_rows == computed.num_rows == 1 + 3 * _BLOCKS
        assert np.allclose(stored["l2"], computed["l2"], rtol=1e-3)
    elif what == "state-dict":
        import torch

        assert torch.get_default_dtype() == torch.float32  # imported, so that it does not count
        before, _ = _memory()
        state = catalog.state_dict(checkpoint)
        added = _memory()[0] - before
        assert len(state) == 1 + 3 * _BLOCKS
        assert float(state["blocks.7.up.weight"][5, 5]) != 0
        return {"added_bytes": added}
    elif what == "export":
        catalog.export(checkpoint, arguments[1])
        assert len(list(Path(arguments[1]).glob("*.safetensors"))) == _SHARDS
    return {}


def main() -> None:
    what, *arguments = sys.argv[1:]
    result = _make(arguments[0]) if what == "make" else _work(what, arguments)
    resident, peak = _memory()
    print(json.dumps({"resident_bytes": resident, "peak_bytes": peak} | result))


if __name__ == "__main__":
    main()
