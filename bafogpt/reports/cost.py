"""What runs have cost so far and their projected cost at the end, from the bucket alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from bafogpt.reports import status
from bafogpt.runs import usage
from bafogpt.runs.fields import get_float
from bafogpt.runs.store import RunRecord, RunStore


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """The cost of one run."""

    name: str
    state: str
    """As in the record; ``silent`` for a running run whose account is older than :data:`usage.SILENT_S`."""
    gpus: str
    infra: str
    attempts: int
    hours: float
    """Of all attempts together."""
    usd_per_hour: float
    """Of the last attempt, for all its machines."""
    usd: float
    """Spent so far."""
    hours_left: float | None
    """Until the last step at the present speed; None where that is unknown, 0 for a run that has ended."""
    usd_projected: float | None
    """At the end of the run."""
    max_cost: float | None
    """The run's own limit in dollars."""
    last_seen: float | None
    """Time of the account's last entry, in seconds since the epoch."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TotalCost:
    """All runs together."""

    runs: int
    hours: float
    usd: float
    usd_projected: float
    """Runs with an unknown end count with what they have cost so far."""


def of_run(store: RunStore, name: str, clock: Callable[[], float] = time.time) -> RunCost:
    """One run. Raises :class:`~bafogpt.core.errors.RunNotFoundError` and the bucket's errors."""
    return _of(store, store.load(name), clock())


def of_all(store: RunStore, clock: Callable[[], float] = time.time) -> list[RunCost]:
    """Every run of the bucket, most expensive first."""
    now = clock()
    records = [record for name in store.names() if (record := store.find(name)) is not None]
    return sorted((_of(store, record, now) for record in records), key=lambda each: -each.usd)


def total(costs: Iterable[RunCost]) -> TotalCost:
    """The sum of the costs."""
    listed = list(costs)
    return TotalCost(
        runs=len(listed),
        hours=sum(each.hours for each in listed),
        usd=sum(each.usd for each in listed),
        usd_projected=sum(each.usd if each.usd_projected is None else each.usd_projected for each in listed),
    )


def _of(store: RunStore, record: RunRecord, now: float) -> RunCost:
    used = usage.of_run(store.folder(record.name), record.state, now)
    state: str = record.state
    hours_left: float | None = 0.0
    if record.state == "running":
        if used.seen is None or now - used.seen > usage.SILENT_S:
            state = "silent"
        seconds_left = status.StepReader(store, record.name).read(record).seconds_left
        hours_left = None if seconds_left is None else seconds_left / 3600
    return RunCost(
        name=record.name,
        state=state,
        gpus=record.gpus,
        infra=record.infra,
        attempts=record.attempts,
        hours=round(used.hours, 6),
        usd_per_hour=used.usd_per_hour,
        usd=round(used.usd, 6),
        hours_left=hours_left,
        usd_projected=None if hours_left is None else round(used.usd + hours_left * used.usd_per_hour, 6),
        max_cost=get_float(record.job.get("supervisor") or {}, "max_cost"),
        last_seen=used.seen,
    )
