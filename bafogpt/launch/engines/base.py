"""What every engine can do, and what it knows about a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from bafogpt.launch.plan import Plan

EngineState = Literal["starting", "running", "succeeded", "failed", "stopped", "gone"]
"""``gone``: the engine's process or machine ended without a word."""

ACTIVE: tuple[EngineState, ...] = ("starting", "running")


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """One run as its engine sees it; what it has done is in the bucket."""

    name: str
    infra: str
    state: EngineState
    started: str
    """UTC, ISO 8601."""
    exit_code: int | None = None
    pid: int | None = None
    place: str | None = None
    """Cloud and region of a rented machine that is up."""
    price_per_hour: float | None = None
    """Dollars an hour for all its nodes, while they are up and where the cloud has a price."""
    autodown_minutes: int | None = None
    """Idle minutes after which a rented cluster ends itself; None when it is not up, or nothing would end it."""
    managed: bool = False
    """Whether a controller recovers it on another machine."""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """One entry of a run's queue: the run's own job, or a command of ``cloud exec``."""

    id: int
    name: str
    state: str
    """In the engine's own words."""
    submitted: str
    """UTC, ISO 8601."""


class Engine(Protocol):
    """Runs plans. Every call names a run; a run that the engine does not know is a ``RunNotFoundError``."""

    def launch(self, plan: Plan, *, resume: bool) -> EngineRun:
        """Start the plan's task and return once it runs. Raises ``ConflictError`` when the name is at work,
        or was used before and ``resume`` is not set."""

    def runs(self) -> list[EngineRun]:
        """Every run that the engine still holds something of."""

    def status(self, name: str) -> EngineRun:
        """How a run is."""

    def queue(self, name: str) -> list[QueuedJob]:
        """What was started for the run, newest first."""

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The run's output, line by line; with ``follow`` until the run ends."""

    def execute(self, name: str, command: Sequence[str]) -> Iterator[str]:
        """Queue another command where the run is; its output. Raises ``JobFailedError`` when it fails."""

    def shell(self, name: str, command: Sequence[str] = (), node: int = 0) -> list[str]:
        """The words to execute here for a terminal, or for ``command``, on node ``node`` of the run."""

    def copy(self, name: str, source: str, target: str, *, upload: bool) -> list[str]:
        """The words to execute here to copy ``source`` to the run's ``target`` (``upload``), or back."""

    def forward(self, name: str, here: int, there: int) -> list[str]:
        """The words to execute here so that port ``here`` of this machine is port ``there`` of the run's."""

    def cancel(self, name: str) -> EngineRun:
        """Ask the run to save, drain and end; returns when it has."""

    def down(self, name: str) -> None:
        """End the run if it is active and give back everything the engine holds for it. The bucket keeps its part."""
