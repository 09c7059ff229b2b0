"""This machine's own S3 server (SeaweedFS, on the loopback address), which runs while any process uses it.

A server runs while any process holds a **lease** on it: a shared ``flock``, which the kernel releases when its holder
ends, even by ``kill -9``. A separate process (:mod:`bafogpt.storage.embedded.server_process`) waits for the exclusive
lock; when it gets it no lease is left, and it stops the server. So no server runs without users, and none stops while
it is in use.

The S3 port requires keys that only the owner of ``HOME/s3`` can read. SeaweedFS's internal ports require none: other
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

import psutil

import bafogpt
from bafogpt.core import process
from bafogpt.core.errors import ConflictError, StorageError
from bafogpt.storage.embedded import files as embedded
from bafogpt.storage.embedded.files import Endpoint, ServerFolder, ServerState

SERVER_PROCESS = "bafogpt.storage.embedded.server_process"
HEALTH_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 20.0


class Lease:
    """The right to a running server, until :meth:`release`, the end of its ``with`` block, or the process's end."""

    def __init__(self, endpoint: Endpoint, handle: int) -> None:
        self.endpoint = endpoint
        self._handle: int | None = handle

    def release(self) -> None:
        """Release the lease; the server stops soon after the last one. A second call does nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lease(home: Path, *, port: int = 0) -> Lease:
    """A lease on the server of ``home``, which is started if it does not run (about a second).

    ``port`` sets the S3 port (0: any). Raises :class:`ConflictError` when it is taken or the server runs on another,
    and :class:`StorageError` with the end of the server's log when it does not start.
    """
    folder = ServerFolder(home)
    folder.prepare()
    handle = folder.open_lock("lease")
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)  # waits for a server that is stopping
        with folder.lock("start"):
            state = _running(folder) or _start(folder, port)
        if port not in (0, state.s3_port):
            raise ConflictError(f"the server of {home} runs already, at {state.url}", "bafogpt storage stop")
        return Lease(folder.endpoint(state), handle)
    except BaseException:
        os.close(handle)
        raise


def detach(home: Path, *, port: int = 0) -> Endpoint:
    """Start the server if it does not run, and let it run without leases until :func:`stop`."""
    folder = ServerFolder(home)

    def is_detached() -> bool:
        state = folder.state()
        return state is not None and state.detached

    with lease(home, port=port) as held:
        state = folder.state()
        if state is not None and not state.detached:
            os.kill(state.pid, signal.SIGUSR1)
        if not process.wait_until(is_detached, HEALTH_TIMEOUT_S, poll_s=0.01):
            raise StorageError(f"the server of {home} ended: {folder.log_tail()}", f"tail {folder.log}")
        return held.endpoint


def stop(home: Path) -> bool:
    """Stop the server of ``home``, with or without leases. Returns whether it ran."""
    state = ServerFolder(home).state()
    if state is None:
        return False
    os.kill(state.pid, signal.SIGTERM)
    if not process.wait_until(lambda: not state.is_alive(), STOP_TIMEOUT_S):
        raise StorageError(f"the server of {home} does not end (pid {state.pid})", f"kill -9 {state.pid}")
    return True


def status(home: Path) -> Endpoint | None:
    """The server of ``home`` if it runs and responds."""
    folder = ServerFolder(home)
    state = folder.state()
    return folder.endpoint(state) if state is not None and embedded.is_healthy(state.s3_port) else None


def _running(folder: ServerFolder) -> ServerState | None:
    """The running server. One that does not respond is killed first."""
    state = folder.state()
    if state is None:
        return None
    if process.wait_until(lambda: not state.is_alive() or embedded.is_healthy(state.s3_port), HEALTH_TIMEOUT_S):
        return folder.state()
    process.end([psutil.Process(state.pid)], grace_s=STOP_TIMEOUT_S)
    return None


def _start(folder: ServerFolder, port: int) -> ServerState:
    """Start the server's process and wait until the server responds."""
    embedded.binary()  # raises when it is not installed
    if port and not embedded.is_free(port):
        raise ConflictError(f"port {port} is taken", "choose another --port, or leave it out")
    folder.create_keys()
    source = str(Path(bafogpt.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))}
    receive, send = os.pipe()
    with os.fdopen(receive, "rb") as report:
        try:
            launcher = subprocess.Popen(
                [sys.executable, "-m", SERVER_PROCESS, str(folder.root.parent), str(port), str(send)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(send,),
                start_new_session=True,
                env=environment,
            )
        finally:
            os.close(send)
        launcher.wait()  # the server's process is its child, and is adopted by init
        answer = json.loads(report.read() or b'{"error": "its process was killed"}')  # ends when the server is ready
    state = folder.state()
    if "error" in answer or state is None:
        reason = answer.get("error", "it ended at once")
        raise StorageError(f"the embedded S3 server did not start: {reason}", f"tail {folder.log}")
    return state
