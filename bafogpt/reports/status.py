"""A run's state and progress now, from the bucket alone: step, loss, speed, time left, cost, machines.

A snapshot is as fresh as the supervisor's last upload (``supervisor.flush_s``). It needs no connection to the machine,
so it is the same for every engine, and works after the machine is gone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from bafogpt.core.errors import RunNotFoundError
from bafogpt.reports.formatting import NONE, duration, loss, percent, size
from bafogpt.runs import usage
from bafogpt.runs.fields import JsonObject, get_float, get_int
from bafogpt.runs.log_segments import SegmentReader
from bafogpt.runs.store import SYSTEM_STATS, RunRecord, RunStore

TAIL_BYTES = 64 << 10
RECENT_LINES = 20
"""Metrics lines over which the speed is the median."""
SILENT_S = 60.0
"""A running run without a new record for this long is reported as silent."""


@dataclass(frozen=True, kw_only=True)
class TrainingStatus:
    """The last step of a run. Unknown values are None."""

    step: int
    steps: int
    """Of the whole run."""
    stage: str = ""
    loss: float | None = None
    validation_loss: float | None = None
    tokens: int = 0
    tokens_per_s: float | None = None
    """Median over the last steps."""
    mfu: float | None = None
    """0 to 1, median over the last steps."""
    seconds_left: float | None = None
    """Until the last step, at that speed; None for a run that has ended."""
    time: float | None = None
    """Of the last step, in seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The status of a run at one time. Unknown values are None."""

    name: str
    state: str
    message: str
    time: float
    """When it was taken, in seconds since the epoch."""
    last_seen: float | None
    """Time of the newest record."""
    infra: str
    attempt: int
    restarts: int
    training: TrainingStatus
    usd: float = 0.0
    """Spent so far, over all attempts."""
    usd_per_hour: float = 0.0
    machines: list[JsonObject] = field(default_factory=list)
    """The newest system stats of each node of the newest attempt, see :mod:`bafogpt.agent.system_stats`."""

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last record of a running run; None while that is below :data:`SILENT_S`."""
        if not self.running or self.last_seen is None or self.time - self.last_seen < SILENT_S:
            return None
        return self.time - self.last_seen

    def to_dict(self) -> dict[str, Any]:
        """Flat, for ``--json``."""
        values = asdict(self)
        training = values.pop("training")
        return {**training, **values}


class StepReader:
    """Reads a run's metrics as they grow, each line once."""

    def __init__(self, store: RunStore, name: str) -> None:
        self._metrics = SegmentReader(store.folder(name), "metrics", TAIL_BYTES)
        self._lines: list[JsonObject] = []
        self._validation: JsonObject = {}

    def read(self, record: RunRecord) -> TrainingStatus:
        """The last step of the run that ``record`` describes. Raises the bucket's errors."""
        for line in self._metrics.read():
            if "loss" in line:
                self._lines = [*self._lines[1 - RECENT_LINES :], line]
            elif "validation_loss" in line:
                self._validation = line
        last = self._lines[-1] if self._lines else {}
        running = record.state == "running"
        speed = self._median("tokens_per_s")
        batch_tokens = get_float((record.job.get("train") or {}).get("batch") or {}, "tokens")
        seconds_left = None
        if running and speed and batch_tokens:
            seconds_left = max(0, record.steps - (get_int(last, "step") or 0)) * batch_tokens / speed
        return TrainingStatus(
            step=max(record.step, get_int(last, "step") or 0) if running else record.step,
            steps=record.steps,
            stage=str(last.get("stage") or ""),
            loss=get_float(last, "loss"),
            validation_loss=get_float(self._validation, "validation_loss"),
            tokens=get_int(last, "tokens") or 0,
            tokens_per_s=speed,
            mfu=self._median("mfu"),
            seconds_left=seconds_left,
            time=get_float(last, "time"),
        )

    def _median(self, key: str) -> float | None:
        values = [value for line in self._lines if (value := get_float(line, key)) is not None]
        return statistics.median(values) if values else None


class StatusReader:
    """Takes snapshots of one run, reading only what is new. ``wall`` is in seconds since the epoch."""

    def __init__(self, store: RunStore, name: str, wall: Callable[[], float] = time.time) -> None:
        self._store = store
        self._name = name
        self._wall = wall
        self._steps = StepReader(store, name)
        self._system_stats = SegmentReader(store.folder(name), SYSTEM_STATS, TAIL_BYTES)
        self._machines: dict[tuple[int, int], JsonObject] = {}

    def read(self) -> Snapshot:
        """Raises :class:`~bafogpt.core.errors.RunNotFoundError` and the bucket's errors."""
        try:
            record = self._store.load(self._name)
        except RunNotFoundError as error:
            hint = f"bafogpt cloud status {self._name}"
            message = f"{error.message}; a run that was just launched has no record yet"
            raise RunNotFoundError(message, hint) from None
        for line in self._system_stats.read():
            self._machines[get_int(line, "attempt") or 1, get_int(line, "node") or 0] = line
        machines = [self._machines[key] for key in sorted(self._machines) if key[0] == record.attempts]
        training, now = self._steps.read(record), self._wall()
        used = usage.of_run(self._store.folder(self._name), record.state, now)
        times = [training.time, *(get_float(each, "time") for each in machines)]
        return Snapshot(
            name=record.name,
            state=record.state,
            message=record.message,
            time=now,
            last_seen=max((time for time in times if time is not None), default=None),
            infra=record.infra,
            attempt=record.attempts,
            restarts=record.restarts,
            training=training,
            usd=round(used.usd, 6),
            usd_per_hour=used.usd_per_hour or record.price_per_hour,
            machines=machines,
        )


def follow(
    read: Callable[[], Snapshot], every_s: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Snapshot]:
    """Snapshots until the run has ended; the last one has its final state."""
    while True:
        snapshot = read()
        yield snapshot
        if not snapshot.running:
            return
        sleep(every_s)


def line(snapshot: Snapshot) -> str:
    """The snapshot as one line, for logs and pipes."""
    training = snapshot.training
    parts = [f"step {training.step}/{training.steps}", f"loss {loss(training.loss)}"]
    if training.tokens_per_s is not None:
        parts.append(f"{training.tokens_per_s:,.0f} tokens/s")
    parts.append(f"MFU {percent(training.mfu)}")
    if training.seconds_left is not None:
        parts.append(f"{duration(training.seconds_left)} left")
    if snapshot.usd:
        parts.append(f"${snapshot.usd:,.2f}")
    for machine in snapshot.machines:
        parts += describe_machine(machine, short=True)
    if snapshot.silent_s is not None:
        parts.append(f"no record for {duration(snapshot.silent_s)}")
    return f"{snapshot.name} {snapshot.state}: " + "  ".join(parts)


def facts(snapshot: Snapshot, zar_per_usd: float | None = None) -> list[tuple[str, str]]:
    """(name, value) of everything but the machines, in the order of a screen."""
    training = snapshot.training
    speed = NONE if training.tokens_per_s is None else f"{training.tokens_per_s:,.0f} tokens/s"
    age = None if snapshot.last_seen is None else max(0.0, snapshot.time - snapshot.last_seen)
    found = [
        ("step", f"{training.step:,} of {training.steps:,}" + (f" · {training.stage}" if training.stage else "")),
        ("loss", loss(training.loss)),
        ("validation", loss(training.validation_loss)),
        ("speed", f"{speed}, MFU {percent(training.mfu)}"),
        ("time left", duration(training.seconds_left)),
        ("cost", _cost(snapshot, zar_per_usd)),
        ("attempt", f"{snapshot.attempt}, {snapshot.restarts} restart(s) of the trainers"),
        ("last record", NONE if age is None else f"{duration(age)} ago"),
    ]
    return [(name, value) for name, value in found if value != NONE]


def describe_machine(machine: JsonObject, short: bool = False) -> list[str]:
    """A machine in a few words each: GPUs first, then CPU, memory, disk, network."""
    found = [_describe_gpu(each, short) for each in machine.get("gpus") or ()]
    found.append(f"CPU {percent(get_float(machine, 'cpu'))}" + ("" if short else f" of {machine.get('cpus')}"))
    for name in ("memory", "disk"):
        used, total = get_float(machine, f"{name}_used"), get_float(machine, f"{name}_total")
        found.append(f"{name} {size(used)} of {size(total)}")
    if not short:
        sent, received = get_float(machine, "sent_per_s"), get_float(machine, "received_per_s")
        found.append(f"network {size(sent)}/s out, {size(received)}/s in")
    return found


def _describe_gpu(gpu: JsonObject, short: bool) -> str:
    used = percent(get_float(gpu, "utilization"))
    memory = f"{size(get_float(gpu, 'memory_used'))} of {size(get_float(gpu, 'memory_total'))}"
    if short:
        return f"GPU {used} {memory}"
    power, heat = get_float(gpu, "power"), get_float(gpu, "temperature")
    more = [f"{power:.0f} W" if power is not None else "", f"{heat:.0f} °C" if heat is not None else ""]
    return " · ".join([f"{gpu.get('name') or 'GPU'} {used}", memory, *filter(None, more)])


def _cost(snapshot: Snapshot, zar_per_usd: float | None) -> str:
    if not snapshot.usd_per_hour:
        return NONE
    rand = f" (R{snapshot.usd * zar_per_usd:,.2f})" if zar_per_usd else ""
    return f"${snapshot.usd:,.2f}{rand} so far, ${snapshot.usd_per_hour:,.2f} an hour"
