"""How a run ends on a machine, and the signals that end it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from bafogpt.core.errors import BafoError, ExitCode
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

    def __str__(self) -> str:
        return f"{self.state}: {self.message}" if self.message else self.state

    @classmethod
    def of_error(cls, error: BafoError) -> ExitOutcome:
        """A failure with the error's message, hint and exit code."""
        return cls("failed", error.message, error.hint, error.exit_code)


class RunEndedError(Exception):
    """Raised where the run must end instead of going on."""

    def __init__(self, outcome: ExitOutcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


def resume_hint(name: str) -> str:
    """The command that continues a run, on another machine where it was rented."""
    return f"bafogpt cloud launch … --name {name} --resume"


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
