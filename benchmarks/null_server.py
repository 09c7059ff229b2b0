"""An S3 server that does next to nothing, so that what a benchmark measures is the client.

    python benchmarks/null_server.py FOLDER [PORT]        prints its URL

GET and HEAD answer from ``FOLDER/BUCKET/KEY``, ranges included, by ``sendfile``. A PUT, whole or in parts, is thrown
away by the kernel; only its size is remembered. A small one (a manifest) is kept in memory, so that a client that
writes its marker last can read it. Requests are not authenticated. For benchmarks on the loopback address only.
"""

from __future__ import annotations

import itertools
import re
import socket
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEPT_BYTES = 1 << 20
_DATE = "Mon, 01 Jan 2024 00:00:00 GMT"
_ISO = "2024-01-01T00:00:00.000Z"
_numbers = itertools.count(1)


class NullServer:
    """Listens from its construction on; :meth:`serve` runs it."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}
        """Bytes of each object that was put."""
        self._kept: dict[str, bytes] = {}
        self._parts: dict[str, dict[int, int]] = {}
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Answer until the process ends, one thread per connection."""
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def _connection(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = _Reader(connection)
        with connection:
            try:
                while request := reader.head():
                    self._answer(connection, reader, *request)
                    if request[2].get("connection") == "close":
                        return
            except OSError:  # the client went away
                return

    def _answer(self, to: socket.socket, reader: _Reader, method: str, target: str, headers: dict[str, str]) -> None:
        parts = urlsplit(target)
        key = unquote(parts.path).strip("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        length = int(headers.get("content-length", 0))
        if headers.get("expect"):
            to.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if method == "PUT":
            self._put(to, reader, key, query, headers, length)
            return
        body = reader.take(length)
        if method == "POST":
            self._post(to, key, query, body)
        elif method == "DELETE":
            self._sizes.pop(key, None)
            _reply(to, 204)
        elif "list-type" in query or "location" in query or "/" not in key:
            _reply(to, 200, self._listing(key, query.get("prefix", "")))
        else:
            self._get(to, key, headers.get("range", ""), body_wanted=method == "GET")

    def _get(self, to: socket.socket, key: str, span: str, *, body_wanted: bool) -> None:
        path = self._folder / key
        kept = self._kept.get(key)
        if kept is None and not path.is_file() and (body_wanted or key not in self._sizes):
            _reply(to, 404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        size = self._sizes[key] if key in self._sizes else path.stat().st_size
        start, end, status = 0, size, 200
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", span):
            first, last = found.groups()
            start = int(first) if first else size - int(last)
            end = min(size, int(last) + 1) if first and last else size
            status = 206
        extra = f"Content-Range: bytes {start}-{end - 1}/{size}\r\n" if status == 206 else ""
        _reply(to, status, b"", length=end - start, extra=f'Accept-Ranges: bytes\r\nETag: "{size:x}"\r\n{extra}')
        if body_wanted and kept is not None:
            to.sendall(kept[start:end])
        elif body_wanted:
            with path.open("rb") as file:
                to.sendfile(file, start, end - start)

    def _put(
        self, to: socket.socket, reader: _Reader, key: str, query: dict[str, str], headers: dict[str, str], length: int
    ) -> None:
        size = int(headers.get("x-amz-decoded-content-length", length))
        small = size <= KEPT_BYTES and "uploadId" not in query
        if small and "aws-chunked" not in headers.get("content-encoding", ""):
            self._kept[key] = reader.take(length)
        else:
            reader.discard(length)
        if "uploadId" in query:
            self._parts[query["uploadId"]][int(query["partNumber"])] = size
        elif "/" in key:
            self._sizes[key] = size
        _reply(to, 200, extra=f'ETag: "{next(_numbers):032x}"\r\n')

    def _post(self, to: socket.socket, key: str, query: dict[str, str], body: bytes) -> None:
        bucket, _, name = key.partition("/")
        named = f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(name)}</Key>"
        if "uploads" in query:
            upload = f"{next(_numbers):032x}"
            self._parts[upload] = {}
            answer = (
                f"<InitiateMultipartUploadResult>{named}<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
        elif "delete" in query:
            names = [found.decode() for found in re.findall(rb"<Key>(.*?)</Key>", body)]
            for each in names:
                self._sizes.pop(f"{bucket}/{each}", None)
            deleted = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in names)
            answer = f"<DeleteResult>{deleted}</DeleteResult>"
        else:
            self._sizes[key] = sum(self._parts.pop(query["uploadId"]).values())
            answer = (
                f'<CompleteMultipartUploadResult>{named}<ETag>"{next(_numbers):032x}-1"</ETag>'
                "</CompleteMultipartUploadResult>"
            )
        _reply(to, 200, answer.encode())

    def _listing(self, bucket: str, prefix: str) -> bytes:
        """ListObjectsV2 in one page, without folders."""
        root = self._folder / bucket
        sizes = {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}
        sizes |= {key.partition("/")[2]: size for key, size in self._sizes.items() if key.startswith(f"{bucket}/")}
        items = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><LastModified>{_ISO}</LastModified>"
            f'<ETag>"{size:x}"</ETag><StorageClass>STANDARD</StorageClass></Contents>'
            for name, size in sorted(sizes.items())
            if name.startswith(prefix)
        )
        return (
            f"<ListBucketResult><Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{items.count('<Key>')}</KeyCount><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
        ).encode()


class _Reader:
    """One connection's requests: heads are parsed, bodies taken or thrown away."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = b""

    def head(self) -> tuple[str, str, dict[str, str]] | None:
        """Method, target and headers (names in lower case) of the next request; None at the end."""
        while b"\r\n\r\n" not in self._pending:
            more = self._connection.recv(1 << 16)
            if not more:
                return None
            self._pending += more
        raw, _, self._pending = self._pending.partition(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        return method, target, {name.lower(): value.strip() for name, _, value in pairs}

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        while len(self._pending) < length:
            more = self._connection.recv(1 << 16)
            if not more:
                raise OSError("the client went away")
            self._pending += more
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken

    def discard(self, length: int) -> None:
        """The next ``length`` bytes thrown away; the kernel does not copy them."""
        taken = min(length, len(self._pending))
        self._pending = self._pending[taken:]
        length -= taken
        while length:
            # MSG_TRUNC on a TCP socket: drop what has come
            dropped = self._connection.recv_into(_NOWHERE, min(length, len(_NOWHERE)), socket.MSG_TRUNC)
            if not dropped:
                raise OSError("the client went away")
            length -= dropped


_NOWHERE = bytearray(1 << 20)


def _reply(to: socket.socket, status: int, body: bytes = b"", *, length: int | None = None, extra: str = "") -> None:
    head = (
        f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body) if length is None else length}\r\n"
        f"Content-Type: application/{'xml' if body else 'octet-stream'}\r\nLast-Modified: {_DATE}\r\n{extra}\r\n"
    )
    to.sendall(head.encode() + body)


if __name__ == "__main__":
    server = NullServer(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(server.url, flush=True)
    server.serve()
