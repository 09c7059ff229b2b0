"""Detects trainers that hang."""

from __future__ import annotations

import time
from collections.abc import Callable

from bafogpt.train.trainer_io import TrainerFiles


class HangDetector:
    """Whether trainers make progress: a line of metrics, or a checkpoint that grows or appears, is progress.

    They hang after ``first_s`` seconds without progress before the first line of metrics, after ``then_s`` later.
    Trainers that wait because ``max_pending`` checkpoints are being uploaded do not hang. ``clock`` is monotonic.
    """

    def __init__(
        self,
        trainer_files: TrainerFiles,
        attempt: int,
        *,
        first_s: float,
        then_s: float,
        max_pending: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer_files = trainer_files
        self._metrics = trainer_files.metrics(attempt)
        self._first_s = first_s
        self._then_s = then_s
        self._max_pending = max_pending
        self._clock = clock
        self._lines_before = self._size_of_metrics()
        self._seen = self._snapshot()
        self._since = clock()

    def hung(self) -> str | None:
        """Why the trainers hang, or None."""
        seen, now = self._snapshot(), self._clock()
        if seen != self._seen or len(seen[1]) >= self._max_pending:
            self._seen, self._since = seen, now
        idle_s = now - self._since
        if seen[0] == self._lines_before:
            return f"no first step after {self._first_s:g} s" if idle_s > self._first_s else None
        return f"no progress for {self._then_s:g} s" if idle_s > self._then_s else None

    def _snapshot(self) -> tuple[int, tuple[str, ...], int]:
        """(bytes of metrics, checkpoints that wait, bytes of the one being written)."""
        pending = tuple(path.name for path in self._trainer_files.pending())
        return self._size_of_metrics(), pending, self._trainer_files.partial_bytes()

    def _size_of_metrics(self) -> int:
        try:
            return self._metrics.stat().st_size
        except FileNotFoundError:
            return 0
