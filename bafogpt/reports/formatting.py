"""Numbers for people, and the facts at the top of every report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from bafogpt.reports.history import CommittedCheckpoint, WorkerSpan
from bafogpt.reports.summary import Summary

NONE = "–"
INTERRUPTIONS = {"drill": "fire drill", "killed": "killed", "crashed": "crashed", "lost": "machine lost"}
SHOWN = 4
"""Longer lists are shortened."""


def duration(seconds: float | None) -> str:
    """Seconds as ``"48 s"``, ``"2 min 14 s"``, ``"3 h 05 min"``, ``"2 d 4 h"``; tenths below ten seconds."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: float | None) -> str:
    """Bytes as ``"13.1 MB"``, in powers of 1,000."""
    if count is None:
        return NONE
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def loss(value: float | None) -> str:
    """A loss with at most four significant digits."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A fraction (0 to 1) as ``"32.1 %"``."""
    return NONE if value is None else f"{100 * value:.1f} %"


def moment(seconds: float | None) -> str:
    """Seconds since the epoch as ``"2026-03-01 14:02:11"``, UTC."""
    try:
        return NONE if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return NONE  # out of the calendar's range


def plural(count: int, thing: str) -> str:
    """A number with its noun: ``"1 step"``, ``"1,200 steps"``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def sentence(summary: Summary) -> str:
    """The run's progress in one line."""
    record = summary.record
    parts = [f"step {record.step:,} of {record.steps:,}"]
    if record.step == record.steps and record.steps:
        parts = [plural(record.steps, "step")]
    if summary.tokens:
        parts.append(plural(summary.tokens, "token"))
    if summary.training_seconds is not None:
        parts.append(f"{duration(summary.training_seconds)} of training")
    if summary.wall_seconds is not None:
        parts.append(f"{duration(summary.wall_seconds)} in all")
    return " · ".join(parts)


def facts(summary: Summary, zar_per_usd: float | None = None) -> list[tuple[str, str]]:
    """(name, value) of the most important facts; unknown ones are left out."""
    record = summary.record
    found = [
        ("loss", _loss(summary)),
        ("validation", _validation(summary)),
        ("speed", _speed(summary)),
        ("samples", _samples(summary)),
        ("survived", _survived(summary.interruptions)),
        ("resumed", _resumed(summary)),
        ("checkpoints", _checkpoints(summary.checkpoints)),
        ("cost", _cost(summary, zar_per_usd)),
        ("where", ", ".join(part for part in (record.infra, record.host) if part)),
        ("attempts", _attempts(summary)),
        ("code", " · ".join([*_versions(record.versions), *_git(record.git)])),
        ("image", record.image or ""),
        ("started", f"{moment(summary.started)} UTC" if summary.started is not None else ""),
    ]
    return [(name, value) for name, value in found if value]


def _loss(summary: Summary) -> str:
    if not summary.curve:
        return "no step yet"
    if len(summary.curve) == 1:
        return f"{loss(summary.final_loss)} at step {summary.curve[0]['step']}"
    return f"{loss(summary.first_loss)} → {loss(summary.final_loss)}"


def _validation(summary: Summary) -> str:
    if summary.best_validation is None:
        return ""
    step, best = summary.best_validation
    last_step, last = summary.validation[-1]
    if step == last_step:
        return f"{loss(best)} at step {step:,}, the best"
    return f"{loss(last)} at step {last_step:,}; best {loss(best)} at step {step:,}"


def _speed(summary: Summary) -> str:
    if summary.tokens_per_s is None:
        return ""
    mfu = f", MFU {percent(summary.mfu)}" if summary.mfu is not None else ""
    return f"{summary.tokens_per_s:,.0f} tokens/s{mfu} (medians)"


def _samples(summary: Summary) -> str:
    if not summary.curve:
        return ""
    if not summary.problems:
        return f"{summary.samples:,}, each once and in order"
    more = f" (and {len(summary.problems) - 1:,} more)" if summary.problems[1:] else ""
    return f"NOT in order: {summary.problems[0]}{more}"


def _survived(spans: Sequence[WorkerSpan]) -> str:
    if len(spans) > SHOWN:
        counts = Counter(INTERRUPTIONS[each.ended] for each in spans)
        return ", ".join(f"{what} {plural(count, 'time')}" for what, count in counts.most_common())
    steps = ["" if each.last_step is None else f" after step {each.last_step:,}" for each in spans]
    return ", ".join(INTERRUPTIONS[each.ended] + step for each, step in zip(spans, steps, strict=True))


def _resumed(summary: Summary) -> str:
    if not summary.resumes:
        return ""
    where = f"from step {', '.join(f'{each.step:,}' for each in summary.resumes)}"
    if len(summary.resumes) > SHOWN:
        where = plural(len(summary.resumes), "time")
    again = plural(summary.redone_steps, "step") if summary.redone_steps else "no step"
    return f"{where}; {again} repeated"


def _checkpoints(commits: Sequence[CommittedCheckpoint]) -> str:
    if not commits:
        return "none"
    kept = [f"{each.step:,}" for each in commits if each.kept]
    sizes = [each.bytes for each in commits if each.bytes is not None]
    bucket = f"steps {', '.join(kept[-SHOWN:])} in the bucket" if kept else "none in the bucket"
    if len(kept) == 1:
        bucket = f"step {kept[0]} in the bucket"
    each = ""
    if sizes:
        each = f", {size(max(sizes))} each" if min(sizes) > 0.95 * max(sizes) else f", up to {size(max(sizes))}"
    return f"{len(commits):,} committed{each}; {bucket}"


def _cost(summary: Summary, zar_per_usd: float | None) -> str:
    used = summary.usage
    if not used.usd:
        return ""
    rand = f" (R{used.usd * zar_per_usd:,.2f})" if zar_per_usd else ""
    return f"${used.usd:,.2f}{rand} for {duration(3600 * used.hours)}, now ${used.usd_per_hour:,.2f} an hour"


def _attempts(summary: Summary) -> str:
    record = summary.record
    if record.attempts == 1 and not record.restarts:
        return ""
    return f"{plural(record.attempts, 'attempt')}, {plural(record.restarts, 'restart')} of the trainers"


def _versions(versions: Mapping[str, str]) -> list[str]:
    """The most important versions; the record has all of them."""
    return [f"{name} {versions[name]}" for name in ("bafogpt", "python", "torch", "cuda", "litgpt") if name in versions]


def _git(git: str) -> list[str]:
    commit, plus, changes = git.partition("+")
    return [f"git {commit[:10]}{plus}{changes}"] if git else []
