"""A run's summary for a terminal, as text that is readable in a pipe, without colours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bafogpt.reports import formatting
from bafogpt.reports.summary import Summary

if TYPE_CHECKING:
    from rich.text import Text

STYLES = {"succeeded": "bold green", "running": "bold cyan", "stopped": "bold yellow", "failed": "bold red"}
EIGHTHS = " ▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 60, 6


def summary_text(summary: Summary, zar_per_usd: float | None = None) -> Text:
    """The summary as Rich text: about twenty lines of about 80 characters."""
    from rich.text import Text

    record = summary.record
    text = Text()
    text.append(record.name, "bold")
    text.append("  ")
    text.append(record.state, STYLES.get(record.state, "bold"))
    text.append(f"  {record.message}\n" if record.message else "\n")
    text.append(f"{formatting.sentence(summary)}\n\n", "dim")
    chart = loss_chart(summary.series("loss"))
    for label, row in chart:
        text.append(f"{label:>8} ", "dim")
        text.append(f"{row}\n", "blue")
    if chart:
        text.append(f"{' ' * 9}{_marks(summary)}\n")
        text.append(f"{' ' * 9}{_step_axis(summary)}\n\n", "dim")
    found = formatting.facts(summary, zar_per_usd)
    width = max(len(name) for name, _ in found)
    for name, value in found:
        text.append(f"{name:<{width}}  ", "dim")
        text.append(f"{value}\n", "bold red" if name == "samples" and summary.problems else "")
    text.rstrip()
    return text


def loss_chart(series: list[tuple[int, float]]) -> list[tuple[str, str]]:
    """The loss curve as filled columns over the steps: (label, row) from the top.

    Empty where fewer than two losses are finite.
    """
    columns = _columns(series)
    finite = [value for value in columns if not math.isnan(value)]
    if len(finite) < 2:
        return []
    low, high = min(finite), max(finite)
    span = high - low or 1.0
    # the lowest column is one eighth high: nothing at all is for columns without a loss
    levels = [0 if math.isnan(v) else 1 + round((v - low) / span * (8 * HEIGHT - 1)) for v in columns]
    rows = []
    for row in reversed(range(HEIGHT)):
        cells = "".join(EIGHTHS[min(8, max(0, level - 8 * row))] for level in levels)
        label = f"{high:.2f}" if row == HEIGHT - 1 else f"{low:.2f}" if row == 0 else ""
        rows.append((label, cells.rstrip()))
    return rows


def _columns(series: list[tuple[int, float]]) -> list[float]:
    """Mean loss in each of the chart's columns; a column without a measured step repeats the one before."""
    if not series:
        return []
    sums, counts = [0.0] * WIDTH, [0] * WIDTH
    for step, value in series:
        if not math.isnan(value):
            at = _column(step, series[-1][0])
            sums[at] += value
            counts[at] += 1
    columns: list[float] = []
    for total, count in zip(sums, counts, strict=True):
        columns.append(total / count if count else columns[-1] if columns else math.nan)
    return columns


def _column(step: int, last: int) -> int:
    return min(WIDTH - 1, max(0, (step - 1) * WIDTH // max(last, 1)))


def _marks(summary: Summary) -> Text:
    """The line below the chart: ✕ at interruptions, ▸ at resumes."""
    from rich.text import Text

    cells: list[tuple[str, str]] = [(" ", "")] * WIDTH
    last = summary.curve[-1]["step"]
    for resume in summary.resumes:
        cells[_column(resume.step, last)] = ("▸", "green")
    for each in summary.interruptions:
        if each.last_step is not None:
            cells[_column(each.last_step, last)] = ("✕", "red")
    return Text.assemble(*cells)


def _step_axis(summary: Summary) -> str:
    first, last = f"step {summary.curve[0]['step']:,}", f"{summary.curve[-1]['step']:,}"
    return f"{first}{last:>{WIDTH - len(first)}}"
