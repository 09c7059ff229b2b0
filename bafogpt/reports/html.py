"""A run's report as one HTML file, without scripts and external resources, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from bafogpt.reports import formatting, plot_style, plots
from bafogpt.reports.summary import Summary, summarise
from bafogpt.runs.store import RunStore

FILE = "report.html"
"""The report's name in the run's folder."""
ROWS = 100
"""A longer table shows its first and last rows."""
CELL = 300
"""Characters of a cell at most."""
PLOT = "Loss, learning rate and throughput over the steps; workers and checkpoints over time"


def page(summary: Summary, zar_per_usd: float | None = None) -> str:
    """The whole page; without plots where matplotlib is not installed."""
    record = summary.record
    body = [
        "<header>",
        f'<p class="state {escape(record.state)}">{escape(record.state)}</p>',
        f"<h1>{escape(record.name)}</h1>",
        f"<p>{escape(formatting.sentence(summary))}</p>",
        f'<p class="message">{escape(record.message)}</p>' if record.message else "",
        "</header>",
        _facts(summary, zar_per_usd),
        _figure(summary),
        _section("Checkpoints", _checkpoints(summary)),
        _section("Events", _events(summary)),
        _section("Sample order", _problems(summary)),
        _section("Configuration", f"<pre>{escape(_yaml(record.job))}</pre>" if record.job else ""),
        _section("Code", _code(summary)),
        f"<footer>record updated {escape(record.updated)}</footer>",
    ]
    head = [
        '<!doctype html>\n<html lang="en">\n<head>',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(record.name)}</title>",
        f"<style>\n{_style()}</style>",
        "</head>\n<body>",
    ]
    return "\n".join([*head, *(part for part in body if part), "</body>\n</html>\n"])


def store(runs: RunStore, name: str) -> None:
    """Write ``runs/<name>/report.html`` from the records in the bucket.

    Raises :class:`~bafogpt.core.errors.RunNotFoundError` and :class:`~bafogpt.core.errors.StorageError`.
    """
    runs.folder(name).put(FILE, page(summarise(runs, name)).encode("utf-8", "replace"))


def _figure(summary: Summary) -> str:
    try:
        plot = plots.figure_svg(summary)
    except ImportError:
        return '<p class="note">No plots: matplotlib was not installed where this report was written.</p>'
    if not plot:
        return '<p class="note">No plots: the run has no metrics yet.</p>'
    lost = "<figcaption>Shaded: steps that were lost and repeated.</figcaption>" if summary.superseded else ""
    return f'<figure role="group" aria-label="{PLOT}">{plot}{lost}</figure>'


def _facts(summary: Summary, zar_per_usd: float | None) -> str:
    rows = []
    for name, value in formatting.facts(summary, zar_per_usd):
        bad = ' class="bad"' if name == "samples" and summary.problems else ""
        rows.append(f"<div><dt>{escape(name)}</dt><dd{bad}>{escape(value)}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>"


def _checkpoints(summary: Summary) -> str:
    rows = [
        [
            f"{each.step:,}",
            formatting.NONE if each.samples is None else f"{each.samples:,}",
            formatting.size(each.bytes),
            formatting.duration(each.seconds),
            formatting.moment(each.time),
            "yes" if each.kept else "no, removed",
        ]
        for each in summary.checkpoints
    ]
    return _table(["step", "samples", "size", "upload", "committed, UTC", "in the bucket"], rows, numbers=4)


def _events(summary: Summary) -> str:
    known = ("time", "attempt", "event")
    rows = [
        [
            formatting.moment(float(each["time"])),
            str(each.get("attempt", "")),
            each["event"].replace("_", " "),
            ", ".join(f"{key} {_plain(value)}" for key, value in each.items() if key not in known and value != ""),
        ]
        for each in summary.events
    ]
    return _table(["time, UTC", "attempt", "event", ""], rows, numbers=0)


def _problems(summary: Summary) -> str:
    if not summary.problems:
        return ""
    return _table(
        [f"{formatting.plural(len(summary.problems), 'problem')}"], [[each] for each in summary.problems], numbers=0
    )


def _code(summary: Summary) -> str:
    record = summary.record
    rows = [[name, version] for name, version in record.versions.items()]
    if record.git:
        rows.append(["git", record.git])
    if record.image:
        rows.append(["image", record.image])
    rows += [[f"image {name}", value] for name, value in record.image_labels.items()]
    return _table(["", "version"], rows, numbers=0)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """A table whose first ``numbers`` columns are right-aligned; empty without rows."""
    if not rows:
        return ""
    head = "".join(f"<th{_right(i < numbers)}>{escape(name)}</th>" for i, name in enumerate(header))
    shown, left_out = rows, len(rows) - ROWS
    if left_out > 0:
        gap = [f"… {left_out:,} more …", *[""] * (len(header) - 1)]
        shown = [*rows[: ROWS // 2], gap, *rows[-ROWS // 2 :]]
    lines = (
        "".join(f"<td{_right(i < numbers)}>{escape(_short(cell))}</td>" for i, cell in enumerate(row)) for row in shown
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _right(yes: bool) -> str:
    return ' class="n"' if yes else ""


def _short(text: str) -> str:
    return text if len(text) <= CELL else f"{text[:CELL]}…"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _yaml(job: Any) -> str:
    return str(yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=100))


def _style() -> str:
    light, dark = _variables(plot_style.LIGHT), _variables(plot_style.DARK)
    rules = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{rules}"


def _variables(palette: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())
