"""What is planned for a run, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from . import ledger
from .bench import DATA

Victim = Literal["trainer", "supervisor", "machine"]


@dataclass(frozen=True)
class StartOptions:
    """How the trainers are started the next time: any of it may change from start to start."""

    processes: int = 1
    prefetch: int = 1
    """Samples read ahead; 1 reads each when it is needed."""
    cache: bool = False


@dataclass(frozen=True)
class Kill:
    """One kill, as planned. ``machine`` is the supervisor, its trainers and their disk."""

    victim: Victim
    how: Literal["moment", "file", "request"]
    label: str = ""
    """Which file operation, or which request."""
    nth: int = 1
    stage: str = "before"
    """Of a request: ``before``, ``half`` or ``after``."""
    delay_s: float = 0.0
    """Of a moment: how long to wait for it."""
    at_work: bool = False
    """Of a moment: the wait begins when steps are seen to be done, not when the process starts."""
    options: StartOptions = StartOptions()

    @property
    def point(self) -> str:
        """Its row in the table."""
        if self.how == "moment":
            return "a random moment"
        return f"{self.stage} {self.label}" if self.how == "request" else f"before {self.label}"


@dataclass(frozen=True)
class DoneKill:
    """A kill that happened."""

    kill: Kill
    in_save: bool
    """Whether a checkpoint was begun and not yet committed."""


@dataclass
class RunResult:
    """What came of a run."""

    done_kills: list[DoneKill] = field(default_factory=list)
    missed: list[Kill] = field(default_factory=list)
    """The run ended before it came to that point."""
    problems: list[str] = field(default_factory=list)
    state: bytes = b""
    """The state of the last checkpoint, as the bucket has it."""
    history: ledger.History = field(default_factory=ledger.History)


@dataclass(frozen=True)
class Reference:
    """The run that was left undisturbed."""

    history: ledger.History
    state: bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The training that all runs of a campaign do."""

    steps: int = 24
    every: int = 3
    batch: int = 8
    length: int = 16
    floats: int = 4096
    max_pending: int = 2
    on_backlog: Literal["wait", "skip"] = "wait"
    torch: bool = False

    def job(self, options: StartOptions) -> dict[str, Any]:
        """The job file."""
        tokens = self.batch * self.length
        checkpoint = {"every": self.every, "max_pending": self.max_pending, "on_backlog": self.on_backlog}
        train: dict[str, Any] = {
            "tokens": self.steps * tokens,
            "data": {
                "path": DATA,
                "sequence_length": self.length,
                "prefetch": options.prefetch,
                "cache_gb": 1e-5 if options.cache else 0,
            },
            "batch": {"tokens": tokens, "micro_batch_size": 2},
            "checkpoint": checkpoint,
            "model": {"name": "none"},  # of no known size: the checkpoints here are much smaller than a model's
        }
        if self.torch:
            size = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_query_groups": 1, "head_size": 16}
            train |= {"model": {"overrides": size | {"intermediate_size": 64}}, "precision": "32-true"}
            train |= {"activation_checkpointing": "none", "validation": {"every": 0}}
        supervisor = {"processes": options.processes, "max_restarts": 99, "flush_s": 0.3, "storage_timeout_s": 60}
        return {"train": train, "supervisor": supervisor}
