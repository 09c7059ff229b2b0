"""A relay in front of a server: it counts the bytes of each direction, and can hold them so that a client can be
killed at that point."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

CHUNK_BYTES = 64 << 10


class Relay:
    """Listens on a port of its own and passes everything on to ``target`` (a URL)."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.up = self.down = 0
        """Bytes to the server, and from it, headers included."""
        self.held = threading.Event()
        self._hold_at: int | None = None
        self._released = threading.Event()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[Relay]:
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self.release()
            self._listener.close()

    def hold_after(self, count: int) -> None:
        """Stop all traffic once ``count`` more bytes have passed, until :meth:`release`."""
        self.held.clear()
        self._released.clear()
        self._hold_at = self.up + self.down + count

    def release(self) -> None:
        self._hold_at = None
        self._released.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=self._pass, args=(client, server, "up"), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, "down"), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                with self._lock:
                    setattr(self, direction, getattr(self, direction) + len(data))
                    stop = self._hold_at is not None and self.up + self.down >= self._hold_at
                if stop:
                    self.held.set()
                    self._released.wait(60)
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
