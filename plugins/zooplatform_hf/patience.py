"""How long to wait for the Hub: time-outs on every request, and retries that end.

The client of the Hub sleeps as long as a server's Retry-After says, gives some requests no time-out
at all and retries some failures and not others. A `Watch` observes every request made on behalf of
one action, whichever function of the client makes it, and leaves all waiting to `patiently`.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2 as httpx
from huggingface_hub import get_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BUSY", "Busy", "NoAnswer", "Patience", "httpx", "patiently"]

T = TypeVar("T")
# "Too many requests", "come back later" and their relatives: the same request may succeed later.
BUSY = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """Seconds that one request may stay silent, and how often and how long to wait in between.

    Attributes:
        timeout: seconds without a byte after which a request counts as failed.
        tries: attempts in all; a download that gets further counts anew.
        first_wait: seconds before the second attempt; doubled for each further one.
        longest_wait: no wait is longer, whatever the server asks for.
    """

    timeout: float = 15.0
    tries: int = 4
    first_wait: float = 1.0
    longest_wait: float = 20.0


class Busy(Exception):
    """The server answered with one of `BUSY`."""

    def __init__(self, status: int, wait: float | None) -> None:
        super().__init__(f"the server answers with status {status}")
        self.status, self.wait = status, wait


class NoAnswer(Exception):
    """The same bytes were asked for `Patience.tries` times without getting any further."""


@dataclass
class Watch:
    """What is known of the requests of one action."""

    patience: Patience
    endpoint: httpx.URL
    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def before(self, request: Any) -> None:
        """Keep the token at home, set a time-out, and end the client's own retries in good time."""
        if request.url.netloc != self.endpoint.netloc:
            # The client drops it as well on most ways there; not in every version on all of them.
            request.headers.pop("authorization", None)
        limit = self.patience.timeout
        given = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            phase: limit if given.get(phase) is None else min(given[phase], limit)
            for phase in ("connect", "read", "write", "pool")
        }
        key = (request.method, str(request.url), request.headers.get("range", ""))
        self.asked[key] += 1
        if self.asked[key] > self.patience.tries:
            raise NoAnswer(f"no answer, or a broken one, {self.patience.tries} times")

    def after(self, response: Any) -> None:
        """Hand a busy server's answer to `patiently`, which caps the wait it asks for."""
        if response.status_code in BUSY:
            raise Busy(response.status_code, _retry_after(response.headers.get("retry-after")))


_current: ContextVar[Watch | None] = ContextVar("zooplatform_hf_watch", default=None)


def patiently(action: Callable[[], T], patience: Patience, endpoint: str) -> T:
    """Run `action`, which talks to the Hub at `endpoint`, until it succeeds or patience ends.

    Raises:
        Busy, NoAnswer, httpx.HTTPError: the last failure that time did not cure.
        Exception: every other failure of `action`, at once.
    """
    watch = Watch(patience, httpx.URL(endpoint))
    wait = patience.first_wait
    for attempt in range(1, patience.tries + 1):
        try:
            with _watched(watch):
                return action()
        except (Busy, httpx.TransportError) as error:
            if attempt == patience.tries:
                raise
            asked_for = error.wait if isinstance(error, Busy) else None
            time.sleep(min(wait if asked_for is None else asked_for, patience.longest_wait))
            wait *= 2
    raise AssertionError("unreachable: the last attempt returns or raises")


@contextmanager
def _watched(watch: Watch) -> Iterator[None]:
    # The client keeps one session for the process and may replace it after a failure. The hooks are
    # added once to each and do nothing for requests that are not ours.
    session = get_session()
    hooks = session.event_hooks
    if _after not in hooks["response"]:
        session.event_hooks = {
            "request": [*hooks["request"], _before],
            "response": [*hooks["response"], _after],
        }
    token = _current.set(watch)
    try:
        yield
    finally:
        _current.reset(token)


def _before(request: Any) -> None:
    if (watch := _current.get()) is not None:
        watch.before(request)


def _after(response: Any) -> None:
    if (watch := _current.get()) is not None:
        watch.after(response)


def _retry_after(value: str | None) -> float | None:
    """Seconds asked for; None for an absent or unreadable value (dates are not worth a parser)."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
