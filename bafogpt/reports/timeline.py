"""The timeline: what the machines did when. One row an attempt, bars for the trainers' lives; a row of checkpoints."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from bafogpt.reports import formatting, plot_style
from bafogpt.reports.history import Commit, WorkerSpan
from bafogpt.reports.plot_style import LIGHT, PLOT_WIDTH
from bafogpt.reports.summary import Summary

ROW = 0.52
"""Height of a row, inches."""
ATTEMPT_ROWS = 6
"""With more attempts than that, all lives are in one row."""
MARKED = 40
"""With more lives than that, bars stand without marks."""
COMMITS = 500
"""Checkpoints drawn at most; of more, every second, third, …"""


def height(summary: Summary) -> float:
    """Inches that :func:`draw` needs."""
    return ROW * (_attempt_rows(summary) + bool(_timed(summary)))


def draw(axes: Any, summary: Summary) -> None:
    """The timeline of a run that has at least one life."""
    start = summary.started or summary.lives[0].start
    seconds = max(summary.wall_seconds or 0.0, 1.0)
    unit, unit_name = _unit(seconds)
    clock = _Clock(start, unit, 72 * PLOT_WIDTH / seconds)
    rows, commits = _attempt_rows(summary), _timed(summary)
    attempts = sorted({life.attempt for life in summary.lives})
    row_of = {attempt: index if rows > 1 else 0 for index, attempt in enumerate(attempts)}
    plot_style.title(axes, "Timeline")
    axes.set_xlim(0, seconds / unit)
    axes.set_ylim(rows + bool(commits) - 0.5, -0.6)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.set_xlabel(f"{unit_name} since the start")
    for life in summary.lives:
        _life(axes, life, row_of[life.attempt], clock)
    if len(summary.lives) <= MARKED:
        _marks(axes, summary, row_of, clock)
    names = [f"attempt {each}" for each in attempts] if rows > 1 else ["trainers"]
    if commits:
        names.append("checkpoints")
        _commits(axes, commits, rows, clock)
    axes.set_yticks(range(len(names)), names)


@dataclass(frozen=True)
class _Clock:
    """Times as places on the axis."""

    start: float
    """Seconds since the epoch at the axis's left end."""
    unit: float
    """Seconds in one unit of the axis."""
    points_per_s: float

    def at(self, time: float) -> float:
        """The place of a time, in the axis's unit."""
        return (time - self.start) / self.unit

    def points(self, seconds: float) -> float:
        """How wide a length of time is drawn."""
        return seconds * self.points_per_s


def _attempt_rows(summary: Summary) -> int:
    attempts = len({life.attempt for life in summary.lives})
    return attempts if attempts <= ATTEMPT_ROWS else 1


def _timed(summary: Summary) -> list[Commit]:
    timed = [each for each in summary.checkpoints if each.time is not None]
    return timed[:: -max(1, -(-len(timed) // COMMITS))][::-1]


def _unit(seconds: float) -> tuple[float, str]:
    """(seconds, name) of the unit that suits a length of time."""
    if seconds < 180:
        return 1.0, "seconds"
    if seconds < 3 * 3600:
        return 60.0, "minutes"
    return (3600.0, "hours") if seconds < 3 * 86400 else (86400.0, "days")


def _life(axes: Any, life: WorkerSpan, row: int, clock: _Clock) -> None:
    """A bar, with the steps it did written in it where there is room."""
    begin, end = clock.at(life.start), clock.at(life.end)
    axes.barh(row, end - begin, left=begin, height=0.4, color=LIGHT["train"], edgecolor=LIGHT["paper"], zorder=2)
    if life.last_step is None:
        return
    label = f"steps {life.first_step + 1:,}–{life.last_step:,}"
    if plot_style.text_width(label) < clock.points(life.end - life.start) - 24:
        look = {"ha": "center", "va": "center_baseline", "fontsize": 10, "color": LIGHT["paper"], "zorder": 3}
        axes.text((begin + end) / 2, row, label, **look)


def _marks(axes: Any, summary: Summary, row_of: dict[int, int], clock: _Clock) -> None:
    """Above each bar, at its left end, where it went on from, and at its right end what ended it.

    Words where there is room for them; else only an arrow and a cross.
    """
    kills = {(kill.attempt, kill.time): kill for kill in summary.kills}
    for index, life in enumerate(summary.lives):
        kill = kills.get((life.attempt, life.end))
        death = f"{formatting.KINDS[kill.kind]} ✕" if kill else ""
        resume = ""
        if index > 0:
            resume = f"▸ from step {life.first_step:,}" if life.first_step else "▸ from the beginning"
        later = [each.start for each in summary.lives[index + 1 :] if row_of[each.attempt] == row_of[life.attempt]]
        room = clock.points((life.end if kill else min(later, default=math.inf)) - life.start) - 8
        if resume and plot_style.text_width(resume + death) > room:
            death = death[-1:]
        if plot_style.text_width(resume + death) > room:
            resume = resume[:1]
        _above(axes, clock.at(life.start), row_of[life.attempt], resume, "left", "resume")
        _above(axes, clock.at(life.end), row_of[life.attempt], death, "right", "kill")


def _above(axes: Any, x: float, row: int, label: str, side: str, colour: str) -> None:
    """Words above a bar, which begin, end or have their middle at ``x``."""
    gap = {"left": 2, "right": -2}.get(side, 0)
    look = {"ha": side, "va": "bottom", "fontsize": 10, "color": LIGHT[colour]}
    axes.annotate(label, (x, row - 0.22), xytext=(gap, 1), textcoords="offset points", **look)


def _commits(axes: Any, commits: list[Commit], row: int, clock: _Clock) -> None:
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
