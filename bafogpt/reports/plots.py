"""The plots of a run: loss, learning rate and throughput over its steps, and the timeline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bafogpt.reports import plot_style, timeline
from bafogpt.reports.formatting import INTERRUPTIONS
from bafogpt.reports.plot_style import LIGHT, apart, thinned
from bafogpt.reports.summary import Summary
from bafogpt.runs.fields import get_float

STAGE, LOSS, SMALL = 0.26, 3.5, 1.1
"""Heights of the panels, inches."""
GAP, STAGE_GAP, TIMELINE_GAP = 0.5, 0.06, 1.0
DOTS = 60
"""With more validations, their line has no dots."""
LABELLED = 3
"""With more interruptions, their lines have no labels."""


def figure_svg(summary: Summary) -> str:
    """Loss, learning rate and throughput over the steps, and the timeline below; empty for a run without records."""
    training = bool(summary.curve or summary.validation)
    if not training and not summary.worker_spans:
        return ""
    with plot_style.style():
        return plot_style.svg(_figure(summary, training=training, details=True, timeline_below=True))


def figure_png(summary: Summary, path: Path, *, timeline_below: bool = True) -> None:
    """Loss over the steps and, below it, the timeline, as one PNG file.

    Raises :class:`ImportError` where matplotlib is not installed.
    """
    with plot_style.style():
        plot_style.png(_figure(summary, training=True, details=False, timeline_below=timeline_below), path)


def _figure(summary: Summary, *, training: bool, details: bool, timeline_below: bool) -> Any:
    """Panels from the top: stages, loss, ``details`` (learning rate, throughput), timeline."""
    strip, below = bool(summary.stages()), timeline_below and bool(summary.worker_spans)
    panels: list[tuple[float, float]] = []  # (gap above, height), inches
    if training:
        panels += [*[(0.0, STAGE)] * strip, (STAGE_GAP if strip else 0.0, LOSS), *[(GAP, SMALL)] * (2 * details)]
    if below:
        panels.append((TIMELINE_GAP, timeline.height(summary)))
    figure, axes = plot_style.panels([height for _, height in panels], gaps=[gap for gap, _ in panels[1:]])
    if training:
        steps = axes[:-1] if below else axes
        _share_steps(steps, summary)
        _loss_panel(steps[: 1 + strip], summary)
        if details:
            _learning_rate(steps[-2], summary)
            _throughput(steps[-1], summary)
            for each in steps[-2:]:
                _stage_bands(each, summary)
                _interruption_lines(each, summary)
        steps[-1].set_xlabel("step")
    if below:
        timeline.draw(axes[-1], summary)
    return figure


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
    """The loss, below a strip with the curriculum's stages if there are two ``axes``."""
    *strip, loss = axes
    plot_style.title(strip[0] if strip else loss, "Loss, nats a token")
    if strip:
        _stage_strip(strip[0], summary)
    _stage_bands(loss, summary)
    points = max(20, 2 * plot_style.POINTS // max(len(summary.superseded), 1))
    for lost in summary.superseded:  # wide, because repeated steps mostly have the same loss
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
    _interruption_lines(loss, summary)
    _label_interruptions(loss, summary)


def _learning_rate(axes: Any, summary: Summary) -> None:
    plot_style.title(axes, "Learning rate")
    _line(axes, *_split(summary.series("learning_rate")), color=LIGHT["rate"])
    axes.set_ylim(bottom=0)
    plot_style.few_ticks(axes)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-") if value else "0")


def _throughput(axes: Any, summary: Summary) -> None:
    """Tokens per second; the right axis shows the same line as MFU.

    Where the ratio of the two changes, because the run moved to another machine, MFU has a dashed line.
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


def _interruption_lines(axes: Any, summary: Summary) -> None:
    """A line at each interruption and at each resume; fainter when there are many."""
    interruptions = [float(each.last_step) for each in summary.interruptions if each.last_step is not None]
    resumes = [float(resume.step) for resume in summary.resumes]
    alpha = 1.0 if max(len(interruptions), len(resumes)) <= 2 * LABELLED else 0.3
    for steps, colour, line in ((interruptions, "kill", "-"), (resumes, "resume", (0, (4, 2)))):
        pieces = [(step, 0.0, step, 1.0) for step in steps]
        look = {"color": LIGHT[colour], "linestyle": line, "linewidth": 1, "alpha": alpha, "zorder": 1}
        plot_style.strokes(axes, pieces, transform=axes.get_xaxis_transform(), **look)


def _label_interruptions(axes: Any, summary: Summary) -> None:
    """Labels beside the lines: an interruption's to the right, a resume's to the left, so that they do not overlap."""
    if len(summary.interruptions) > LABELLED:
        return
    marks = [
        (each.last_step, f"✕ {INTERRUPTIONS[each.ended]}", "kill")
        for each in summary.interruptions
        if each.last_step is not None
    ]
    marks += [(resume.step, f"resumed from {resume.step:,} ▸", "resume") for resume in summary.resumes[:LABELLED]]
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
    """Room for labels above the highest point."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.08 * (top - bottom))


def _line(axes: Any, xs: Sequence[float], ys: Sequence[float], **look: Any) -> None:
    """A line, thinned; a very short one has dots."""
    if len(xs) < 3:
        look = {"marker": "o", "markersize": 4} | look
    axes.plot(*thinned(xs, ys), **look)


def _split(series: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in series], [y for _, y in series]
