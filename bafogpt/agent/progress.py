"""A run's progress, from the metrics that its trainers write."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PRINT_EVERY_S = 1.0
"""Seconds between two printed steps, at least."""


class JsonlTail:
    """Reads the complete JSON lines that were appended to a file since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # the rest comes with a later write
                self._position += len(raw)
                with contextlib.suppress(ValueError):
                    yield json.loads(raw)


def format_step(line: dict[str, Any], steps: int) -> str:
    """One metrics record as a line of the log."""
    return (
        f"step {line['step']:>6}/{steps}  loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  "
        f"{line['tokens_per_s']:>9,.0f} tokens/s  MFU {line['mfu']:.1%}  {line['stage']}"
    )


class Progress:
    """Follows the metrics of one attempt and prints a line of them from time to time.

    ``step_s`` is how long the last step took, in seconds; 0 while unknown.
    """

    def __init__(self, path: Path, steps: int, log: Callable[[str], None]) -> None:
        self._tail = JsonlTail(path)
        self._steps = steps
        self._log = log
        self._printed_at = 0.0
        self._last: tuple[int, float] | None = None
        self.step_s = 0.0

    def follow(self, quiet: bool) -> int | None:
        """Read what was written since the last call; returns the last finished step, if there is a new one.

        A line is printed at most once a second where ``quiet``.
        """
        step = None
        for line in self._tail.read():
            if "loss" not in line:
                continue
            step = int(line["step"])
            if self._last and step > self._last[0]:
                self.step_s = (line["seconds"] - self._last[1]) / (step - self._last[0])
            self._last = (step, line["seconds"])
            if not quiet or step == self._steps or time.monotonic() - self._printed_at >= PRINT_EVERY_S:
                self._printed_at = time.monotonic()
                self._log(format_step(line, self._steps))
        return step
