"""How a run ends on a machine, and how a machine is asked to end it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from bafogpt.core.errors import ExitCode
from bafogpt.runs.store import RunState

EXIT_CODES: dict[RunState, ExitCode] = {
    "succeeded": ExitCode.OK,
    "stopped": ExitCode.JOB_CANCELLED,
    "failed": ExitCode.JOB_FAILED,
}


@dataclass(frozen=True)
class ExitOutcome:
    """How a run ended on this machine."""

    state: RunState
    message: str = ""
    hint: str = ""
    exit_code: ExitCode = ExitCode.OK

    def __post_init__(self) -> None:
        assert (self.state == "succeeded") == (self.exit_code == ExitCode.OK), self


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, instead of ending this process."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
