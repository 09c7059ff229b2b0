"""Ends processes together with their descendants or session, and children together with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    """A ``preexec_fn`` that sends the child ``signal_number`` when the starting thread ends. Linux only."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)  # loaded before the fork

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:  # the parent ended before prctl
            os.kill(os.getpid(), signal_number)

    return in_child


def adopt_orphans() -> None:
    """Adopt descendants whose parent ends, so that this process can end them too."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> list[psutil.Process]:
    """Every living process below ``pid``."""
    try:
        return [process for process in psutil.Process(pid).children(recursive=True) if _alive(process)]
    except psutil.NoSuchProcess:
        return []


def in_session(session: int) -> list[psutil.Process]:
    """Every living process whose session id is ``session`` (the pid that called setsid)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and _alive(process):
                found.append(process)
    return found


def end(processes: list[psutil.Process], grace_s: float) -> None:
    """Send SIGTERM to all, and after ``grace_s`` seconds SIGKILL to those still running."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=grace_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def start_time(pid: int) -> float | None:
    """Start time of the process (seconds since the epoch), or None; with the pid it identifies a process."""
    try:
        process = psutil.Process(pid)
        return process.create_time() if _alive(process) else None
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int, started: float) -> bool:
    """Whether the process that started at ``started`` with that pid is running (pids are reused)."""
    now = start_time(pid)
    return now is not None and abs(now - started) < 1.0


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.05) -> bool:
    """Poll ``condition`` until it holds (True) or ``timeout_s`` seconds have passed (False)."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
    return True


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
