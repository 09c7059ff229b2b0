"""The palette and style of plots, and figures as SVG or PNG.

A figure is drawn in the light palette. In SVG each colour becomes a CSS variable of the page (``--ink`` and so on), so
one plot serves the light and the dark scheme.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

LIGHT = {
    "paper": "#fffffe",
    "ink": "#22262b",
    "muted": "#69717c",
    "grid": "#e3e6ea",
    "band": "#f4f5f7",
    "train": "#2f6fb2",
    "validation": "#b8601a",
    "rate": "#6a5aa8",
    "kill": "#b3302a",
    "resume": "#1c7c54",
}
DARK = {
    "paper": "#14171b",
    "ink": "#e4e7eb",
    "muted": "#959eaa",
    "grid": "#2b3037",
    "band": "#1b1f25",
    "train": "#77aee8",
    "validation": "#e59a55",
    "rate": "#ab9fe6",
    "kill": "#ef857d",
    "resume": "#62c596",
}
WIDTH = 11.2
"""Inches. The page is a little wider than that at 72 pixels an inch, so 11 points are some 13 pixels there."""
TOP, BOTTOM, LEFT, RIGHT = 0.35, 0.55, 1.0, 1.5
PLOT_WIDTH = WIDTH - LEFT - RIGHT
POINTS = 800
"""Points drawn of one line at most; a longer one is thinned, its peaks kept."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings while a figure is drawn and written."""
    import matplotlib

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "bafogpt",  # the same ids each time
        "text.parse_math": False,
        "font.family": "DejaVu Sans",  # comes with matplotlib; the page replaces it
        "font.size": 11,
        "text.color": LIGHT["ink"],
        "axes.edgecolor": LIGHT["grid"],
        "axes.labelcolor": LIGHT["muted"],
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": LIGHT["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": LIGHT["muted"],
        "ytick.color": LIGHT["muted"],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "lines.linewidth": 1.6,
        "lines.solid_capstyle": "round",
        "path.simplify_threshold": 0.3,
    }
    with matplotlib.rc_context(settings):
        yield


def panels(heights: Sequence[float], gaps: Sequence[float]) -> tuple[Any, list[Any]]:
    """A figure with one axes under the other; ``heights``, and the ``gaps`` between them, in inches."""
    from matplotlib.figure import Figure

    assert len(gaps) == len(heights) - 1
    total = TOP + sum(heights) + sum(gaps) + BOTTOM
    figure = Figure(figsize=(WIDTH, total))
    axes, y = [], total - TOP
    for height, gap in zip(heights, [*gaps, 0.0], strict=True):
        y -= height
        axes.append(figure.add_axes((LEFT / WIDTH, y / total, PLOT_WIDTH / WIDTH, height / total)))
        y -= gap
    return figure, axes


def svg(figure: Any) -> str:
    """The figure as an ``<svg>`` element for a page that defines the palette's variables."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg ") :]  # without the XML declaration
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def png(figure: Any, path: Path) -> None:
    """The figure as a PNG file on the light palette's paper."""
    look = {"dpi": 144, "facecolor": "white", "bbox_inches": "tight", "pad_inches": 0.2}
    figure.savefig(path, format="png", metadata={"Software": None}, **look)


def thinned(xs: Sequence[float], ys: Sequence[float], points: int = POINTS) -> tuple[list[float], list[float]]:
    """At most about ``points`` of a line's points: the lowest and the highest of each stretch, in order."""
    if len(xs) <= points:
        return list(xs), list(ys)
    stretch = -(-len(xs) * 2 // points)
    kept: list[int] = []
    for start in range(0, len(xs), stretch):
        indices = range(start, min(start + stretch, len(xs)))
        numbers = [index for index in indices if ys[index] == ys[index]] or [start]
        kept += sorted({min(numbers, key=lambda i: ys[i]), max(numbers, key=lambda i: ys[i])})
    if kept[-1] != len(xs) - 1:
        kept.append(len(xs) - 1)
    return [xs[index] for index in kept], [ys[index] for index in kept]


def strokes(axes: Any, pieces: Iterable[tuple[float, float, float, float]], transform: Any = None, **look: Any) -> None:
    """Straight pieces (x0, y0, x1, y1) as one path, which keeps the file small however many there are."""
    xs, ys = [], []
    for x0, y0, x1, y1 in pieces:
        xs += [x0, x1, math.nan]
        ys += [y0, y1, math.nan]
    axes.plot(xs, ys, transform=transform or axes.transData, solid_capstyle="butt", **look)


def apart(positions: Sequence[float], least: float) -> list[float]:
    """``positions`` moved so that no two are nearer than ``least``, their order kept: places for labels."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = list(positions)
    for below, above in itertools.pairwise(order):
        lack = least - (moved[above] - moved[below])
        if lack > 0:
            moved[above] += lack / 2
            moved[below] -= lack / 2
    return moved


def title(axes: Any, text: str) -> None:
    """What a panel shows, at the figure's left edge."""
    place = {"xycoords": "axes fraction", "xytext": (-72 * LEFT, 9), "textcoords": "offset points"}
    axes.annotate(text, (0, 1), fontweight="bold", **place)


def few_ticks(axes: Any) -> None:
    """Labels for a low panel."""
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))


def text_width(text: str) -> float:
    """About how wide small text is drawn, points."""
    return 6.2 * len(text)
