"""Speed and memory of the catalog, measured against the plain way to do the same.

    python tests/benchmarks/run.py [--suite storage|sql|ingest|memory] [--json FILE]

Both sides of a pair run in turns in one process, at least seven times each; the middle of the ratios counts. One core
and one thread for every library. Whatever the figures, the exit code is 0.

The table in the documentation is made from the JSON:

    python tests/benchmarks/run.py --json docs/results/benchmarks.json
    python tests/benchmarks/report.py docs/results/benchmarks.json docs/results/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import line

if TYPE_CHECKING:
    from measuring import Row

SUITES = ("storage", "sql", "ingest", "memory")


def one_core() -> None:
    """Keep this process on one core, before any library asks how many there are.

    numpy, torch, Arrow and DuckDB then start one thread each.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import pyarrow as pa
    import torch

    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    libraries = ("duckdb", "numpy", "pandas", "pyarrow", "safetensors", "torch")
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [text.partition(":")[2].strip() for text in info if text.startswith("model name")]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": models[0] if models else platform.machine(),
        "cores_of_the_machine": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, help="measure this one only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    arguments = parser.parse_args()
    one_core()
    from zooplatform.plugins import load_plugins

    registry = load_plugins()
    about = conditions()
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        print(line(asdict(row)), flush=True)

    for name in SUITES:
        if arguments.suite not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="zoo-benchmark-") as folder:
            import_module(f"bench_{name}").run(Path(folder), registry, show)
    about["load_after"] = round(os.getloadavg()[0], 2)
    missed = [row.pair for row in rows if row.met is False]
    print(
        f"{sum(row.met is True for row in rows)} bounds met, {len(missed)} not",
        *missed,
        sep="\n  ",
        file=sys.stderr,
    )
    if arguments.json:
        result = {"conditions": about, "rows": [asdict(row) for row in rows]}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
