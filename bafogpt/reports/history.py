"""What a run's events mean: when its workers ran, what ended them, where they resumed, which checkpoints exist."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from bafogpt.runs.fields import JsonObject, get_float, get_int

SpanEnd = Literal["drill", "killed", "crashed", "lost", "running", "succeeded", "stopped", "failed"]
INTERRUPTIONS: tuple[SpanEnd, ...] = ("drill", "killed", "crashed", "lost")


@dataclass(frozen=True, kw_only=True)
class WorkerSpan:
    """The workers of one attempt, from a start to their end. Times are in seconds since the epoch."""

    attempt: int
    start: float
    end: float
    first_step: int
    """The step that they resumed from."""
    last_step: int | None
    """The last step that they reported."""
    ended: SpanEnd
    """``drill``: killed by a fire drill; ``lost``: the machine sent no more records."""
    why: str = ""
    """The cause of an interruption."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """A checkpoint that was restored."""

    time: float
    attempt: int
    step: int
    samples: int | None


@dataclass(frozen=True, kw_only=True)
class CommittedCheckpoint:
    """A checkpoint whose manifest was written."""

    step: int
    samples: int | None
    bytes: int | None
    seconds: float | None
    """From the first byte sent to the manifest."""
    time: float | None
    attempt: int | None
    kept: bool
    """Whether it is still in the bucket."""


def readable_events(events: Iterable[JsonObject]) -> list[JsonObject]:
    """The events that have a kind and a time."""
    return [each for each in events if isinstance(each.get("event"), str) and get_float(each, "time") is not None]


def worker_spans(events: Sequence[JsonObject], lines: Sequence[JsonObject], running: bool) -> list[WorkerSpan]:
    """Every span of the workers, oldest first. ``lines`` are the run's metrics; ``running``, whether the run is."""
    starts = [index for index, each in enumerate(events) if each["event"] == "trainers_started"]
    return [
        _worker_span(
            events[index],
            events[index + 1 : following],
            lines,
            before=_time(events[following]) if following < len(events) else math.inf,
            running=running and following == len(events),
        )
        for index, following in pairwise([*starts, len(events)])
    ]


def _worker_span(
    start: JsonObject, later: Sequence[JsonObject], lines: Sequence[JsonObject], before: float, running: bool
) -> WorkerSpan:
    """The span that begins with the event ``start``; ``later`` are the events until the next start, at ``before``."""
    begin, attempt = _time(start), get_int(start, "attempt") or 1
    drill = next((each for each in later if each["event"] == "drill_kill"), None)
    end = next((each for each in later if each["event"] in ("trainers_died", "run_ended")), None)
    limit = before if end is None else _time(end)
    reports = [(time, line) for line in lines if begin <= (time := get_float(line, "time") or 0.0) <= limit]
    times, steps = [time for time, _ in reports], [line["step"] for _, line in reports if "loss" in line]
    ended: SpanEnd
    if end is None:  # its last record is its end
        ended, why = ("running", "") if running else ("lost", "the machine sent no more records")
        own = [_time(each) for each in later if each.get("attempt", 1) == attempt and _time(each) <= before]
        until = max([begin, *times, *own])
    elif end["event"] == "run_ended":
        state = end.get("state")
        ended, why = state if state in ("succeeded", "stopped") else "failed", ""
        until = max(times, default=limit)
    else:
        why, until = str(end.get("why", "")), limit
        ended = "drill" if drill else "killed" if "SIGKILL" in why else "crashed"
    return WorkerSpan(
        attempt=attempt,
        start=begin,
        end=max(begin, until),
        first_step=get_int(start, "step") or 0,
        last_step=steps[-1] if steps else get_int(drill or {}, "step"),
        ended=ended,
        why=why,
    )


def resumes(events: Iterable[JsonObject]) -> list[Resume]:
    """Every checkpoint that was restored, in order."""
    return [
        Resume(
            time=_time(each),
            attempt=get_int(each, "attempt") or 1,
            step=get_int(each, "step") or 0,
            samples=get_int(each, "samples"),
        )
        for each in events
        if each["event"] == "checkpoint_restored"
    ]


def checkpoints(events: Iterable[JsonObject], in_bucket: Iterable[CommittedCheckpoint]) -> list[CommittedCheckpoint]:
    """Every checkpoint that was ever committed, by step, from the events and from the bucket."""
    found = {each.step: each for each in in_bucket}
    kept = set(found)
    for each in events:
        step = get_int(each, "step")
        if each["event"] == "checkpoint_committed" and step is not None:
            found[step] = CommittedCheckpoint(
                step=step,
                samples=get_int(each, "samples"),
                bytes=get_int(each, "bytes"),
                seconds=get_float(each, "seconds"),
                time=_time(each),
                attempt=get_int(each, "attempt"),
                kept=step in kept,
            )
    return [found[step] for step in sorted(found)]


def _time(event: JsonObject) -> float:
    return float(event["time"])
