"""Run the embedded S3 server: ``python -m bafogpt.storage.embedded.server_process HOME PORT REPORT_FD``.

Started by :func:`bafogpt.storage.embedded.server.lease` only. It starts SeaweedFS, reports through the pipe
``REPORT_FD`` that it is ready, and blocks until there is no lease, or SIGTERM, or SeaweedFS ends; then it stops the
server. SIGUSR1 makes it run without leases. If it is killed the kernel kills SeaweedFS, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from bafogpt.core import process
from bafogpt.core.errors import BafoError, StorageError
from bafogpt.storage.embedded import files as embedded
from bafogpt.storage.embedded.files import HOST, S3_PORT, ServerFolder, ServerState

START_TIMEOUT_S = 30.0
STOP_GRACE_S = 10.0
START_ATTEMPTS = 3


class _StopError(Exception):
    """SIGTERM, or SeaweedFS has ended."""


class ServerProcess:
    """Starts, holds and stops one server. ``leases`` is the lock file of the leases."""

    def __init__(self, folder: ServerFolder, leases: int) -> None:
        self._folder = folder
        self._leases = leases
        self._stopping = False

    def start(self, port: int, own_lock: int) -> tuple[subprocess.Popen[bytes], ServerState]:
        """Start SeaweedFS and wait until it responds. Raises :class:`StorageError` when it does not."""
        for _ in range(START_ATTEMPTS):
            ports = self._folder.choose_ports(port)
            weed = _weed(self._folder, ports, own_lock)
            try:
                self._wait_until_ready(weed, ports[S3_PORT])
            except StorageError as error:
                _stop(weed, ports)
                if port or "Port allocation failed" not in error.message:
                    raise
                continue  # another program took a port meanwhile
            return weed, ServerState(os.getpid(), process.start_time(os.getpid()) or 0.0, ports)
        raise StorageError("no free ports")

    def _wait_until_ready(self, weed: subprocess.Popen[bytes], port: int) -> None:
        process.wait_until(
            lambda: weed.poll() is not None or embedded.is_healthy(port, timeout_s=0.5), START_TIMEOUT_S, poll_s=0.02
        )
        if weed.poll() is not None:
            raise StorageError(f"weed exited with {weed.returncode}: {self._folder.log_tail()}")
        if not embedded.is_healthy(port):
            raise StorageError(f"no answer after {START_TIMEOUT_S:.0f} s: {self._folder.log_tail()}")

    def hold(self, weed: subprocess.Popen[bytes], state: ServerState, report: int) -> None:
        """Announce the server, wait until it is not needed, stop it."""
        detached = False

        def detach(*_: object) -> None:
            nonlocal detached
            detached = True
            self._folder.write_state(dataclasses.replace(state, detached=True))

        try:
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, self._stop_once)
            signal.signal(signal.SIGUSR1, detach)
            if weed.poll() is not None:  # before the handler was installed
                raise _StopError
            self._folder.write_state(state)
            _report(report, {})
            fcntl.flock(self._leases, fcntl.LOCK_EX)  # there is no lease, and there can be no new one
            if detached:
                fcntl.flock(self._leases, fcntl.LOCK_UN)
                while True:
                    signal.pause()
        except _StopError:
            pass
        finally:
            self._stopping = True
            self._folder.clear_state()
            _stop(weed, state.ports)

    def _stop_once(self, *_: object) -> None:
        if not self._stopping:
            self._stopping = True
            raise _StopError


def _weed(folder: ServerFolder, ports: dict[str, int], own_lock: int) -> subprocess.Popen[bytes]:
    """Start SeaweedFS. By default it would listen on every address and send usage statistics."""
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
            # not the caller's environment: SeaweedFS would read keys and settings from it
            env={"HOME": str(folder.root), "PATH": os.environ.get("PATH", os.defpath)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(own_lock,),  # the next server must not use the data before this one has ended
            preexec_fn=process.die_with_parent(signal.SIGKILL),
        )


def _stop(weed: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    if weed.poll() is None:
        process.end([psutil.Process(weed.pid)], STOP_GRACE_S)
        weed.wait()
    for port in ports.values():  # SeaweedFS leaves some of its sockets
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
            path.unlink(missing_ok=True)


def _report(report: int, message: dict[str, str]) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(report, "wb") as pipe:  # the reader may have ended
        pipe.write(json.dumps(message).encode())


def main(home: Path, port: int, report: int) -> None:
    """Run the server of ``home`` until it is not needed."""
    folder = ServerFolder(home)
    with folder.lock("server") as own_lock:  # waits for the previous server to end
        server = ServerProcess(folder, folder.open_lock("lease"))
        try:
            weed, state = server.start(port, own_lock)
        except BafoError as error:
            _report(report, {"error": error.message})
            return
        server.hold(weed, state, report)


if __name__ == "__main__":
    if os.fork() == 0:  # a child of init, not of the process that needed the server first
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
