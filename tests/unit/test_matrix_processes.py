"""Processes of a comparison end with the command that began them."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

SCRIPT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from zooplatform.evaluation.execution import follow_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=follow_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 300)
    time.sleep(300)
"""


def _alive(pid: int) -> bool:
    """Whether it runs; one that ended and waits for its parent to ask does not."""
    with suppress(OSError):
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()[:80]
    return False


def test_a_killed_command_leaves_no_process_behind() -> None:
    line = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as command:
        assert command.stdout is not None
        worker = int(command.stdout.readline())
        assert _alive(worker)
        command.kill()
        command.wait()
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)
