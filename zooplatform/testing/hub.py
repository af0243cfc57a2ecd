"""A Hub on the loopback: what the Hugging Face client asks for, and the ways a server can fail it.

    with LoopbackHub() as hub:
        hub.store.repo("org/net", {"model.safetensors": path, "README.md": card})
        hub.fail("GET .*safetensors", "cut", after_bytes=1000)
        source = HubSource(endpoint=hub.url)

It is a real server on a real socket: nothing of the client is replaced. `requests` holds what was
asked, `bytes_sent` and `bytes_received` what went over the wire. The tokens in `store.users` are
the valid ones.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from zooplatform.testing.hub_store import HubStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message
    from types import TracebackType

__all__ = ["Fault", "HubRequest", "LoopbackHub"]

FaultKind: TypeAlias = Literal[
    "status", "reset", "cut", "hang", "slow", "corrupt", "no-ranges", "redirect", "call"
]


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next `times` requests whose `METHOD /path` matches.

    Attributes:
        match: regular expression over `METHOD /path?query`, matched from the start.
        kind: `status` answers `status` (with `retry_after`); `reset` drops the connection with RST
            and `cut` with FIN, after `after_bytes` bytes of the body; `hang` stops there for
            `seconds`; `slow` waits `seconds` before each kilobyte; `corrupt` flips one bit of the
            byte at `after_bytes`; `no-ranges` ignores Range; `redirect` answers 302 to `location`;
            `call` runs `call` and then answers as usual.
    """

    match: str
    kind: FaultKind
    times: float = 1
    status: int = 503
    retry_after: str | None = None
    after_bytes: int = 0
    seconds: float = 30.0
    location: str = ""
    call: Callable[[], object] | None = None


@dataclass(frozen=True)
class HubRequest:
    """One request as it arrived; the names of `headers` are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class _Traffic:
    requests: list[HubRequest] = field(default_factory=list)
    sent: int = 0
    received: int = 0


class LoopbackHub:
    """The server; a context manager. Several may share one `store`, for example a Hub and its CDN.

    Args:
        store: what it serves.
        cdn: a server to which LFS downloads are redirected, as the real Hub does.
    """

    def __init__(self, store: HubStore | None = None, *, cdn: LoopbackHub | None = None) -> None:
        self.store = store or HubStore()
        self.cdn = cdn
        self.faults: list[Fault] = []
        self.stopping = threading.Event()
        self._traffic = _Traffic()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[HubRequest]:
        with self._lock:
            return list(self._traffic.requests)

    @property
    def bytes_sent(self) -> int:
        """Bytes written to clients, headers included."""
        return self._traffic.sent

    @property
    def bytes_received(self) -> int:
        """Bytes read from clients, headers included."""
        return self._traffic.received

    def fail(self, match: str, kind: FaultKind, **how: Any) -> Fault:
        """Arm a fault; several are tried in the order in which they were armed."""
        fault = Fault(match=match, kind=kind, **how)
        self.faults.append(fault)
        return fault

    def forget(self) -> None:
        """Disarm every fault and start counting traffic anew."""
        self.faults.clear()
        self._traffic = _Traffic()

    def count(self, sent: int = 0, received: int = 0, request: HubRequest | None = None) -> None:
        with self._lock:
            self._traffic.sent += sent
            self._traffic.received += received
            if request is not None:
                self._traffic.requests.append(request)

    def next_fault(self, line: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and re.match(fault.match, line):
                    fault.times -= 1
                    return fault
        return None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], hub: LoopbackHub) -> None:
        from zooplatform.testing.hub_routes import answer

        self.hub = hub
        self.answer = answer
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep silent about clients that hang up, which tests make them do; show the rest."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Reads one request, lets a fault have its way, and writes the routes' answer."""

    server: _Server
    raw_requestline: bytes
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def parse_request(self) -> bool:
        ok = super().parse_request()
        if ok:
            size = len(self.raw_requestline) + sum(
                len(k) + len(v) + 4 for k, v in self.headers.items()
            )
            request = HubRequest(self.command, self.path, _lowered(self.headers))
            self.server.hub.count(received=size, request=request)
        return ok

    def do_any(self) -> None:
        hub = self.server.hub
        body = self._read_body()
        fault = hub.next_fault(f"{self.command} {self.path}")
        if fault is not None:
            if fault.kind == "call" and fault.call is not None:
                fault.call()
            elif fault.kind == "hang" and fault.after_bytes == 0:
                hub.stopping.wait(fault.seconds)
            elif fault.kind == "reset" and fault.after_bytes == 0:
                self._reset()
                return
            elif fault.kind == "status":
                wait = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
                self._send(fault.status, wait, b'{"error": "busy"}')
                return
            elif fault.kind == "redirect":
                self._send(302, {"Location": fault.location + self.path}, b"")
                return
            elif fault.kind == "no-ranges":
                del self.headers["Range"]
        reply = self.server.answer(hub, self.command, self.path, _lowered(self.headers), body)
        headers = {**reply.headers, "Content-Length": str(reply.length)}
        self._send(reply.status, headers, b"", length=reply.length)
        if self.command == "HEAD":
            return
        sent = 0
        for chunk in reply.chunks:
            spoiled = chunk if fault is None else self._spoil(fault, chunk, sent)
            if spoiled is None:
                return
            self._write(spoiled)
            sent += len(chunk)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def _spoil(self, fault: Fault, chunk: bytes, sent: int) -> bytes | None:
        """What the fault makes of the next `chunk`; None when the connection is gone."""
        at = fault.after_bytes - sent
        if fault.kind == "slow":
            for start in range(0, len(chunk), 1024):
                if self.server.hub.stopping.wait(fault.seconds):
                    return None
                self._write(chunk[start : start + 1024])
            return b""
        if fault.kind not in ("cut", "reset", "hang", "corrupt") or not 0 <= at < len(chunk):
            return chunk
        if fault.kind == "corrupt":
            return chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
        self._write(chunk[:at])
        if fault.kind == "hang":
            self.server.hub.stopping.wait(fault.seconds)
            return chunk[at:]
        if fault.kind == "reset":
            self._reset()
        self.close_connection = True
        return None

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.hub.count(received=len(body))
        return body

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, *, length: int | None = None
    ) -> None:
        lines = [f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}"]
        headers = {"Content-Length": str(len(body) if length is None else length), **headers}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._write("\r\n".join([*lines, "", ""]).encode() + body)

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.server.hub.count(sent=len(data))

    def _reset(self) -> None:
        # Closing with a zero linger time sends RST in place of FIN.
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # the connection was reset on purpose, or by the client
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in `LoopbackHub.requests`; nothing is printed."""


def _lowered(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
