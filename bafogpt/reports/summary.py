"""One run as one value: its records in the bucket, and every number that is derived from them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from bafogpt.reports import history
from bafogpt.reports.history import CommittedCheckpoint, Resume, WorkerSpan
from bafogpt.runs import fields, usage
from bafogpt.runs import store as runs
from bafogpt.runs.fields import JsonObject, get_float
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.runs.usage import Usage


@dataclass(frozen=True)
class Summary:
    """A run's records. Derived values are computed on demand; unknown ones are None.

    Incomplete or invalid records (a run that has just begun, a loss of NaN) are never an error.
    """

    record: RunRecord
    lines: Sequence[JsonObject]
    """Every metrics line with a step, in order, with lines of repeated steps."""
    events: Sequence[JsonObject]
    """Every event with a kind and a time, attempt after attempt."""
    in_bucket: Sequence[CommittedCheckpoint]
    """The complete checkpoints in the bucket."""
    usage: Usage = field(default_factory=Usage)
    """Hours and dollars of all attempts."""

    @cached_property
    def curve(self) -> list[JsonObject]:
        """One training line per step: the last one."""
        return runs.curve(self.lines)

    @cached_property
    def superseded(self) -> list[list[JsonObject]]:
        """The training lines that were lost and repeated: one list per loss, led by the last line that still counts."""
        training = [line for line in self.lines if "loss" in line]
        counts = {line["step"]: index for index, line in enumerate(training)}
        found: list[list[JsonObject]] = []
        for index, line in enumerate(training):
            if counts[line["step"]] == index:
                continue
            before = training[index - 1] if index else None
            rising = before is not None and before["step"] < line["step"]
            if before is None or not rising or counts[before["step"]] == index - 1:
                found.append([before] if before is not None and rising else [])
            found[-1].append(line)
        return found

    @cached_property
    def validation(self) -> list[tuple[int, float]]:
        """(step, loss) of every validation; the last one of each step."""
        last = {line["step"]: get_float(line, "validation_loss") for line in self.lines if "validation_loss" in line}
        return [(step, loss) for step in sorted(last) if (loss := last[step]) is not None]

    @cached_property
    def worker_spans(self) -> list[WorkerSpan]:
        """From each start of the workers to their end."""
        return history.worker_spans(self.events, self.lines, running=self.record.state == "running")

    @cached_property
    def interruptions(self) -> list[WorkerSpan]:
        """The spans that ended in a crash or a kill, fire drills included."""
        return [each for each in self.worker_spans if each.ended in history.INTERRUPTIONS]

    @cached_property
    def resumes(self) -> list[Resume]:
        """Checkpoints that were restored."""
        return history.resumes(self.events)

    @cached_property
    def checkpoints(self) -> list[CommittedCheckpoint]:
        """Every checkpoint that was ever committed, by step."""
        return history.checkpoints(self.events, self.in_bucket)

    @cached_property
    def problems(self) -> list[str]:
        """Errors in the order of samples; empty where every sample was read once and in order."""
        named = [point for point in self.curve if _has_samples(point)]
        wrong = runs.sample_gaps(named)
        unnamed = len(self.curve) - len(named)
        return wrong + ([f"{unnamed} metrics lines do not name their samples"] if unnamed else [])

    @property
    def samples(self) -> int:
        """Samples seen, each counted once."""
        return int(self.curve[-1]["samples"][1]) if self.curve and _has_samples(self.curve[-1]) else 0

    @property
    def tokens(self) -> int:
        """Tokens seen, each counted once."""
        return int(self._last("tokens") or 0)

    @property
    def first_loss(self) -> float | None:
        return get_float(self.curve[0], "loss") if self.curve else None

    @property
    def final_loss(self) -> float | None:
        return get_float(self.curve[-1], "loss") if self.curve else None

    @property
    def best_validation(self) -> tuple[int, float] | None:
        """(step, loss) of the validation with the lowest loss."""
        return min(self.validation, key=lambda each: each[1], default=None)

    @property
    def tokens_per_s(self) -> float | None:
        """Median over the steps."""
        return self._median("tokens_per_s")

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, 0 to 1, median over the steps."""
        return self._median("mfu")

    @property
    def training_seconds(self) -> float | None:
        """Time of the steps that count, over all attempts, without restarts and lost work."""
        return self._last("seconds")

    @cached_property
    def redone_steps(self) -> int:
        """Steps that were repeated after an interruption."""
        furthest = redone = 0
        for line in self.lines:
            if "loss" not in line:
                continue
            step = line["step"]
            first, last = line["samples"] if _has_samples(line) else (step - 1, step)
            before = step * first // last if last > 0 else step - 1  # a line covers the steps (before, step]
            redone += max(0, min(furthest, step) - before)
            furthest = max(furthest, step)
        return redone

    @cached_property
    def started(self) -> float | None:
        """When the first record was written, in seconds since the epoch."""
        return min(self._times(), default=None) or _epoch(self.record.created)

    @property
    def wall_seconds(self) -> float | None:
        """From the first record to the last, pauses between attempts included."""
        last = max(self._times(), default=None)
        return None if last is None or self.started is None else round(last - self.started, 3)

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) along the curve; a value that is missing or not finite is NaN, which breaks a drawn line."""
        return [(point["step"], _or_nan(get_float(point, key))) for point in self.curve]

    def stages(self) -> list[tuple[str, int, int]]:
        """(name, first step, last step) of the curriculum's stages."""
        found: list[tuple[str, int, int]] = []
        end = 0
        for point in self.curve:
            name, start, end = str(point.get("stage") or ""), end, point["step"]
            if found and found[-1][0] == name:
                found[-1] = (name, found[-1][1], end)
            else:
                found.append((name, start, end))
        return [stage for stage in found if stage[0]]

    def to_dict(self) -> dict[str, Any]:
        """The record and the derived values, for ``--json``; without the curve."""
        best = self.best_validation
        return {
            **asdict(self.record),
            "first_loss": self.first_loss,
            "final_loss": self.final_loss,
            "best_validation": {"step": best[0], "loss": best[1]} if best else None,
            "validation": [{"step": step, "loss": loss} for step, loss in self.validation],
            "tokens": self.tokens,
            "samples": self.samples,
            "sample_problems": self.problems,
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.mfu,
            "training_seconds": self.training_seconds,
            "wall_seconds": self.wall_seconds,
            "hours": round(self.usage.hours, 6),
            "usd": round(self.usage.usd, 6),
            "redone_steps": self.redone_steps,
            "worker_spans": [asdict(each) for each in self.worker_spans],
            "interruptions": [asdict(each) for each in self.interruptions],
            "resumes": [asdict(each) for each in self.resumes],
            "checkpoints": [asdict(each) for each in self.checkpoints],
        }

    def _times(self) -> list[float]:
        return [time for each in (*self.events, *self.lines) if (time := get_float(each, "time")) is not None]

    def _last(self, key: str) -> float | None:
        return get_float(self.curve[-1], key) if self.curve else None

    def _median(self, key: str) -> float | None:
        values = [value for point in self.curve if (value := get_float(point, key)) is not None]
        return statistics.median(values) if values else None


def summarise(store: RunStore, name: str, clock: Callable[[], float] = time.time) -> Summary:
    """Read a run's records.

    Raises :class:`~bafogpt.core.errors.RunNotFoundError` and :class:`~bafogpt.core.errors.StorageError`.
    """
    record = store.load(name)
    in_bucket = [
        CommittedCheckpoint(
            step=each.step,
            samples=each.samples,
            bytes=sum(file.bytes for file in each.files),
            seconds=None,
            time=_epoch(str(each.created)),
            attempt=fields.get_int(each.metadata, "attempt"),
            kept=True,
        )
        for each in store.checkpoints(name).complete()
    ]
    return Summary(
        record=record,
        lines=_readable_lines(store.metrics(name)),
        events=history.readable_events(store.events(name)),
        in_bucket=in_bucket,
        usage=usage.of_run(store.folder(name), record.state, clock()),
    )


def _readable_lines(lines: Iterable[JsonObject]) -> list[JsonObject]:
    """The metrics lines that name their step."""
    return [line | {"step": step} for line in lines if (step := fields.get_int(line, "step")) is not None]


def _has_samples(point: JsonObject) -> bool:
    samples = point.get("samples")
    return isinstance(samples, list) and len(samples) == 2 and all(type(each) is int for each in samples)


def _epoch(iso: str) -> float | None:
    """Seconds since the epoch of an ISO 8601 time, or None."""
    try:
        return datetime.fromisoformat(iso).timestamp()
    except ValueError:
        return None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
