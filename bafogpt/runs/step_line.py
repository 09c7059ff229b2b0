"""The line that a run prints for each step, and what can be read from it again."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PRINT_EVERY_S = 1.0
"""Least time between two of these lines."""
RECENT = 20
"""Lines over which :class:`StepTimer` takes the mean."""
_NUMBER = r"(-?(?:\d[\d,]*(?:\.\d+)?|nan|inf))"
_STEP_LINE = re.compile(
    rf"step +(\d+)/(\d+)  loss {_NUMBER}  lr \S+ +{_NUMBER} tokens/s  MFU {_NUMBER}%(?:  ([^\x00-\x1f\x7f]*))?"
)
"""What :func:`format_step` writes."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One printed step."""

    number: int
    steps: int
    """Steps of the whole run."""
    loss: float
    tokens_per_s: float
    mfu: float
    """0 to 1."""
    stage: str


def format_step(line: dict[str, Any], steps: int) -> str:
    """The printed line of one metrics record."""
    return (
        f"step {line['step']:>6}/{steps}  loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  "
        f"{line['tokens_per_s']:>9,.0f} tokens/s  MFU {line['mfu']:.1%}  {line['stage']}"
    )


def read_step(line: str) -> Step | None:
    """The step in a line of :func:`format_step`; None for any other line."""
    found = _STEP_LINE.fullmatch(line.rstrip())
    if found is None:
        return None
    number, steps, loss, tokens_per_s, mfu, stage = found.groups(default="")
    return Step(
        number=int(number),
        steps=int(steps),
        loss=float(loss),
        tokens_per_s=float(tokens_per_s.replace(",", "")),
        mfu=float(mfu) / 100,
        stage=stage,
    )


class StepTimer:
    """Seconds a step, by the reader's own clock, from step lines as they arrive.

    Lines that arrive together, such as those printed before the reader came, count as one. The first is not counted,
    because its age is unknown.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._points: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def record(self, step: int) -> None:
        """``step`` is done."""
        now = self._clock()
        if self._points and step < self._points[-1][1]:
            self._points.clear()  # the run resumed from an earlier checkpoint
        if self._points and now - self._points[-1][0] < PRINT_EVERY_S / 2:
            self._points.pop()  # the earlier line was late
        self._points.append((now, step))

    def seconds(self) -> float | None:
        """Seconds a step; None while unknown."""
        if len(self._points) < 3:
            return None
        (since, first), (until, last) = self._points[1], self._points[-1]
        return (until - since) / (last - first) if last > first else None
