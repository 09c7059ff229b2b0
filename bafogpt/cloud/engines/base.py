"""What every engine can do, and what it knows about a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from bafogpt.cloud.plan import Plan

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

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


class Engine(Protocol):
    """Runs plans. Every call names a run; a run that the engine does not know is a ``RunNotFoundError``."""

    def launch(self, plan: Plan, *, resume: bool) -> EngineRun:
        """Start the plan's task and return once it runs. Raises ``ConflictError`` when the name is at work,
        or was used before and ``resume`` is not set."""

    def runs(self) -> list[EngineRun]:
        """Every run that the engine still holds something of."""

    def status(self, name: str) -> EngineRun:
        """How a run is."""

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The run's output, line by line; with ``follow`` until the run ends."""

    def shell(self, name: str) -> list[str]:
        """The command that opens a terminal where the run is."""

    def cancel(self, name: str) -> EngineRun:
        """Ask the run to save, drain and end; returns when it has."""

    def down(self, name: str) -> None:
        """End the run if it is active and give back everything the engine holds for it. The bucket keeps its part."""
