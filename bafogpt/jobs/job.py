"""A job file: what is trained. ``jobs/pretrain.yaml`` is the one to read.

Keys: ``extends`` (another job file beside this one, whose values apply where this one has none), ``task`` (the file in
``sky/`` with the machine), ``trainer``, ``train`` (:mod:`bafogpt.train.config`), ``supervisor``
(:class:`SupervisorConfig`) and ``tracking`` (:mod:`bafogpt.jobs.tracking`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError
from bafogpt.jobs.tracking import TrackingConfig
from bafogpt.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SupervisorConfig:
    """How the supervisor keeps a job running, and when it ends it."""

    processes: int = 0
    """Trainer processes on each machine; 0 is one for each GPU, and one where there is none."""
    max_restarts: int = 3
    """Restarts of crashed trainers in a row, without progress between them, before the run fails."""
    grace_s: float = 90.0
    """Seconds from SIGTERM until trainers that have not saved and exited are killed."""
    flush_s: float = 5.0
    """Seconds between uploads of logs, metrics and events to the bucket."""
    system_stats_s: float = 10.0
    """Seconds between two measurements of the machine: GPUs, CPU, memory, disk, network."""
    storage_timeout_s: float = 300.0
    """How long the bucket may be unreachable before the run ends; it can be resumed later."""
    publish_to: str | None = None
    """A repository of the Hugging Face Hub (``hf://ORG/NAME``), created as private, that gets the newest checkpoint
    during training. The token is HF_TOKEN."""
    max_cost: float | None = None
    """Dollars that the run may cost, over all attempts and nodes; at the limit it saves and ends. ``--max-cost``
    overrides it."""
    max_hours: float | None = None
    """Hours that the run may take, over all attempts; ``--max-hours`` overrides it."""
    hang_timeout_s: float = 600.0
    """How long trainers may make no progress (a step, a validation, a part of a checkpoint) before they are killed and
    restarted, as after a crash. Waiting for the bucket does not count."""
    first_step_s: float = 1800.0
    """The same until the first step, for reading weights and compiling kernels."""
    heartbeat_s: float = 2.0
    """Seconds between two heartbeats of a node, in a run of several nodes."""
    heartbeat_timeout_s: float = 60.0
    """How long a node's heartbeat may be missing before all trainers stop, to continue from a checkpoint."""
    require_gpus: bool = True
    """Whether the launch's GPUs must be there; false trains on the CPU of a machine without any, to test a launch."""
    collective_timeout_s: float = 60.0
    """Seconds for a test all-reduce among a machine's GPUs, and one among all nodes, before anything is downloaded; 0
    leaves the tests out."""
    drill_kill_at_step: int | None = None
    """A fire drill: SIGKILL the trainers once at this step, to see the run recover."""

    def __post_init__(self) -> None:
        for name in ("processes", "max_restarts", "grace_s", "storage_timeout_s", "collective_timeout_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 or more")
        if self.collective_timeout_s > 3600:
            raise ValueError(f"collective_timeout_s is {self.collective_timeout_s}; at most 3600")
        if self.publish_to is not None and not self.publish_to.startswith("hf://"):
            raise ValueError(f"publish_to is {self.publish_to!r}; hf://ORG/NAME")
        intervals = ("flush_s", "system_stats_s", "hang_timeout_s", "first_step_s")
        for name in ("max_cost", "max_hours", "heartbeat_s", "heartbeat_timeout_s", *intervals):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; must be above 0")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A resolved job."""

    train: TrainConfig
    trainer: Literal["pretrain"] = "pretrain"
    task: str = "pretrain"
    """Name of the task file in ``sky/``."""
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def load(path: Path, assignments: Sequence[str] = ()) -> Job:
    """The job in a file, with ``--set`` assignments applied. Raises :class:`ConfigError`."""
    values = _with_ancestors(path, seen=())
    for text in assignments:
        values = schema.merge(values, schema.parse_assignment(text))
    return schema.build(Job, values, where=str(path))


def _with_ancestors(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's mapping, merged over the ones that it extends."""
    if path in seen:
        raise ConfigError(f"{path} extends itself", f"edit {path}")
    values = schema.load_yaml(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: 'extends' is {parent!r}, expected a file name", f"edit {path}")
    return schema.merge(_with_ancestors(path.parent / parent, (*seen, path)), values)
