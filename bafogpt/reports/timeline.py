"""The timeline of a run: one row per attempt, with a bar per span of its workers, and a row of checkpoints."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from bafogpt.reports import formatting, plot_style
from bafogpt.reports.history import CommittedCheckpoint, WorkerSpan
from bafogpt.reports.plot_style import LIGHT, PLOT_WIDTH
from bafogpt.reports.summary import Summary

ROW = 0.52
"""Height of a row, inches."""
ATTEMPT_ROWS = 6
"""With more attempts, all spans are in one row."""
MARKED = 40
"""With more spans, bars have no labels."""
COMMITS = 500
"""Checkpoints drawn at most."""


def height(summary: Summary) -> float:
    """Inches that :func:`draw` needs."""
    return ROW * (_attempt_rows(summary) + bool(_timed(summary)))


def draw(axes: Any, summary: Summary) -> None:
    """The timeline of a run that has at least one span."""
    start = summary.started or summary.worker_spans[0].start
    seconds = max(summary.wall_seconds or 0.0, 1.0)
    unit, unit_name = _unit(seconds)
    clock = _Clock(start, unit, 72 * PLOT_WIDTH / seconds)
    rows, commits = _attempt_rows(summary), _timed(summary)
    attempts = sorted({span.attempt for span in summary.worker_spans})
    row_of = {attempt: index if rows > 1 else 0 for index, attempt in enumerate(attempts)}
    plot_style.title(axes, "Timeline")
    axes.set_xlim(0, seconds / unit)
    axes.set_ylim(rows + bool(commits) - 0.5, -0.6)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.set_xlabel(f"{unit_name} since the start")
    for span in summary.worker_spans:
        _bar(axes, span, row_of[span.attempt], clock)
    if len(summary.worker_spans) <= MARKED:
        _marks(axes, summary, row_of, clock)
    names = [f"attempt {each}" for each in attempts] if rows > 1 else ["workers"]
    if commits:
        names.append("checkpoints")
        _commits(axes, commits, rows, clock)
    axes.set_yticks(range(len(names)), names)


@dataclass(frozen=True)
class _Clock:
    """Positions of times on the axis."""

    start: float
    """Seconds since the epoch at the axis's left end."""
    unit: float
    """Seconds in one unit of the axis."""
    points_per_s: float

    def at(self, time: float) -> float:
        """The position of a time, in the axis's unit."""
        return (time - self.start) / self.unit

    def points(self, seconds: float) -> float:
        """The width of a duration, in points."""
        return seconds * self.points_per_s


def _attempt_rows(summary: Summary) -> int:
    attempts = len({span.attempt for span in summary.worker_spans})
    return attempts if attempts <= ATTEMPT_ROWS else 1


def _timed(summary: Summary) -> list[CommittedCheckpoint]:
    timed = [each for each in summary.checkpoints if each.time is not None]
    return timed[:: -max(1, -(-len(timed) // COMMITS))][::-1]


def _unit(seconds: float) -> tuple[float, str]:
    """(seconds, name) of the unit that suits a length of time."""
    if seconds < 180:
        return 1.0, "seconds"
    if seconds < 3 * 3600:
        return 60.0, "minutes"
    return (3600.0, "hours") if seconds < 3 * 86400 else (86400.0, "days")


def _bar(axes: Any, span: WorkerSpan, row: int, clock: _Clock) -> None:
    """A bar, with its steps in it where there is room."""
    begin, end = clock.at(span.start), clock.at(span.end)
    axes.barh(row, end - begin, left=begin, height=0.4, color=LIGHT["train"], edgecolor=LIGHT["paper"], zorder=2)
    if span.last_step is None:
        return
    label = f"steps {span.first_step + 1:,}–{span.last_step:,}"
    if plot_style.text_width(label) < clock.points(span.end - span.start) - 24:
        look = {"ha": "center", "va": "center_baseline", "fontsize": 10, "color": LIGHT["paper"], "zorder": 3}
        axes.text((begin + end) / 2, row, label, **look)


def _marks(axes: Any, summary: Summary, row_of: dict[int, int], clock: _Clock) -> None:
    """Above each bar: at the left, the step that it resumed from; at the right, what interrupted it.

    Without room for the words there is only an arrow or a cross.
    """
    for index, span in enumerate(summary.worker_spans):
        what = formatting.INTERRUPTIONS.get(span.ended)
        end = f"{what} ✕" if what else ""
        resume = ""
        if index > 0:
            resume = f"▸ from step {span.first_step:,}" if span.first_step else "▸ from the beginning"
        later = [
            each.start for each in summary.worker_spans[index + 1 :] if row_of[each.attempt] == row_of[span.attempt]
        ]
        room = clock.points((span.end if what else min(later, default=math.inf)) - span.start) - 8
        if resume and plot_style.text_width(resume + end) > room:
            end = end[-1:]
        if plot_style.text_width(resume + end) > room:
            resume = resume[:1]
        _above(axes, clock.at(span.start), row_of[span.attempt], resume, "left", "resume")
        _above(axes, clock.at(span.end), row_of[span.attempt], end, "right", "kill")


def _above(axes: Any, x: float, row: int, label: str, side: str, colour: str) -> None:
    """A label above a bar, aligned at ``x``."""
    gap = {"left": 2, "right": -2}.get(side, 0)
    look = {"ha": side, "va": "bottom", "fontsize": 10, "color": LIGHT[colour]}
    axes.annotate(label, (x, row - 0.22), xytext=(gap, 1), textcoords="offset points", **look)


def _commits(axes: Any, commits: list[CommittedCheckpoint], row: int, clock: _Clock) -> None:
    """A tick where a manifest was written, a bar for the upload before it, the step above; sizes at the right."""
    times = [(clock.at(each.time or 0.0), (each.seconds or 0.0) / clock.unit) for each in commits]
    plot_style.strokes(axes, [(x, row - 0.17, x, row + 0.17) for x, _ in times], color=LIGHT["muted"], linewidth=1.4)
    plot_style.strokes(axes, [(x - length, row, x, row) for x, length in times], color=LIGHT["muted"], linewidth=4)
    taken = -math.inf  # how far the labels reach, points
    for commit, (x, _) in zip(commits, times, strict=True):
        label = f"{commit.step:,}"
        middle, half = clock.points(x * clock.unit), plot_style.text_width(label) / 2
        if middle - half > taken + 6:
            _above(axes, x, row, label, "center", "muted")
            taken = middle + half
    sizes = [each.bytes for each in commits if each.bytes is not None]
    took = [each.seconds for each in commits if each.seconds is not None]
    measured = [formatting.size(max(sizes))] if sizes else []
    measured += [formatting.duration(statistics.median(took))] if took else []
    axes.annotate(
        ", ".join(measured),
        (1, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
        color=LIGHT["muted"],
    )
