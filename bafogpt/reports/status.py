"""How a run is right now, from the bucket alone: step, loss, speed, what is left, what it has cost, its machines.

A snapshot is as fresh as the supervisor's last sending (``supervisor.flush_s``); ``heard`` says when that was.
It needs no way to the machine, so it is the same for every engine, and still says how a run was that is gone.
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
RECENT = 20
"""Lines of metrics over which the speed is taken."""
SILENT_S = 60.0
"""When nothing has been heard of a running run for so long, that is said."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One look at a run. What is not known is None."""

    name: str
    state: str
    message: str
    time: float
    """When it was taken, in seconds since the epoch."""
    heard: float | None
    """The newest record's time."""
    infra: str
    attempt: int
    restarts: int
    step: int
    steps: int
    stage: str = ""
    loss: float | None = None
    validation_loss: float | None = None
    tokens: int = 0
    tokens_per_s: float | None = None
    """Median over the last steps."""
    mfu: float | None = None
    """0 to 1, median likewise."""
    seconds_left: float | None = None
    """Until the last step, at that speed."""
    usd: float | None = None
    """Spent so far, over all attempts."""
    usd_per_hour: float = 0.0
    machines: list[JsonObject] = field(default_factory=list)
    """The newest system_stats of each node of the newest attempt, see :mod:`bafogpt.agent.system_stats`."""

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def silence_s(self) -> float | None:
        """For how long nothing has been heard of a run that is said to run; None where that is no reason to worry."""
        if not self.running or self.heard is None or self.time - self.heard < SILENT_S:
            return None
        return self.time - self.heard

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Watcher:
    """Looks at one run again and again, reading only what is new. ``wall`` is in seconds since the epoch."""

    def __init__(self, store: RunStore, name: str, wall: Callable[[], float] = time.time) -> None:
        self._store = store
        self._name = name
        self._wall = wall
        folder = store.folder(name)
        self._metrics = SegmentReader(folder, "metrics", TAIL_BYTES)
        self._system_stats = SegmentReader(folder, SYSTEM_STATS, TAIL_BYTES)
        self._lines: list[JsonObject] = []
        self._validation: JsonObject = {}
        self._machines: dict[tuple[int, int], JsonObject] = {}

    def look(self) -> Snapshot:
        """A snapshot. Raises :class:`~bafogpt.core.errors.RunNotFoundError` and what the bucket raises."""
        try:
            record = self._store.load(self._name)
        except RunNotFoundError as error:
            raise RunNotFoundError(
                f"{error.message}; a run that was only just launched has no record yet",
                f"bafogpt cloud status {self._name}",
            ) from None
        for line in self._metrics.read():
            if "loss" in line:
                self._lines = [*self._lines[1 - RECENT :], line]
            elif "validation_loss" in line:
                self._validation = line
        for line in self._system_stats.read():
            self._machines[get_int(line, "attempt") or 1, get_int(line, "node") or 0] = line
        now = self._wall()
        last = self._lines[-1] if self._lines else {}
        machines = [self._machines[key] for key in sorted(self._machines) if key[0] == record.attempts]
        times = [time for each in (last, *machines) if (time := get_float(each, "time")) is not None]
        speed = self._median("tokens_per_s")
        return Snapshot(
            name=record.name,
            state=record.state,
            message=record.message,
            time=now,
            heard=max(times, default=None),
            infra=record.infra,
            attempt=record.attempts,
            restarts=record.restarts,
            step=max(record.step, get_int(last, "step") or 0) if record.state == "running" else record.step,
            steps=record.steps,
            stage=str(last.get("stage") or ""),
            loss=get_float(last, "loss"),
            validation_loss=get_float(self._validation, "validation_loss"),
            tokens=get_int(last, "tokens") or 0,
            tokens_per_s=speed,
            mfu=self._median("mfu"),
            seconds_left=_seconds_left(record, get_int(last, "step") or record.step, speed),
            usd=self._usd(record, now),
            usd_per_hour=record.price_per_hour,
            machines=machines,
        )

    def _median(self, key: str) -> float | None:
        values = [value for line in self._lines if (value := get_float(line, key)) is not None]
        return statistics.median(values) if values else None

    def _usd(self, record: RunRecord, now: float) -> float | None:
        """What the attempts' accounts say, and what has run up since the last entry of one that is at work."""
        accounts = usage.spans(self._store.folder(self._name))
        if not accounts:
            return None
        usd = sum(each.usd for each in accounts)
        last = accounts[-1]
        if record.state == "running" and 0 < now - last.seen < 2 * usage.METER_EVERY_S:
            usd += (now - last.seen) / 3600 * last.price_per_hour
        return round(usd, 6)


def follow(
    look: Callable[[], Snapshot], every_s: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Snapshot]:
    """Snapshots until the run has ended; the last one says how."""
    while True:
        snapshot = look()
        yield snapshot
        if not snapshot.running:
            return
        sleep(every_s)


def line(snapshot: Snapshot) -> str:
    """The snapshot as one line, for logs and pipes."""
    parts = [f"step {snapshot.step}/{snapshot.steps}", f"loss {loss(snapshot.loss)}"]
    if snapshot.tokens_per_s is not None:
        parts.append(f"{snapshot.tokens_per_s:,.0f} tokens/s")
    parts.append(f"MFU {percent(snapshot.mfu)}")
    if snapshot.seconds_left is not None and snapshot.running:
        parts.append(f"{duration(snapshot.seconds_left)} left")
    if snapshot.usd is not None and snapshot.usd_per_hour:
        parts.append(f"${snapshot.usd:,.2f}")
    for machine in snapshot.machines:
        parts += machine_words(machine, short=True)
    if snapshot.silence_s is not None:
        parts.append(f"nothing heard for {duration(snapshot.silence_s)}")
    return f"{snapshot.name} {snapshot.state}: " + "  ".join(parts)


def facts(snapshot: Snapshot, zar_per_usd: float | None = None) -> list[tuple[str, str]]:
    """(name, value) of everything but the machines, in the order of a screen."""
    speed = NONE if snapshot.tokens_per_s is None else f"{snapshot.tokens_per_s:,.0f} tokens/s"
    found = [
        ("step", f"{snapshot.step:,} of {snapshot.steps:,}" + (f" · {snapshot.stage}" if snapshot.stage else "")),
        ("loss", loss(snapshot.loss)),
        ("validation", loss(snapshot.validation_loss)),
        ("speed", f"{speed}, MFU {percent(snapshot.mfu)}"),
        ("left", duration(snapshot.seconds_left) if snapshot.running else NONE),
        ("cost", _cost(snapshot, zar_per_usd)),
        ("attempt", f"{snapshot.attempt}, {snapshot.restarts} restart(s) of the trainers"),
        ("heard", NONE if snapshot.heard is None else f"{duration(max(0.0, snapshot.time - snapshot.heard))} ago"),
    ]
    return [(name, value) for name, value in found if value != NONE]


def machine_words(machine: JsonObject, short: bool = False) -> list[str]:
    """A machine in a few words each: GPUs first, then CPU, memory, disk, network."""
    found = [_gpu_words(each, short) for each in machine.get("gpus") or ()]
    found.append(f"CPU {percent(get_float(machine, 'cpu'))}" + ("" if short else f" of {machine.get('cpus')}"))
    for name in ("memory", "disk"):
        used, total = get_float(machine, f"{name}_used"), get_float(machine, f"{name}_total")
        found.append(f"{name} {size(used)} of {size(total)}")
    if not short:
        sent, received = get_float(machine, "sent_per_s"), get_float(machine, "received_per_s")
        found.append(f"network {size(sent)}/s out, {size(received)}/s in")
    return found


def _gpu_words(gpu: JsonObject, short: bool) -> str:
    busy = percent(get_float(gpu, "utilization"))
    memory = f"{size(get_float(gpu, 'memory_used'))} of {size(get_float(gpu, 'memory_total'))}"
    if short:
        return f"GPU {busy} {memory}"
    power, heat = get_float(gpu, "power"), get_float(gpu, "temperature")
    more = [f"{power:.0f} W" if power is not None else "", f"{heat:.0f} °C" if heat is not None else ""]
    return " · ".join([f"{gpu.get('name') or 'GPU'} {busy}", memory, *filter(None, more)])


def _cost(snapshot: Snapshot, zar_per_usd: float | None) -> str:
    if not snapshot.usd_per_hour:
        return NONE
    usd = snapshot.usd or 0.0
    rand = f" (R{usd * zar_per_usd:,.2f})" if zar_per_usd else ""
    return f"${usd:,.2f}{rand} so far, ${snapshot.usd_per_hour:,.2f} an hour"


def _seconds_left(record: RunRecord, step: int, tokens_per_s: float | None) -> float | None:
    """At the present speed, in training time alone; None where the speed, or the size of a step, is not known."""
    batch = (record.job.get("train") or {}).get("batch") or {}
    tokens = get_float(batch, "tokens")
    if record.state != "running" or tokens is None or not tokens_per_s:
        return None
    return max(0, record.steps - step) * tokens / tokens_per_s
