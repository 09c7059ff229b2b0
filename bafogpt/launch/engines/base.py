"""The interface of every engine, and the state of a run as an engine sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from bafogpt.launch.plan import Plan

EngineState = Literal["starting", "running", "succeeded", "failed", "stopped", "gone"]
"""``gone``: the process or the machine ended without reporting an outcome."""

ACTIVE: tuple[EngineState, ...] = ("starting", "running")
CANCEL_MARGIN_S = 30.0
"""Time a cancelled run may take beyond its own ``grace_s``, for the last upload."""


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """A run's state at its engine; its progress is in the bucket."""

    name: str
    infra: str
    state: EngineState
    started: str
    """UTC, ISO 8601."""
    exit_code: int | None = None
    pid: int | None = None
    location: str | None = None
    """Cloud and region of a rented machine that is up."""
    price_per_hour: float | None = None
    """Dollars an hour for all nodes while they are up; None for an unknown price."""
    autodown_minutes: int | None = None
    """Idle minutes after which a rented cluster terminates itself; None when it is not up or has no autodown."""
    managed: bool = False
    """Whether a controller recovers it on another machine."""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """An entry of a run's queue: the run's own job, or a command of ``cloud exec``."""

    id: int
    name: str
    state: str
    """The engine's own name of the state."""
    submitted: str
    """UTC, ISO 8601."""


class Engine(Protocol):
    """Runs plans. Every call raises ``RunNotFoundError`` for a run that the engine does not have."""

    def launch(self, plan: Plan, *, resume: bool) -> EngineRun:
        """Start the plan's task and return once it runs. Raises ``ConflictError`` when the name is active, or was used
        before and ``resume`` is not set."""

    def runs(self) -> list[EngineRun]:
        """Every run that the engine has."""

    def status(self, name: str) -> EngineRun:
        """The run's state."""

    def queue(self, name: str) -> list[QueuedJob]:
        """The run's jobs, newest first."""

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The run's output, line by line; with ``follow`` until the run ends."""

    def execute(self, name: str, command: Sequence[str]) -> Iterator[str]:
        """Run another command where the run is and yield its output. Raises ``JobFailedError`` when it fails."""

    def shell(self, name: str, command: Sequence[str] = (), node: int = 0) -> list[str]:
        """The local command that opens a terminal, or runs ``command``, on a node of the run."""

    def copy(self, name: str, source: str, target: str, *, upload: bool) -> list[str]:
        """The local command that copies ``source`` to the run's ``target`` (``upload``), or back."""

    def forward(self, name: str, here: int, there: int) -> list[str]:
        """The local command that forwards port ``here`` of this machine to port ``there`` of the run's."""

    def cancel(self, name: str) -> EngineRun:
        """Ask the run to save and end; returns when it has."""

    def down(self, name: str) -> None:
        """End the run if it is active and release everything that the engine has for it, except in the bucket."""
