"""The pictures of a run: how it learned, over its steps; and what happened when, over wall time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bafogpt.reports import plot_style, timeline
from bafogpt.reports.formatting import KINDS
from bafogpt.reports.plot_style import LIGHT, apart, thinned
from bafogpt.reports.summary import Summary
from bafogpt.runs.fields import get_float

STAGE, LOSS, SMALL, GAP, STAGE_GAP = 0.26, 3.5, 1.1, 0.5, 0.06
"""Heights of the panels, inches."""
DOTS = 60
"""Validations drawn with a dot each; more are only a line."""
LABELLED_KILLS = 3
"""With more deaths than that, lines stand without words."""


def training_svg(summary: Summary) -> str:
    """Loss, learning rate and throughput over the steps; empty where there is nothing to draw."""
    if not summary.curve and not summary.validation:
        return ""
    with plot_style.style("training"):
        strip = bool(summary.stages())
        figure, axes = plot_style.panels([*[STAGE] * strip, LOSS, SMALL, SMALL], gaps=[*[STAGE_GAP] * strip, GAP, GAP])
        _share_steps(axes, summary)
        _loss_panel(axes[:-2], summary)
        _learning_rate(axes[-2], summary)
        _throughput(axes[-1], summary)
        for each in axes[-2:]:
            _stage_bands(each, summary)
            _death_lines(each, summary)
        axes[-1].set_xlabel("step")
        return plot_style.svg(figure, "Training and validation loss, learning rate and throughput over the steps")


def timeline_svg(summary: Summary) -> str:
    """Lives of the trainers and checkpoints over wall time; empty where there is nothing to draw."""
    if not summary.lives:
        return ""
    with plot_style.style("timeline"):
        figure, axes = plot_style.panels([timeline.height(summary)], gaps=[])
        timeline.draw(axes[0], summary)
        return plot_style.svg(figure, "When the trainers lived and when checkpoints were committed, over wall time")


def figure_png(summary: Summary, path: Path, *, timeline_below: bool = True) -> None:
    """Loss over the steps and, below it, the timeline, as one PNG file.

    Raises :class:`ImportError` where matplotlib is not installed.
    """
    with plot_style.style("png"):
        strip, below = bool(summary.stages()), timeline_below and bool(summary.lives)
        heights = [*[STAGE] * strip, LOSS, *[timeline.height(summary) if below else 0.0] * below]
        figure, axes = plot_style.panels(heights, gaps=[*[STAGE_GAP] * strip, *[1.0] * below])
        steps = axes[:-1] if below else axes
        _share_steps(steps, summary)
        _loss_panel(steps, summary)
        steps[-1].set_xlabel("step")
        if below:
            timeline.draw(axes[-1], summary)
        plot_style.png(figure, path)


def _share_steps(axes: Sequence[Any], summary: Summary) -> None:
    """The same steps along all axes, labels only below the last."""
    from matplotlib.ticker import MaxNLocator

    for each in axes:
        each.set_xlim(0, max(_last_step(summary), 1))
        each.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10]))
        each.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        each.tick_params(labelbottom=each is axes[-1])


def _last_step(summary: Summary) -> int:
    return max([point["step"] for point in summary.curve] + [step for step, _ in summary.validation], default=1)


def _loss_panel(axes: Sequence[Any], summary: Summary) -> None:
    """The loss, and above it a strip with the curriculum's stages if ``axes`` has one for it."""
    *strip, loss = axes
    plot_style.title(strip[0] if strip else loss, "Loss, nats a token")
    if strip:
        _stage_strip(strip[0], summary)
    _stage_bands(loss, summary)
    points = max(20, 2 * plot_style.POINTS // max(len(summary.superseded), 1))
    for lost in summary.superseded:  # a wide shade, because what is done again is mostly the same to the last digit
        steps = [line["step"] for line in lost]
        losses = [get_float(line, "loss") for line in lost]
        values = [math.nan if value is None else value for value in losses]
        loss.plot(*thinned(steps, values, points), color=LIGHT["train"], alpha=0.25, linewidth=7)
    training = summary.series("loss")
    _line(loss, *_split(training), color=LIGHT["train"])
    dots: dict[str, Any] = {}
    if len(summary.validation) <= DOTS:
        dots = {"marker": "o", "markersize": 4, "clip_on": False}
    _line(loss, *_split(summary.validation), color=LIGHT["validation"], linewidth=1.2, **dots)
    _headroom(loss)
    _name_lines(loss, [("training", "train", training), ("validation", "validation", summary.validation)])
    _death_lines(loss, summary)
    _name_deaths(loss, summary)


def _learning_rate(axes: Any, summary: Summary) -> None:
    plot_style.title(axes, "Learning rate")
    _line(axes, *_split(summary.series("learning_rate")), color=LIGHT["rate"])
    axes.set_ylim(bottom=0)
    plot_style.few_ticks(axes)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-") if value else "0")


def _throughput(axes: Any, summary: Summary) -> None:
    """Tokens a second; the right axis reads the same line as MFU.

    Where the ratio of the two changes, because the run moved to another machine, MFU is a dashed line of its own.
    """
    plot_style.title(axes, "Throughput, tokens/s")
    speed, mfu = summary.series("tokens_per_s"), summary.series("mfu")
    _line(axes, *_split(speed), color=LIGHT["train"])
    axes.set_ylim(0, 1.15 * max([value for _, value in speed if value > 0], default=1.0))
    plot_style.few_ticks(axes)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ratios = [m / s for (_, m), (_, s) in zip(mfu, speed, strict=True) if m > 0 and s > 0]
    if not ratios:
        return
    ratio = statistics.median(ratios)
    right = axes.twinx()
    right.set_ylim(0, axes.get_ylim()[1] * ratio)
    right.grid(visible=False)
    plot_style.few_ticks(right)
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %" if value else "")
    name = "MFU"
    if any(abs(each / ratio - 1) > 0.02 for each in ratios):
        name = "MFU, dashed"
        _line(right, *_split(mfu), color=LIGHT["muted"], linewidth=1.0, linestyle=(0, (3, 2)))
        right.set_ylim(top=max(right.get_ylim()[1], 1.15 * max(value for _, value in mfu if value > 0)))
    right.set_title(name, loc="right", fontsize=11, color=LIGHT["muted"], pad=7)


def _stage_strip(axes: Any, summary: Summary) -> None:
    """One labelled box a stage."""
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)
    points_a_step = 72 * plot_style.PLOT_WIDTH / _last_step(summary)
    for index, (name, first, last) in enumerate(summary.stages()):
        axes.axvspan(first, last, color=LIGHT["grid" if index % 2 else "band"], linewidth=0)
        if plot_style.text_width(name) < (last - first) * points_a_step - 8:
            axes.text((first + last) / 2, 0.46, name, ha="center", va="center", fontsize=10, color=LIGHT["muted"])


def _stage_bands(axes: Any, summary: Summary) -> None:
    """Every other stage lightly shaded."""
    for _, first, last in summary.stages()[::2]:
        axes.axvspan(first, last, color=LIGHT["band"], linewidth=0, zorder=-2)


def _death_lines(axes: Any, summary: Summary) -> None:
    """A line where trainers died and one where they went on; fainter the more there are."""
    deaths = [float(kill.step) for kill in summary.kills if kill.step is not None]
    resumes = [float(resume.step) for resume in summary.resumes]
    alpha = 1.0 if max(len(deaths), len(resumes)) <= 2 * LABELLED_KILLS else 0.3
    for steps, colour, line in ((deaths, "kill", "-"), (resumes, "resume", (0, (4, 2)))):
        pieces = [(step, 0.0, step, 1.0) for step in steps]
        look = {"color": LIGHT[colour], "linestyle": line, "linewidth": 1, "alpha": alpha, "zorder": 1}
        plot_style.strokes(axes, pieces, transform=axes.get_xaxis_transform(), **look)


def _name_deaths(axes: Any, summary: Summary) -> None:
    """Words beside the lines: a death's to the right, a resume's to the left, so that a pair never overlaps."""
    if len(summary.kills) > LABELLED_KILLS:
        return
    marks = [(kill.step, f"✕ {KINDS[kill.kind]}", "kill") for kill in summary.kills if kill.step is not None]
    marks += [(resume.step, f"resumed from {resume.step:,} ▸", "resume") for resume in summary.resumes[:LABELLED_KILLS]]
    last = _last_step(summary)
    seen = {"kill": 0, "resume": 0}
    for step, words, kind in marks:
        to_right = step < 0.8 * last if kind == "kill" else step < 0.2 * last
        row = 2 * seen[kind] + (kind == "resume")
        seen[kind] += 1
        axes.annotate(
            words,
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5 if to_right else -5, -4 - 15 * row),
            textcoords="offset points",
            ha="left" if to_right else "right",
            va="top",
            fontsize=10,
            color=LIGHT[kind],
            bbox={"facecolor": LIGHT["paper"], "alpha": 0.75, "linewidth": 0, "pad": 1},
        )


def _name_lines(axes: Any, lines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]) -> None:
    """Each line's name and last value at its right end, instead of a legend."""
    bottom, top = axes.get_ylim()
    named = []
    for name, colour, series in lines:
        finite = [value for _, value in series if math.isfinite(value)]
        if finite:
            named.append((f"{name} {finite[-1]:.3f}", colour, (finite[-1] - bottom) / (top - bottom)))
    heights = apart([height for _, _, height in named], least=0.07)
    for (words, colour, _), height in zip(named, heights, strict=True):
        axes.text(1.012, height, words, transform=axes.transAxes, va="center", color=LIGHT[colour])


def _headroom(axes: Any) -> None:
    """Room above the highest point for the words of kills and resumes."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.08 * (top - bottom))


def _line(axes: Any, xs: Sequence[float], ys: Sequence[float], **look: Any) -> None:
    """A line, thinned; with dots where it is so short that it would not be seen."""
    if len(xs) < 3:
        look = {"marker": "o", "markersize": 4} | look
    axes.plot(*thinned(xs, ys), **look)


def _split(series: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in series], [y for _, y in series]
