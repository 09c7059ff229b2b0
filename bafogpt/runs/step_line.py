"""The line that a run prints for each step."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

_NUMBER = r"(-?(?:[\d.,]+|nan|inf))"
_STEP_LINE = re.compile(
    rf"step +(\d+)/(\d+)  loss {_NUMBER}  lr \S+ +{_NUMBER} tokens/s  MFU {_NUMBER}%(?:  ([^\x00-\x1f\x7f]*))?"
)
"""What :func:`format_step` writes."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the line that a run prints for a step tells of it."""

    number: int
    steps: int
    """In all."""
    loss: float
    tokens_per_s: float
    mfu: float
    """0 to 1."""
    stage: str


def format_step(line: dict[str, Any], steps: int) -> str:
    """One metrics line for people, as a run prints it."""
    return (
        f"step {line['step']:>6}/{steps}  loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  "
        f"{line['tokens_per_s']:>9,.0f} tokens/s  MFU {line['mfu']:.1%}  {line['stage']}"
    )


def read_step(line: str) -> Step | None:
    """What :func:`format_step` put into words; None for any other line."""
    found = _STEP_LINE.fullmatch(line.rstrip())
    if found is None:
        return None
    number, steps, loss, tokens_per_s, mfu, stage = found.groups(default="")
    with contextlib.suppress(ValueError):  # digits and dots that are no number
        return Step(
            number=int(number),
            steps=int(steps),
            loss=float(loss),
            tokens_per_s=float(tokens_per_s.replace(",", "")),
            mfu=float(mfu) / 100,
            stage=stage,
        )
    return None
