"""This machine's own S3 server (SeaweedFS, on the loopback address), for as long as somebody needs it.

A server lives while anyone holds a **lease** on it: a shared ``flock``, which the kernel drops when its holder
ends, however it ends, ``kill -9`` included. A *guardian* process (:mod:`bafogpt.storage.embedded.server_process`) waits
for the exclusive lock; when it gets it nobody is left, and it stops the server and goes. So no server is ever left
behind, and none goes away under somebody who uses it.

The S3 port asks for keys that only the owner of ``HOME/s3`` can read. SeaweedFS' inner ports ask for none: other
users of this machine can reach them, other machines cannot.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import psutil

import bafogpt
from bafogpt.core import process
from bafogpt.core.errors import ConflictError, StorageError
from bafogpt.storage.embedded import files as embedded
from bafogpt.storage.embedded.files import Endpoint, ServerFolder, ServerState

GUARDIAN = "bafogpt.storage.embedded.server_process"
"""The module that the guardian's process runs."""
HEALTH_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 20.0


class Lease:
    """The right to a running server. Released by :meth:`release`, by leaving its ``with`` block, by the process'
    end."""

    def __init__(self, endpoint: Endpoint, handle: int) -> None:
        self.endpoint = endpoint
        self._handle: int | None = handle

    def release(self) -> None:
        """Give the lease back; the server ends soon after the last one. Twice is fine."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def lease(home: Path, *, port: int = 0) -> Lease:
    """A lease on the server of ``home``, which is started if it does not run (about a second).

    ``port`` asks for an S3 port (0: any). Raises :class:`ConflictError` when that is taken or the server runs on
    another one, and :class:`StorageError` with the end of the server's log when it does not start.
    """
    folder = ServerFolder(home)
    folder.prepare()
    handle = folder.open_lock("lease")
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)  # waits while a guardian without leases stops its server
        with folder.lock("start", fcntl.LOCK_EX):
            state = _running(folder) or _start(folder, port)
        if port not in (0, state.ports[embedded.S3_PORT]):
            raise ConflictError(f"the server of {home} runs already, at {state.url}", "bafogpt storage stop")
        return Lease(folder.endpoint(state), handle)
    except BaseException:
        os.close(handle)
        raise


def keep(home: Path, *, port: int = 0) -> Endpoint:
    """Start the server if need be, and let it run without leases until :func:`stop`."""
    folder = ServerFolder(home)
    with lease(home, port=port) as held:
        state = folder.state()
        if state is not None and not state.kept:
            os.kill(state.pid, signal.SIGUSR1)

        def is_kept() -> bool:
            now = folder.state()
            return now is not None and now.kept

        if not process.wait_until(is_kept, HEALTH_TIMEOUT_S, poll_s=0.01):
            raise StorageError(f"the server of {home} ended: {folder.log_tail()}", f"tail {folder.log}")
        return held.endpoint


def stop(home: Path) -> bool:
    """End the server of ``home``, leases or not; whether there was one."""
    state = ServerFolder(home).state()
    if state is None:
        return False
    os.kill(state.pid, signal.SIGTERM)
    if not process.wait_until(lambda: not state.is_alive(), STOP_TIMEOUT_S):
        raise StorageError(f"the server of {home} does not end (pid {state.pid})", f"kill -9 {state.pid}")
    return True


def status(home: Path) -> Endpoint | None:
    """The server of ``home`` if it runs and answers."""
    folder = ServerFolder(home)
    state = folder.state()
    if state is None or not embedded.is_healthy(state.ports[embedded.S3_PORT]):
        return None
    return folder.endpoint(state)


def _running(folder: ServerFolder) -> ServerState | None:
    """The server there is. One that does not answer any more is ended first."""
    state = folder.state()
    if state is None:
        return None
    port = state.ports[embedded.S3_PORT]
    if process.wait_until(lambda: not state.is_alive() or embedded.is_healthy(port), HEALTH_TIMEOUT_S):
        return folder.state()
    process.end([psutil.Process(state.pid)], grace_s=STOP_TIMEOUT_S)
    return None


def _start(folder: ServerFolder, port: int) -> ServerState:
    """Start a guardian and wait until its server answers."""
    embedded.binary()  # say now that it is missing
    if port and not embedded.is_free(port):
        raise ConflictError(f"port {port} is taken", "choose another --port, or leave it out")
    folder.make_keys()
    source = str(Path(bafogpt.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))}
    receive, send = os.pipe()
    with os.fdopen(receive, "rb") as report:
        try:
            launcher = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "bafogpt.storage.embedded.server_process",
                    str(folder.root.parent),
                    str(port),
                    str(send),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(send,),
                start_new_session=True,
                env=environment,
            )
        finally:
            os.close(send)
        launcher.wait()  # the guardian itself is its child, and nobody's zombie
        answer = json.loads(report.read() or b'{"error": "its guardian died"}')  # ends when the guardian is ready
    state = folder.state()
    if "error" in answer or state is None:
        reason = answer.get("error", "it ended at once")
        raise StorageError(f"the embedded S3 server did not start: {reason}", f"tail {folder.log}")
    return state
