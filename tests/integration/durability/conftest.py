"""Processes that write to catalogs, for the tests of what happens when they are many, or are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))  # the tests and the processes share `catalog_processes`

from catalog_processes import STILL_RUNNING  # noqa: E402 - found through the line above


class Process:
    """One process that works on a catalog."""

    def __init__(self, pool: Pool, pid: int, errors: Path) -> None:
        self._pool, self.pid, self._errors = pool, pid, errors
        self._code: int | None = None

    def kill(self) -> None:
        """Kill it with SIGKILL; one that has ended already is left in peace."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code; the negative signal number when it was killed."""
        if self._code is None:
            self._code = self._pool.ask({"wait": self.pid})
        return self._code

    def alive(self) -> bool:
        """Whether it is still at work."""
        if self._code is None:
            answer = self._pool.ask({"poll": self.pid})
            self._code = None if answer == STILL_RUNNING else answer
        return self._code is None

    def succeed(self) -> None:
        """Wait until it ends, which must be well."""
        code = self.wait()
        assert code == 0, f"exit code {code}: {self.error()}"

    def error(self) -> str:
        """The traceback that it left."""
        return self._errors.read_text(encoding="utf-8") if self._errors.exists() else ""


class Pool:
    """Starts processes in milliseconds: forks of one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, str(_HERE / "catalog_processes.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(json.loads(self._server.stdout.readline()))

    def start(
        self,
        job: str,
        *,
        kill_at: int | None = None,
        record: Path | None = None,
        file_limit: int | None = None,
        **arguments: Any,
    ) -> Process:
        """Start a job of `catalog_processes.JOBS`.

        Args:
            job: its name.
            kill_at: have it killed at this step of the protocol, counted from 0.
            record: write the steps that it takes to this file.
            file_limit: no file may grow beyond this many bytes.
            arguments: of the job.
        """
        self._started += 1
        errors = self._folder / f"errors-{self._started}"
        hooks = {"kill_at": kill_at, "record": record, "file_limit": file_limit}
        request: dict[str, Any] = {k: v for k, v in hooks.items() if v is not None}
        request |= {"job": job, "arguments": arguments, "errors": errors}
        return Process(self, self.ask(json.loads(json.dumps(request, default=str))), errors)

    def stop(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        assert self._server.stdout is not None
        self._server.stdout.close()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Starts processes that work on catalogs."""
    pool = Pool(tmp_path_factory.mktemp("processes"))
    yield pool
    pool.stop()
