"""A run's report, from the bucket's records alone.

- ``history``  what the events tell: lives of the trainers, kills, resumes, checkpoints
- ``summary``  records in, one :class:`Summary` out; every number that a report shows is derived there
- ``words``    numbers as people read them, and the facts that every report begins with
- ``terminal`` the summary for a terminal, with a small loss curve
- ``figures``  the pictures over the steps: loss, learning rate, throughput
- ``timeline`` the picture over wall time
- ``drawing``  their palette and style, and from a drawn figure to SVG
- ``page``     one HTML file with everything, that needs nothing else; ``page.css`` is its style

Only the pictures need matplotlib, and only when they draw.
"""

from __future__ import annotations

from bafogpt.reports.html import html
from bafogpt.reports.plots import figure_png
from bafogpt.reports.summary import Summary, summarise
from bafogpt.reports.terminal import terminal
from bafogpt.runs.store import RunStore

__all__ = ["FILE", "Summary", "figure_png", "html", "store", "summarise", "terminal"]

FILE = "report.html"
"""The report's name in the run's folder."""


def store(runs: RunStore, name: str) -> None:
    """Write ``runs/<name>/report.html`` from what the bucket holds now.

    Raises :class:`~bafogpt.core.errors.RunNotFoundError` and :class:`~bafogpt.core.errors.StorageError`.
    """
    runs.folder(name).put(FILE, html(summarise(runs, name)).encode("utf-8", "replace"))
