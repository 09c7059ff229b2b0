"""Draws a tokenizer report: tokens per word of each tokenizer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bafogpt.core.errors import UsageError
from bafogpt.core.files import write_atomic
from bafogpt.data.vocabulary.report import TokenizerStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")
PAPER, INK, MUTED, GRID, TEXT, PROTECTED = "#fffffe", "#22262b", "#69717c", "#e3e6ea", "#2f6fb2", "#b8601a"
WIDTH, ROW, MARGIN = 8.4, 0.72, 1.1
"""Inches."""


def require_format(path: Path) -> None:
    """Raise :class:`UsageError` unless the suffix is a known format."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--picture {path}: not a {' or '.join(FORMATS)} file", "--picture a.svg")


def draw(rows: Sequence[TokenizerStats], path: Path, language: str, protect_language: str) -> None:
    """Write the figure to ``path`` (``.svg`` or ``.png``): a group of bars for each tokenizer.

    Equal rows give an equal file.
    """
    require_format(path)
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "tokenizer report", "font.size": 10, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, MARGIN + ROW * len(rows)), facecolor=PAPER, layout="constrained")
        axes = figure.add_subplot()
        _draw_bars(axes, rows, language, protect_language)
        axes.set_facecolor(PAPER)
        axes.set_yticks(range(len(rows)), [f"{row.name}\n{row.size:,}" for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("tokens per word (lower is better)", color=MUTED)
        axes.xaxis.grid(True, color=GRID)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)
        drawn = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        figure.savefig(drawn, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_atomic(path, drawn.getvalue())


def _draw_bars(axes: Axes, rows: Sequence[TokenizerStats], language: str, protect_language: str) -> None:
    """A bar for each tokenizer, or two with a legend where all have protected text."""
    protected = [row.protected.tokens_per_word for row in rows if row.protected]
    both = len(protected) == len(rows)
    height = 0.36 if both else 0.6
    groups = [(language, TEXT, -height / 2 if both else 0.0, [row.text.tokens_per_word for row in rows])]
    if both:
        groups.append((protect_language, PROTECTED, height / 2, protected))
    for label, colour, shift, values in groups:
        places = [position + shift for position in range(len(rows))]
        axes.barh(places, values, height=height * 0.92, color=colour, label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:.2f}", va="center", color=INK)
    axes.set_xlim(0, 1.1 * max(value for *_, values in groups for value in values))
    if both:
        axes.legend(frameon=False, loc="lower right")
