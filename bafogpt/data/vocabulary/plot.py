"""A report as a figure: how many tokens a word costs in each tokenizer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from bafogpt.core.errors import UsageError
from bafogpt.core.files import write_atomic
from bafogpt.data.vocabulary.report import TextStats, TokenizerStats

FORMATS = (".svg", ".png")
PAPER, INK, MUTED, GRID, TEXT, PROTECTED = "#fffffe", "#22262b", "#69717c", "#e3e6ea", "#2f6fb2", "#b8601a"
WIDTH, ROW, MARGIN = 8.4, 0.72, 1.1
"""Inches."""


def require_format(path: Path) -> None:
    """Raise :class:`UsageError` unless the ending says what to draw."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--picture {path}: the ending says the format, {' or '.join(FORMATS)}", "--picture a.svg")


def draw(rows: Sequence[TokenizerStats], path: Path, language: str, protect_language: str) -> None:
    """Write the figure to ``path`` (``.svg`` or ``.png``): a group of bars a tokenizer, in the order of ``rows``.

    Equal rows give an equal file.
    """
    require_format(path)
    import matplotlib
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tokenizer report",
        "font.size": 10,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, MARGIN + ROW * len(rows)), facecolor=PAPER, layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor(PAPER)
        both = all(row.protected for row in rows)
        height = 0.36 if both else 0.6
        groups: list[tuple[str, str, float, list[TextStats]]] = [
            (language, TEXT, -height / 2 if both else 0.0, [row.text for row in rows])
        ]
        if both:
            groups.append((protect_language, PROTECTED, height / 2, [row.protected for row in rows if row.protected]))
        for label, colour, shift, costs in groups:
            places = [position + shift for position in range(len(rows))]
            values = [cost.tokens_per_word for cost in costs]
            axes.barh(places, values, height=height * 0.92, color=colour, label=label)
            for place, value in zip(places, values, strict=True):
                axes.text(value, place, f" {value:.2f}", va="center", color=INK)
        axes.set_yticks(range(len(rows)), [f"{row.name}\n{row.size:,}" for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("tokens a word (lower is better)", color=MUTED)
        axes.set_xlim(0, 1.1 * max(cost.tokens_per_word for *_, costs in groups for cost in costs))
        axes.xaxis.grid(True, color=GRID)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if both:
            axes.legend(frameon=False, loc="lower right")
        drawn = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        figure.savefig(drawn, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_atomic(path, drawn.getvalue())
