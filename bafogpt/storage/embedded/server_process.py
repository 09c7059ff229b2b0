"""Holds the embedded S3 server: ``python -m bafogpt.storage.embedded.server_process HOME PORT REPORT_FD``.

Started by :func:`bafogpt.storage.embedded.server.lease` only. It starts SeaweedFS, says so through the pipe
``REPORT_FD``, and blocks until nobody holds a lease, or SIGTERM, or SeaweedFS ends; then it stops the server and goes.
SIGUSR1 makes it stay without leases. If it is killed outright the kernel ends SeaweedFS with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import psutil

from bafogpt.core import process
from bafogpt.core.errors import BafoError, StorageError
from bafogpt.storage.embedded import files as embedded
from bafogpt.storage.embedded.files import HOST, S3_PORT, ServerFolder, ServerState

START_TIMEOUT_S = 30.0
STOP_GRACE_S = 10.0
TRIES = 3


class _LeaveError(Exception):
    """SIGTERM, or SeaweedFS has ended."""


class ServerProcess:
    """One server's life."""

    def __init__(self, folder: ServerFolder, leases: int) -> None:
        self._folder = folder
        self._leases = leases
        self._state: ServerState | None = None
        self._leaving = False

    def start(self, port: int, own_lock: int) -> subprocess.Popen[bytes]:
        """SeaweedFS, answering. Raises :class:`StorageError` when it does not."""
        for _ in range(TRIES):
            ports = self._folder.choose_ports(port)
            weed = _weed(self._folder, ports, own_lock)
            try:
                self._wait_until_ready(weed, ports[S3_PORT])
            except StorageError as error:
                _stop(weed, ports)
                if port or "Port allocation failed" not in error.message:
                    raise
                continue  # somebody took a port between our choice and the start
            pid = os.getpid()
            self._state = ServerState(pid, process.start_time(pid) or 0.0, ports)
            return weed
        raise StorageError("no free ports")

    def _wait_until_ready(self, weed: subprocess.Popen[bytes], port: int) -> None:
        process.wait_until(
            lambda: weed.poll() is not None or embedded.is_healthy(port, timeout_s=0.5), START_TIMEOUT_S, poll_s=0.02
        )
        if weed.poll() is not None:
            raise StorageError(f"weed exited with {weed.returncode}: {self._folder.log_tail()}")
        if not embedded.is_healthy(port):
            raise StorageError(f"no answer after {START_TIMEOUT_S:.0f} s: {self._folder.log_tail()}")

    def hold(self, weed: subprocess.Popen[bytes], report: int) -> None:
        """Announce the server, wait until it is not needed, stop it."""
        assert self._state is not None
        try:
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, self._leave)
            signal.signal(signal.SIGUSR1, self._stay)
            if weed.poll() is not None:  # before the handler was there
                raise _LeaveError
            self._folder.write_state(self._state)
            _tell(report, {})
            fcntl.flock(self._leases, fcntl.LOCK_EX)  # nobody holds a lease any more, and nobody gets one
            if self._state.kept:
                fcntl.flock(self._leases, fcntl.LOCK_UN)
                while True:
                    signal.pause()
        except _LeaveError:
            pass
        finally:
            self._leaving = True
            self._folder.clear_state()
            _stop(weed, self._state.ports)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if not self._leaving:
            self._leaving = True
            raise _LeaveError

    def _stay(self, number: int, frame: FrameType | None) -> None:
        assert self._state is not None
        self._state = ServerState(self._state.pid, self._state.started, self._state.ports, kept=True)
        self._folder.write_state(self._state)


def _weed(folder: ServerFolder, ports: dict[str, int], own_lock: int) -> subprocess.Popen[bytes]:
    """Start SeaweedFS. Its defaults would listen on every address and report statistics to its makers."""
    options = {
        "dir": str(folder.data),
        "ip": HOST,
        "ip.bind": HOST,
        "s3.config": str(folder.identities),
        "s3.autoCreateBucket": "false",
        "s3.iam": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "volume.preStopSeconds": "0",
        **{name: str(port) for name, port in ports.items()},
    }
    command = [embedded.binary(), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]
    with folder.log.open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder.root,
            # nothing of the caller's environment: SeaweedFS would take keys and settings from it
            env={"HOME": str(folder.root), "PATH": os.environ.get("PATH", os.defpath)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(own_lock,),  # the data are not free for a next server before this one is gone
            preexec_fn=process.die_with_parent(signal.SIGKILL),
        )


def _stop(weed: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    if weed.poll() is None:
        process.end([psutil.Process(weed.pid)], STOP_GRACE_S)
        weed.wait()
    for port in ports.values():  # SeaweedFS forgets some of its sockets
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
            path.unlink(missing_ok=True)


def _tell(report: int, message: dict[str, str]) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(report, "wb") as pipe:  # who asked may be gone
        pipe.write(json.dumps(message).encode())


def main(home: Path, port: int, report: int) -> None:
    """Hold the server of ``home`` until nobody needs it."""
    folder = ServerFolder(home)
    with folder.lock("guardian", fcntl.LOCK_EX) as own_lock:  # the server before this one is gone now
        leases = folder.open_lock("lease")
        guardian = ServerProcess(folder, leases)
        try:
            weed = guardian.start(port, own_lock)
        except BafoError as error:
            _tell(report, {"error": error.message})
            return
        guardian.hold(weed, report)


if __name__ == "__main__":
    if os.fork() == 0:  # a child of init: the process that needed the server first is not burdened with it
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
