"""What a run's events tell: when its trainers lived, what ended them, where they went on, what was committed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bafogpt.runs.fields import JsonObject, get_float, get_int

Ending = Literal["killed", "died", "lost", "running", "succeeded", "stopped", "failed"]
KillKind = Literal["drill", "killed", "died", "lost"]


@dataclass(frozen=True, kw_only=True)
class WorkerSpan:
    """The trainers of one attempt, from a start to their end. Times are seconds since the epoch."""

    attempt: int
    start: float
    end: float
    first_step: int
    """The step that they went on from."""
    last_step: int | None
    """The last step they have told of."""
    ending: Ending


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """A death that the run did not ask for, or that a fire drill did."""

    time: float
    attempt: int
    step: int | None
    kind: KillKind
    """``lost``: nothing was heard of the get_int machine any more."""
    why: str


@dataclass(frozen=True, kw_only=True)
class Resume:
    """A checkpoint that was restored."""

    time: float
    attempt: int
    step: int
    samples: int | None


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A checkpoint whose manifest was written."""

    step: int
    samples: int | None
    bytes: int | None
    seconds: float | None
    """From the first byte sent to the manifest."""
    time: float | None
    attempt: int | None
    kept: bool
    """Whether it is in the bucket now."""


def readable_events(events: Iterable[JsonObject]) -> list[JsonObject]:
    """The events that have a kind and a time."""
    return [each for each in events if isinstance(each.get("event"), str) and get_float(each, "time") is not None]


def lives(events: Sequence[JsonObject], lines: Sequence[JsonObject], running: bool) -> list[WorkerSpan]:
    """Every life of the trainers, oldest first.

    One that is followed by another without a word about its end was lost with its machine; it ends where the records
    that it left end. The last one is still ``running`` if the run is.
    """
    found: list[WorkerSpan] = []
    open_life: WorkerSpan | None = None
    drilled = False
    for event in events:
        kind, time = event["event"], _time(event)
        if kind == "trainers_started":
            if open_life is not None:
                found.append(_closed_by_silence(open_life, "lost", events, lines, before=time))
            step = get_int(event, "step") or 0
            attempt = get_int(event, "attempt") or 1
            open_life = WorkerSpan(
                attempt=attempt, start=time, end=time, first_step=step, last_step=None, ending="running"
            )
            drilled = False
        elif kind == "drill_kill":
            drilled = True
        elif kind == "trainers_died" and open_life is not None:
            killed = drilled or "SIGKILL" in str(event.get("why", ""))
            found.append(_closed(open_life, time, "killed" if killed else "died", lines))
            open_life = None
        elif kind == "run_ended" and open_life is not None:
            found.append(_closed(open_life, _last_word(lines, open_life.start, time), _state(event), lines))
            open_life = None
    if open_life is not None:
        silence: Ending = "running" if running else "lost"
        found.append(_closed_by_silence(open_life, silence, events, lines, before=math.inf))
    return found


def kills(events: Sequence[JsonObject], all_lives: Sequence[WorkerSpan]) -> list[Interruption]:
    """Every life that ended against its will, and what the events say about why."""
    found = []
    for life in all_lives:
        if life.ending not in ("killed", "died", "lost"):
            continue
        within = [each for each in events if each.get("attempt", 1) == life.attempt]
        within = [each for each in within if life.start <= _time(each) <= life.end]
        drill = next((each for each in within if each["event"] == "drill_kill"), None)
        died = next((each for each in within if each["event"] == "trainers_died"), None)
        kind: KillKind = "lost" if life.ending == "lost" else "died" if life.ending == "died" else "killed"
        why = str(died.get("why", "")) if died else "the machine was not heard of again"
        if drill is not None and life.ending != "lost":
            kind, why = "drill", f"fire drill: {why}"
        step = life.last_step if life.last_step is not None else get_int(drill or {}, "step")
        found.append(Interruption(time=life.end, attempt=life.attempt, step=step, kind=kind, why=why))
    return found


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


def commits(events: Iterable[JsonObject], in_bucket: Iterable[Commit]) -> list[Commit]:
    """Every checkpoint that was ever committed, by step: what the events tell, and what only the bucket knows."""
    found = {each.step: each for each in in_bucket}
    kept = set(found)
    for each in events:
        step = get_int(each, "step")
        if each["event"] == "checkpoint_committed" and step is not None:
            found[step] = Commit(
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


def _state(event: JsonObject) -> Ending:
    state = event.get("state")
    return state if state in ("succeeded", "stopped") else "failed"


def _closed(life: WorkerSpan, end: float, ending: Ending, lines: Sequence[JsonObject]) -> WorkerSpan:
    """``life`` ended at ``end``, with the last step that it had told of by then."""
    steps = [line["step"] for line in lines if "loss" in line and life.start <= (get_float(line, "time") or 0.0) <= end]
    return replace(life, end=max(end, life.start), last_step=steps[-1] if steps else None, ending=ending)


def _closed_by_silence(
    life: WorkerSpan, ending: Ending, events: Sequence[JsonObject], lines: Sequence[JsonObject], before: float
) -> WorkerSpan:
    """``life`` ended with the last record of its attempt before the time ``before``."""
    own = [_time(each) for each in events if each.get("attempt", 1) == life.attempt and _time(each) <= before]
    end = max([_last_word(lines, life.start, before, default=life.start), *own])
    return _closed(life, end, ending, lines)


def _last_word(lines: Sequence[JsonObject], start: float, end: float, default: float | None = None) -> float:
    """The time of the last metrics line between two times; ``default`` (else ``end``) where there is none."""
    times = [time for line in lines if (time := get_float(line, "time")) is not None and start <= time <= end]
    return max(times, default=end if default is None else default)
