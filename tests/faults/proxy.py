"""An HTTP/1.1 proxy in front of one S3 server, on the loopback address, that injects faults.

``decide(request)`` returns the fault of each request. ``watch(request, stage)`` is called when a request begins
("before"), when half of its body has gone on to the server ("half") and when the server has done it but the client has
no answer ("after"); it may kill the client there, and then returns True. Both are called on the connection's own
thread, several at once.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["status", "hang-up", "lost-answer", "reset", "stall", "truncate", "flip"]
Direction = Literal["up", "down"]
CHUNK = 1 << 16


@dataclass(frozen=True)
class Fault:
    """One fault of one request.

    ``status``       the answer is ``status``, without the server
    ``hang-up``      the connection ends before the server gets the request
    ``lost-answer``  the server does it, and the connection ends instead of the answer
    ``reset``        the connection is reset after ``at`` of the body
    ``stall``        nothing moves for ``seconds`` after ``at`` of the body
    ``truncate``     the body ends after ``at``, with a length to match
    ``flip``         the bit at ``at`` of the body is flipped
    """

    kind: Kind
    direction: Direction = "down"
    """Whose body: the request's or the answer's."""
    at: float = 0.5
    """Position in the body, 0 to 1."""
    status: int = 503
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """A client's request; ``path`` is the object's key, bucket included."""

    method: str
    path: str
    query: dict[str, str]
    length: int
    range: str = ""

    @property
    def label(self) -> str:
        """Method and kind of object: ``PUT marker``, ``GET shard``."""
        return f"{self.method} {self._object()}"

    def _object(self) -> str:
        if "list-type" in self.query:
            return "list"
        if "partNumber" in self.query:
            return "part"
        if "uploads" in self.query or "uploadId" in self.query:
            return "upload"
        return next((name for pattern, name in _OBJECTS if re.search(pattern, self.path)), "bucket")


_OBJECTS = (
    (r"/checkpoints/step-\d+\.json$", "marker"),
    (r"/checkpoints/step-\d+/", "file"),
    (r"/(events|metrics|logs)/", "feed"),
    (r"/attempts/", "attempt"),
    (r"/run\.json$", "record"),
    (r"/report\.html$", "report"),
    (r"/shards/", "shard"),
    (r"/manifest\.json$", "dataset"),
    (r"^[^/]+/.", "object"),
)

Decide = Callable[[Request], Fault | None]
Watch = Callable[[Request, str], bool]


class Proxy:
    """A running proxy, in threads of this process; a context manager. ``uplink`` limits uploads, in bytes/s."""

    def __init__(
        self,
        server: str,
        *,
        decide: Decide = lambda _: None,
        watch: Watch = lambda _, __: False,
        uplink: float | None = None,
    ) -> None:
        self.server = urlsplit(server)
        self.decide = decide
        self.watch = watch
        self.lock = threading.Lock()
        self.up = self.down = 0
        """Bytes of bodies that went to the server, and that came from it to a client."""
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.connections: set[socket.socket] = set()
        self._committed: set[str] = set()
        self._uplink = uplink
        self._uplink_free_at = 0.0
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._listener.daemon_threads = True
        self._listener.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections break here
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        serve = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        serve.start()

    @property
    def committed(self) -> frozenset[str]:
        """Keys of the checkpoint markers that the server has taken so far."""
        with self.lock:
            return frozenset(self._committed)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and refuse new ones."""
        self._listener.shutdown()
        self._listener.server_close()
        with self.lock:
            for each in self.connections:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)  # wakes the thread that serves it

    def begin(self, request: Request) -> Fault | None:
        """Count a request and its fault."""
        fault = self.decide(request)
        with self.lock:
            self.requests[request.label] += 1
            if fault:
                self.faults[f"{fault.kind} {fault.direction}"] += 1
        return fault

    def sent(self, count: int) -> None:
        """Count bytes to the server, at the speed of the uplink."""
        with self.lock:
            self.up += count
            if self._uplink is None:
                return
            self._uplink_free_at = max(self._uplink_free_at, time.monotonic()) + count / self._uplink
            wait = self._uplink_free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)

    def answered(self, request: Request, status: int) -> None:
        if request.label == "PUT marker" and status == 200:
            with self.lock:
                self._committed.add(request.path)


class _ResetError(Exception):
    """The connection must be reset now."""


class _Handler(BaseHTTPRequestHandler):
    """One client's requests, one after another, over one connection to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def setup(self) -> None:
        super().setup()
        with self.proxy.lock:
            self.proxy.connections.add(self.connection)
        self._upstream = http.client.HTTPConnection(self.proxy.server.netloc)
        self._upstream.connect()
        self._upstream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self) -> None:
        with self.proxy.lock:
            self.proxy.connections.discard(self.connection)
        self._upstream.close()
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        try:
            self._pass_on()
        except (_ResetError, OSError, http.client.HTTPException):
            self.close_connection = True
            with contextlib.suppress(OSError):  # closed with RST
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _pass_on(self) -> None:
        """Pass a request and its answer on."""
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        length, path = int(self.headers.get("content-length", "0")), unquote(parts.path).lstrip("/")
        request = Request(self.command, path, query, length, self.headers.get("range", ""))
        fault = self.proxy.begin(request)
        if self.proxy.watch(request, "before") or (fault and fault.kind == "hang-up"):
            raise _ResetError
        if fault and fault.kind == "status":
            self.rfile.read(length)
            body = b"<Error><Code>SlowDown</Code><Message>on purpose</Message></Error>"
            self._answer(fault.status, {"content-length": str(len(body))}, [body])
            return
        self._send(request, fault)
        answer = self._upstream.getresponse()
        self.proxy.answered(request, answer.status)
        if self.proxy.watch(request, "after") or (fault and fault.kind == "lost-answer"):
            raise _ResetError
        headers = {name.lower(): value for name, value in answer.getheaders()}
        bodiless = self.command == "HEAD" or answer.status in (204, 304)
        whole = answer.read()
        headers.pop("transfer-encoding", None)
        down = _Body(len(whole), fault if fault and fault.direction == "down" else None)
        if not bodiless:
            headers["content-length"] = str(down.length)
        self._answer(answer.status, headers, down.pieces(io.BytesIO(whole)))

    def _send(self, request: Request, fault: Fault | None) -> None:
        """Pass the request on, with its body."""
        body = _Body(request.length, fault if fault and fault.direction == "up" else None)
        self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "expect":  # answered already
                self._upstream.putheader(name, str(body.length) if name.lower() == "content-length" else value)
        self._upstream.endheaders()
        half: int | None = request.length // 2
        for piece in body.pieces(self.rfile):
            self._upstream.send(piece)
            self.proxy.sent(len(piece))
            if half is not None and body.passed >= half:
                half = None
                if self.proxy.watch(request, "half"):
                    raise _ResetError
        self.rfile.read(request.length - body.passed)  # of a truncated body

    def _answer(self, status: int, headers: dict[str, str], pieces: Iterable[bytes]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            with self.proxy.lock:
                self.proxy.down += len(piece)


class _Body:
    """A body with its fault."""

    def __init__(self, length: int, fault: Fault | None) -> None:
        self._fault = fault
        self._whole = length
        self._at = min(length - 1, int(length * fault.at)) if fault and length else -1
        self.length = self._at if fault and fault.kind == "truncate" and self._at >= 0 else length
        """Bytes that are announced."""
        self._ends = sorted({self._at, length // 2, self.length})
        self.passed = 0

    def pieces(self, source: BinaryIO) -> Iterator[bytes]:
        """The body, as it is passed on."""
        while self.passed < self.length:
            most = min(next(each for each in self._ends if each > self.passed), self.length) - self.passed
            kind = self._fault.kind if self._fault and self.passed == self._at else None
            if kind == "reset":
                raise _ResetError
            if kind == "stall" and self._fault:
                time.sleep(self._fault.seconds)
            piece = source.read(min(most, CHUNK))
            if not piece:
                raise _ResetError
            if kind == "flip":
                piece = bytes([piece[0] ^ 1 << self._whole % 8]) + piece[1:]
            self.passed += len(piece)
            yield piece
