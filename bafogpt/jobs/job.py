"""A job file: what is trained. ``jobs/pretrain.yaml`` is the one to read.

Keys: ``extends`` (another job file beside this one, on which this one is laid), ``task`` (the file in ``sky/`` that
says where it runs by default), ``trainer``, ``train`` (see :mod:`bafogpt.train.config`), ``supervisor`` and
``tracking`` (see :mod:`bafogpt.jobs.tracking`).
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
    """How a job is kept alive."""

    processes: int = 0
    """Trainer processes on each machine; 0 is one a GPU, and one where there is none."""
    max_restarts: int = 3
    """How often in a row crashed trainers are started again, without getting further, before the run has failed."""
    grace_s: float = 90.0
    """Seconds from SIGTERM until trainers that have not saved and left are killed."""
    flush_s: float = 5.0
    """Seconds between sendings of logs, metrics and events to the bucket."""
    system_stats_s: float = 10.0
    """Seconds between two measurements of the machine: GPUs, CPU, memory, disk, network."""
    storage_timeout_s: float = 300.0
    """How long the bucket may be out of reach before the run ends, to be resumed later."""
    publish_to: str | None = None
    """Repository of the Hugging Face Hub (``hf://ORG/NAME``) that gets the newest checkpoint while training goes on; it
    is made private. The token is read from HF_TOKEN."""
    max_cost: float | None = None
    """Dollars that the run may cost, over all its attempts and nodes; at the limit it saves and ends. ``--max-cost`` of
    the launch comes before it."""
    max_hours: float | None = None
    """Hours that the run may take, over all its attempts; ``--max-hours`` of the launch comes before it."""
    hang_timeout_s: float = 600.0
    """How long trainers may go on without a step, a validation or a piece of a checkpoint before they are killed and
    started again, as after a crash. Waiting for the bucket is no hanging."""
    first_step_s: float = 1800.0
    """The same until their first step, for weights to be read and kernels to be compiled."""
    heartbeat_s: float = 2.0
    """Seconds between two signs of life among the nodes of a run, where there are more than one."""
    heartbeat_timeout_s: float = 60.0
    """How long a node may give no sign of life before the trainers are ended, to go on together from a checkpoint."""
    require_gpus: bool = True
    """Whether the GPUs that the launch asked for must be there. False trains on the CPU of a machine without any, to
    try a launch out."""
    collective_timeout_s: float = 60.0
    """Seconds that a first all-reduce may take, among the GPUs of a machine and then among all nodes; 0 has no limit,
    and leaves out the check before anything is fetched."""
    drill_kill_at_step: int | None = None
    """A fire drill: SIGKILL the trainers once, when they reach this step, and let the run come back by itself."""

    def __post_init__(self) -> None:
        for name in ("processes", "max_restarts", "grace_s", "storage_timeout_s", "collective_timeout_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 or more")
        if self.collective_timeout_s > 3600:
            raise ValueError(f"collective_timeout_s is {self.collective_timeout_s}; at most 3600")
        if self.publish_to is not None and not self.publish_to.startswith("hf://"):
            raise ValueError(f"publish_to is {self.publish_to!r}; hf://ORG/NAME")
        above_0 = (
            "flush_s",
            "system_stats_s",
            "max_cost",
            "max_hours",
            "hang_timeout_s",
            "first_step_s",
            "heartbeat_s",
        )
        for name in (*above_0, "heartbeat_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; must be above 0")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A resolved job: nothing left to look up."""

    train: TrainConfig
    trainer: Literal["pretrain"] = "pretrain"
    task: str = "pretrain"
    """Name of the task file in ``sky/``."""
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def load(path: Path, assignments: Sequence[str] = ()) -> Job:
    """The job in a file, with ``--set`` assignments laid on it. Raises :class:`ConfigError`."""
    values = _with_ancestors(path, seen=())
    for text in assignments:
        values = schema.merge(values, schema.parse_assignment(text))
    return schema.build(Job, values, where=str(path))


def _with_ancestors(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's mapping laid on what it extends."""
    if path in seen:
        raise ConfigError(f"{path} extends itself", f"edit {path}")
    values = schema.load_yaml(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: 'extends' is {parent!r}, expected a file name", f"edit {path}")
    return schema.merge(_with_ancestors(path.parent / parent, (*seen, path)), values)
