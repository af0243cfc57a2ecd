"""Runs fits one after the other, or in several processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from zooplatform.errors import ZooError
from zooplatform.evaluation.fits import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.evaluation.fits import FitRequest
    from zooplatform.evaluation.protocols import Protocol
    from zooplatform.evaluation.sides import Sides

__all__ = ["Outcome", "follow_parent", "run_fits"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Outcome(NamedTuple):
    """A fit that ended: its record, or why it failed."""

    request: FitRequest
    record: dict[str, Any] | None
    error: str = ""


def run_fits(
    catalog: Catalog,
    protocol: Protocol,
    sides: Sides,
    requests: Sequence[FitRequest],
    *,
    jobs: int = 1,
    deadline: float = float("inf"),
) -> Iterator[Outcome]:
    """Every fit that can be begun before the deadline, as it ends.

    Args:
        catalog, protocol, sides: what is fitted on.
        requests: the fits, those on the same networks next to each other.
        jobs: processes; 1 fits in this one.
        deadline: `time.monotonic()` after which no fit is begun.

    Raises:
        ZooError: a process died.
        Exception: what a fit raises that is not a foreseen failure, after the others have ended.
    """
    if jobs == 1:
        worker = Worker(catalog, protocol, sides)
        for request in requests:
            if time.monotonic() >= deadline:
                return
            yield _attempt(worker, request)
        return
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            max_workers=jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_open,
            initargs=(catalog.path, protocol, sides),
        )
        try:
            yield from _in_pool(pool, requests, jobs, deadline)
        except BrokenProcessPool as exc:
            raise ZooError(
                "A fitting process ended without an answer, most likely for want of memory. What is finished is kept: "
                "repeat the command, with fewer --jobs."
            ) from exc
        finally:
            pool.shutdown(cancel_futures=True)


def _in_pool(
    pool: ProcessPoolExecutor, requests: Sequence[FitRequest], jobs: int, deadline: float
) -> Iterator[Outcome]:
    waiting = deque(requests)
    running: set[Future[Outcome]] = set()
    unforeseen: BaseException | None = None
    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < deadline:
            running.add(pool.submit(_fit, waiting.popleft()))
        if not running:
            break
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            if error is None:
                yield future.result()
            else:
                unforeseen = unforeseen or error
    if unforeseen is not None:
        raise unforeseen


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes begun inside have one thread: their libraries read this when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _attempt(worker: Worker, request: FitRequest) -> Outcome:
    """Errors become text: not every exception survives the way between processes."""
    try:
        return Outcome(request, worker.run(request))
    except ZooError as exc:
        return Outcome(request, None, str(exc))


_worker: Worker | None = None  # of this process; set by `_open` where processes are begun


def follow_parent() -> None:
    """End this process when the one that began it is no more: a killed command leaves nothing that goes on fitting."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _open(path: Path, protocol: Protocol, sides: Sides) -> None:
    from zooplatform.catalog import open_catalog

    global _worker
    follow_parent()
    _worker = Worker(open_catalog(path), protocol, sides)


def _fit(request: FitRequest) -> Outcome:
    assert _worker is not None
    return _attempt(_worker, request)
