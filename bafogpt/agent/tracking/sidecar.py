"""A tracker process beside the run: started, restarted after a crash, ended within a set time.

Only :meth:`Sidecar.close` waits for the tracker.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO

import psutil

from bafogpt.agent.tracking.process import EXIT_UNSENT
from bafogpt.core import process
from bafogpt.jobs.tracking import TrackedRun, redact
from bafogpt.runs.store import RunState

COMMAND = (sys.executable, "-m", "bafogpt.agent.tracking.process")
MARK = "BAFOGPT_TRACKER"
"""Set in a tracker's environment, and so in that of each process that its service's package starts."""
PAUSES_S = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Between a tracker's crash and its restart; the last one for every further crash."""


class Sidecar:
    """One tracker and its successors. ``log`` gets its output line by line, ``event`` its crashes."""

    def __init__(self, run: TrackedRun, folder: Path, log: Callable[[str], None], event: Callable[..., None]) -> None:
        self.service = run.service
        self._run = run
        self._folder = folder
        self._log = log
        self._event = event
        self._mark = f"{run.service}/{run.id}"
        self._state: RunState | None = None
        self._finishing = threading.Event()
        self._killed = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._keep, name=f"tracking {run.service}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, state: RunState) -> None:
        """The run has ended: the tracker sends what is left, and ends."""
        with self._lock:
            self._state = state
            if self._process is not None:
                _write(self._process, state)
        self._finishing.set()

    def close(self, timeout_s: float) -> bool:
        """After :meth:`finish`: wait ``timeout_s`` seconds at most, then kill it. Whether it ended by itself."""
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()
        self._thread.join(timeout=2)
        return False

    def _keep(self) -> None:
        """Run trackers until one has sent everything, or cannot."""
        crashes = 0
        while True:
            last = self._finishing.is_set()
            try:
                code = self._run_once()
            except OSError as error:  # this machine has no room for another process
                self._log(f"[{self.service}] {error}")
                code = 1
            if code in (0, EXIT_UNSENT) or last or self._killed:
                return
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._event("tracker_died", service=self.service, exit_code=code)
            self._log(f"[{self.service}] the tracker {how}; the run continues")
            self._finishing.wait(PAUSES_S[min(crashes, len(PAUSES_S) - 1)])
            crashes += 1

    def _run_once(self) -> int:
        """One tracker, from its start to its end; its exit code."""
        self._end_leftovers()  # of a killed supervisor
        with self._lock:
            if self._killed:
                return EXIT_UNSENT
            tracker = self._process = subprocess.Popen(
                [*COMMAND, str(self._folder)],
                env={**os.environ, MARK: self._mark, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                preexec_fn=process.die_with_parent(),
            )
            _write(tracker, json.dumps(asdict(self._run)))
            if self._state is not None:
                _write(tracker, self._state)
        reader = threading.Thread(target=self._read, args=(tracker.stdout,), daemon=True)
        reader.start()
        code = tracker.wait()
        self._end_leftovers()
        reader.join(timeout=2)
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._process = None
            assert tracker.stdin
            tracker.stdin.close()
        return code

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._log(f"[{self.service}] {redact(line.rstrip())}")

    def _end_leftovers(self) -> None:
        """Kill what a dead tracker left behind: two that send the same run's steps would send some twice."""
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if each.uids().real == os.getuid() and each.environ().get(MARK) == self._mark:
                    each.kill()


def _write(tracker: subprocess.Popen[str], line: str) -> None:
    """A line to a tracker, which may be dead by now."""
    assert tracker.stdin
    with contextlib.suppress(BrokenPipeError):
        tracker.stdin.write(line + "\n")
        tracker.stdin.flush()
