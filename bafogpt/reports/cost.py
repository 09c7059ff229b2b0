"""What runs have cost so far and will have cost at their end, from the bucket alone.

The supervisor of each attempt keeps an account (:mod:`bafogpt.agent.budget`), which outlives its machine; a run from
before there were accounts is counted from its events, at its record's price. Either counts from the supervisor's start
to its last word: what a machine costs while it boots, and until it has ended itself, is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from bafogpt.reports import history
from bafogpt.reports.summary import Summary
from bafogpt.runs import fields, usage
from bafogpt.runs.fields import get_float
from bafogpt.runs.store import RunRecord, RunStore, curve

SILENT_S = 600.0
"""A run that says "running" and has not been heard of for so long is taken to be lost: nothing more is counted."""
RECENT = 20
"""Steps whose speed says how fast the run is now."""


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """One run's money."""

    name: str
    state: str
    """As the record has it; ``silent`` for a run that says it is running and gives no sign of life."""
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
    """Until the last step at the present speed; None where nothing is known, 0 for a run that has ended."""
    usd_projected: float | None
    """Spent so far and what is left; for a run that has ended, what it has cost."""
    max_cost: float | None
    """The run's own limit in dollars."""
    last_heard: float | None
    """Seconds since the epoch."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Total:
    """All runs together."""

    runs: int
    hours: float
    usd: float
    usd_projected: float
    """With what is left of those that run, as far as it is known."""


def of_run(store: RunStore, name: str, clock: Callable[[], float] = time.time) -> RunCost:
    """One run. Raises :class:`~bafogpt.core.errors.RunNotFoundError` and what the bucket raises."""
    return _of(store, store.load(name), clock())


def of_all(store: RunStore, clock: Callable[[], float] = time.time) -> list[RunCost]:
    """Every run of the bucket, dearest first."""
    now = clock()
    records = [record for name in store.names() if (record := store.find(name)) is not None]
    return sorted((_of(store, record, now) for record in records), key=lambda each: -each.usd)


def total(costs: Iterable[RunCost]) -> Total:
    """All of them together."""
    listed = list(costs)
    return Total(
        runs=len(listed),
        hours=sum(each.hours for each in listed),
        usd=sum(each.usd for each in listed),
        usd_projected=sum(each.usd if each.usd_projected is None else each.usd_projected for each in listed),
    )


def _of(store: RunStore, record: RunRecord, now: float) -> RunCost:
    """A run that has ended is as its accounts say; one that runs is counted up to now and projected to its end."""
    spans = usage.spans(store.folder(record.name)) or _spans_of_old(store, record)
    hours, usd = usage.total(spans)
    heard = max((span.seen for span in spans), default=None)
    state: str = record.state
    left: float | None = 0.0
    price = spans[-1].price_per_hour if spans else record.price_per_hour
    if record.state == "running":
        silence = None if heard is None else now - heard
        if silence is None or silence > SILENT_S:
            state = "silent"
        else:  # at work: what has passed since its last entry is spent as well
            hours += max(0.0, silence) / 3600
            usd += max(0.0, silence) / 3600 * price
        left = _hours_left(store, record)
    return RunCost(
        name=record.name,
        state=state,
        gpus=record.gpus,
        infra=record.infra,
        attempts=record.attempts,
        hours=round(hours, 6),
        usd_per_hour=price,
        usd=round(usd, 6),
        hours_left=left,
        usd_projected=None if left is None else round(usd + left * price, 6),
        max_cost=_limit(record),
        last_heard=heard,
    )


def _limit(record: RunRecord) -> float | None:
    value = (record.job.get("supervisor") or {}).get("max_cost")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _hours_left(store: RunStore, record: RunRecord) -> float | None:
    """Steps that are left, at the pace of the last ones; None where no step has been timed."""
    lines = [line for line in curve(store.metrics(record.name)) if get_float(line, "tokens_per_s")]
    try:
        tokens_a_step = int(record.job["train"]["batch"]["tokens"])
    except (KeyError, TypeError, ValueError):
        return None
    if not lines:
        return None
    recent = [get_float(line, "tokens_per_s") or 0.0 for line in lines[-RECENT:]]
    pace = sorted(recent)[len(recent) // 2]
    return max(0, record.steps - int(lines[-1]["step"])) * tokens_a_step / pace / 3600


def _spans_of_old(store: RunStore, record: RunRecord) -> list[usage.Span]:
    """Accounts made from a run's events and metrics, one an attempt, all at the record's price."""
    summary = Summary(
        record=record,
        lines=[line for line in store.metrics(record.name) if fields.get_int(line, "step") is not None],
        events=history.readable_events(store.events(record.name)),
        in_bucket=(),
    )
    times: dict[int, list[float]] = {}
    for event in summary.events:
        times.setdefault(fields.get_int(event, "attempt") or 1, []).append(float(event["time"]))
    for life in summary.lives:
        times.setdefault(life.attempt, []).append(life.end)
    if not times and (begun := _epoch(record.created)) is not None:
        times[record.attempts] = [begun]
    return [
        usage.Span(attempt=attempt, started=min(each), seen=max(each), price_per_hour=record.price_per_hour)
        for attempt, each in sorted(times.items())
    ]


def _epoch(iso: str) -> float | None:
    try:
        return datetime.fromisoformat(iso).timestamp()
    except ValueError:
        return None
