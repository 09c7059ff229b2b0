"""An HTTP/1.1 proxy in front of one S3 server, on the loopback address, that does harm on request.

``decide(request)`` says what happens to each request, and ``watch(request, stage)`` is told when it begins
("before"), when half of its body has gone on to the server ("half") and when the server has done it but the client
does not know ("after"); it may end the client there, and says so by returning True. Both are called on the
connection's own thread, several at once.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["status", "hang-up", "lost-answer", "reset", "stall", "truncate", "flip"]
Direction = Literal["up", "down"]
CHUNK = 1 << 16


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong with one request.

    ``status``       the answer is ``status``, and the server hears nothing
    ``hang-up``      the connection ends before the server hears anything
    ``lost-answer``  the server does it, the connection ends instead of the answer
    ``reset``        the connection is reset after ``at`` of the body
    ``stall``        nothing moves for ``seconds`` after ``at`` of the body
    ``truncate``     the body ends after ``at``, with a length that says that this is all
    ``flip``         the bit at ``at`` of the body is flipped
    """

    kind: Kind
    direction: Direction = "down"
    """Whose body: the request's or the answer's."""
    at: float = 0.5
    """Place in the body, 0 to 1."""
    status: int = 503
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """What a client asks; ``path`` is the object's key, bucket included."""

    method: str
    path: str
    query: dict[str, str]
    length: int
    range: str = ""

    @property
    def label(self) -> str:
        """What is asked of what kind of object: ``PUT manifest``, ``GET shard``."""
        return f"{self.method} {self._object()}"

    def _object(self) -> str:
        if "list-type" in self.query:
            return "list"
        if "partNumber" in self.query:
            return "part"
        if "uploads" in self.query or "uploadId" in self.query:
            return "upload"
        for pattern, name in _OBJECTS:
            if re.search(pattern, self.path):
                return name
        return "bucket"


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


class Rate:
    """A line of ``bytes_per_s``, shared by all who use it."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes are through."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._bytes_per_s
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


class Proxy:
    """A running proxy, in threads of this process; a context manager. ``url`` is what clients are given."""

    def __init__(
        self,
        server: str,
        *,
        decide: Decide = lambda _: None,
        watch: Watch = lambda _, __: False,
        uplink: float | None = None,
    ) -> None:
        self._server = urlsplit(server)
        self.decide = decide
        self.watch = watch
        self._uplink = Rate(uplink) if uplink else None
        self._lock = threading.Lock()
        self.up = self.down = 0
        """Bytes of bodies that went to the server, and that came from it to a client."""
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._committed: set[str] = set()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._port = 0
        self.resume()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def committed(self) -> frozenset[str]:
        """Keys of the checkpoint markers that the server has taken so far."""
        with self._lock:  # connections that are still at work add to them
            return frozenset(self._committed)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    def resume(self) -> None:
        """Take connections, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen(64)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """End all connections and refuse new ones until :meth:`resume`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes its accept
            listener.close()
        with self._lock:
            left = list(self._open)
        for each in left:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes the thread that serves it

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One client's requests, one after another."""
        upstream: socket.socket | None = None
        try:
            upstream = socket.create_connection((self._server.hostname or "", self._server.port or 80))
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            from_client, from_server = _Reader(client), _Reader(upstream)
            while self._one(client, from_client, upstream, from_server):
                pass
        except (OSError, _EndedError):
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            for each in (client, upstream):
                if each is not None:
                    with contextlib.suppress(OSError):
                        each.close()

    def _one(self, client: socket.socket, asks: _Reader, server: socket.socket, answers: _Reader) -> bool:
        """Pass one request and its answer on. False when the connection is at its end."""
        first, headers = asks.head()
        request = _request(first, headers)
        fault = self.decide(request)
        with self._lock:
            self.requests[request.label] += 1
            if fault:
                self.faults[f"{fault.kind} {fault.direction}"] += 1
        if self.watch(request, "before") or (fault and fault.kind == "hang-up"):
            return _reset(client)
        if headers.pop("expect", None):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault and fault.kind == "status":
            asks.skip(request.length)
            client.sendall(_refusal(fault.status))
            return True
        up = _Body(request.length, fault if fault and fault.direction == "up" else None)
        server.sendall(_head(first, headers, up))
        half = request.length // 2
        for piece in up.pieces(asks):
            if self._uplink:
                self._uplink.take(len(piece))
            server.sendall(piece)
            with self._lock:
                self.up += len(piece)
            if up.passed >= half and half >= 0:
                half = -1
                if self.watch(request, "half"):
                    return _reset(client)
        if up.cut:
            return _reset(client)

        first, headers = answers.head()
        status = int(first.split()[1])
        if request.label == "PUT marker" and status == 200:
            with self._lock:
                self._committed.add(request.path)
        if self.watch(request, "after") or (fault and fault.kind == "lost-answer"):
            return _reset(client)
        bodiless = request.method == "HEAD" or status in (204, 304)
        chunked = "chunked" in headers.get("transfer-encoding", "")
        if chunked and not bodiless:
            body = answers.chunked()
            headers.pop("transfer-encoding")
            headers["content-length"] = str(len(body))
            answers.push_back(body)
        length = 0 if bodiless else int(headers.get("content-length", "0"))
        down = _Body(length, fault if fault and fault.direction == "down" else None)
        client.sendall(_head(first, headers, down, keep_length=bodiless))
        for piece in down.pieces(answers):
            client.sendall(piece)
            with self._lock:
                self.down += len(piece)
        if down.cut:
            return _reset(client)
        return down.length == length and up.length == request.length  # the rest of a truncated body lies in the way


class _EndedError(Exception):
    """A peer closed its connection."""


class _Reader:
    """Heads and bodies off a socket."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._buffer = b""

    def head(self) -> tuple[str, dict[str, str]]:
        """The first line, and the headers by small names."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        raw, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return first, {name.strip().lower(): value.strip() for name, value in pairs}

    def some(self, most: int) -> bytes:
        """Between one byte and ``most``."""
        if not self._buffer:
            self._more()
        piece, self._buffer = self._buffer[:most], self._buffer[most:]
        return piece

    def skip(self, count: int) -> None:
        while count:
            count -= len(self.some(min(count, CHUNK)))

    def chunked(self) -> bytes:
        """A whole body of chunks."""
        body = b""
        while True:
            size = int(self._line().split(b";")[0], 16)
            if size == 0:
                while self._line():
                    pass
                return body
            while size:
                piece = self.some(size)
                body += piece
                size -= len(piece)
            self._line()

    def push_back(self, data: bytes) -> None:
        self._buffer = data + self._buffer

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, self._buffer = self._buffer.split(b"\r\n", 1)
        return line

    def _more(self) -> None:
        data = self._source.recv(CHUNK)
        if not data:
            raise _EndedError
        self._buffer += data


class _Body:
    """A body on its way, and what happens to it."""

    def __init__(self, length: int, fault: Fault | None) -> None:
        self._fault = fault
        self._whole = length
        self._at = min(length - 1, int(length * fault.at)) if fault and length else -1
        self.length = self._at if fault and fault.kind == "truncate" and self._at >= 0 else length
        """Bytes that are announced."""
        self._ends = sorted({self._at, length // 2, self.length})
        self.passed = 0
        self.cut = False
        """Whether the connection must be reset now."""

    def pieces(self, source: _Reader) -> Iterator[bytes]:
        """The body, as it is passed on."""
        while self.passed < self.length:
            here = self._fault is not None and self.passed == self._at
            most = min(next(each for each in self._ends if each > self.passed), self.length) - self.passed
            if here and self._fault is not None:
                if self._fault.kind == "reset":
                    self.cut = True
                    return
                if self._fault.kind == "stall":
                    time.sleep(self._fault.seconds)
            piece = source.some(min(most, CHUNK))
            if here and self._fault is not None and self._fault.kind == "flip":
                piece = bytes([piece[0] ^ 1 << self._whole % 8]) + piece[1:]
            self.passed += len(piece)
            yield piece


def _request(first: str, headers: dict[str, str]) -> Request:
    method, target, _ = first.split(" ", 2)
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    length = int(headers.get("content-length", "0"))
    return Request(method, unquote(parts.path).lstrip("/"), query, length, headers.get("range", ""))


def _head(first: str, headers: dict[str, str], body: _Body, keep_length: bool = False) -> bytes:
    if "content-length" in headers and not keep_length:
        headers = headers | {"content-length": str(body.length)}
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _refusal(status: int) -> bytes:
    body = b"<Error><Code>SlowDown</Code><Message>on purpose</Message></Error>"
    return b"HTTP/1.1 %d On Purpose\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


def _reset(connection: socket.socket) -> bool:
    """End a connection with RST. Always False."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    return False
