"""What the encoder of the paper needs of memory, per chunk size.

    python tests/benchmarks/sne_memory.py [--json FILE] [--chunk-map sets] [--mode train]

Every row is a process of its own, which encodes networks of one architecture on the CPU, in `train` mode with the
backward pass, and reads its peak resident memory from the operating system. `used` is that peak less the peak of the
same process before it began to encode (libraries, weights and parameters). A fixed number of chunks is encoded at once
(`--max-chunks`), so the memory follows the chunk size, above what the chunks of a layer take to attend to each other.
The last row has a network of `--factor` times the width, with about its square times the parameters, and should need
little more than the row before it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHUNK_SIZES = (8, 16, 32, 64, 128, 256)


def peak_mib() -> float:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    import torch
    from torch import nn

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout, layout_of
    from zooplatform_sne.chunks import ChunkEncoder, ChunkSettings
    from zooplatform_sne.sets import SetSettings

    torch.manual_seed(0)
    torch.set_num_threads(1)
    width = options.width
    network = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 10))
    vector = VectorLayout(layout_of(network.state_dict()))
    settings = ChunkSettings(
        sets=SetSettings(dim=options.dim),
        chunk_size=options.chunk_size,
        chunk_map=options.chunk_map,
        neuron_rows=False,
        max_chunks=options.max_chunks,
    )
    model = ChunkEncoder(settings)
    batch = NetworkBatch(torch.randn(options.networks, vector.width), vector)
    prepared = model.prepare(batch)
    # One chunk of a small network first: what the libraries allocate once is none of the encoder's.
    small = VectorLayout(layout_of(nn.Linear(4, 4).state_dict()))
    model(model.prepare(NetworkBatch(torch.randn(1, small.width), small)), small).sum().backward()
    before, start = peak_mib(), time.process_time()
    if options.mode == "train":
        model(prepared, vector).square().sum().backward()
    else:
        with torch.no_grad():
            model(prepared, vector)
    return {
        "chunk_size": options.chunk_size,
        "parameters": vector.width,
        "chunks": prepared["chunks"].shape[1],
        "networks": options.networks,
        "used_mib": round(peak_mib() - before, 1),
        "cpu_seconds": round(time.process_time() - start, 2),
    }


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, each measured in a new process."""
    cases = [(size, options.width) for size in options.chunk_sizes]
    cases += [(size, options.width * options.factor) for size in options.chunk_sizes[-1:]]
    found = []
    for size, width in cases:
        command = [sys.executable, __file__, "--row", "--chunk-sizes", str(size)]
        command += ["--width", str(width), "--networks", str(options.networks)]
        command += ["--dim", str(options.dim), "--max-chunks", str(options.max_chunks)]
        command += ["--chunk-map", options.chunk_map, "--mode", options.mode]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=list(CHUNK_SIZES))
    parser.add_argument("--chunk-map", choices=["sets", "linear"], default="sets")
    parser.add_argument("--mode", choices=["train", "encode"], default="train")
    parser.add_argument("--width", type=int, default=128, help="of the three linear layers")
    parser.add_argument("--factor", type=int, default=2, help="width of the last row, times this")
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--max-chunks", type=int, default=128)
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        options.chunk_size = options.chunk_sizes[0]
        print(json.dumps(measure(options)))
        return
    found = rows(options)
    print(f"{'c':>5} {'parameters':>11} {'chunks':>7} {'used MiB':>9} {'CPU s':>7}")
    for row in found:
        print(
            f"{row['chunk_size']:>5} {row['parameters']:>11,} {row['chunks']:>7} "
            f"{row['used_mib']:>9.1f} {row['cpu_seconds']:>7.2f}"
        )
    if options.json:
        kept = {name: getattr(options, name) for name in ("chunk_map", "mode", "dim", "max_chunks")}
        options.json.write_text(json.dumps({**kept, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
