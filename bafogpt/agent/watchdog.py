"""What a supervisor sees of its trainers from outside: their metrics, whether they get on, and what killed them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bafogpt.train.trainer_io import TrainerFiles

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")

PRINT_EVERY_S = 1.0
"""Seconds between two printed steps, at least."""


class JsonlTail:
    """Reads the whole JSON lines that were appended to a file since the last call."""

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
    """One metrics line as people see it in the log."""
    return (
        f"step {line['step']:>6}/{steps}  loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  "
        f"{line['tokens_per_s']:>9,.0f} tokens/s  MFU {line['mfu']:.1%}  {line['stage']}"
    )


class Progress:
    """Follows the metrics of one attempt, and shows now and then how far it is.

    ``step_s`` is how long a step took last, in seconds; 0 before that is known.
    """

    def __init__(self, path: Path, steps: int, say: Callable[[str], None]) -> None:
        self._tail = JsonlTail(path)
        self._steps = steps
        self._say = say
        self._shown = 0.0
        self._last: tuple[int, float] | None = None
        self.step_s = 0.0

    def follow(self, quiet: bool) -> int | None:
        """Read what was written since the last call, and show it where it is time, or where not ``quiet``.

        Returns the step that was done last, if there is a new one.
        """
        step = None
        for line in self._tail.read():
            if "loss" not in line:
                continue
            step = int(line["step"])
            if self._last and step > self._last[0]:
                self.step_s = (line["seconds"] - self._last[1]) / (step - self._last[0])
            self._last = (step, line["seconds"])
            if not quiet or step == self._steps or time.monotonic() - self._shown >= PRINT_EVERY_S:
                self._shown = time.monotonic()
                self._say(format_step(line, self._steps))
        return step


class HangDetector:
    """Whether trainers get on: a line of metrics, or a checkpoint that grows or appears, is a sign of life.

    ``first_s`` seconds without one are too many before the first line of metrics, ``then_s`` after it. Trainers that
    wait for room, because ``max_pending`` checkpoints wait for the bucket, are not to blame. ``clock`` is monotonic.
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
        self._seen = self._look()
        self._since = clock()

    def hung(self) -> str | None:
        """Why the trainers are taken for hung, or None."""
        seen, now = self._look(), self._clock()
        if seen != self._seen or len(seen[1]) >= self._max_pending:
            self._seen, self._since = seen, now
        silent = now - self._since
        if seen[0] == self._lines_before:
            return f"no first step after {self._first_s:g} s" if silent > self._first_s else None
        return f"no sign of life for {self._then_s:g} s" if silent > self._then_s else None

    def _look(self) -> tuple[int, tuple[str, ...], int]:
        """Bytes of metrics, checkpoints that wait, bytes of the one being written."""
        pending = tuple(path.name for path in self._trainer_files.pending())
        return self._size_of_metrics(), pending, self._trainer_files.partial_bytes()

    def _size_of_metrics(self) -> int:
        try:
            return self._metrics.stat().st_size
        except FileNotFoundError:
            return 0


class OutOfMemory:
    """Whether the kernel has killed a process of this machine, or container, for memory since this object was made."""

    def __init__(self, own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> None:
        self._counters = list(_counters(own, root))
        self._before = self._kills()

    def happened(self) -> bool:
        return self._kills() > self._before

    def _kills(self) -> int:
        return max((_kills(path) for path in self._counters), default=0)


def _counters(own: Path, root: Path) -> Iterator[Path]:
    """The files that count such kills: of version 2 of the kernel's control groups, and of version 1.

    In a container the group's own path often is that on the host, and the container's group lies at the root.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        kinds, _, path = line.partition(":")[2].partition(":")
        if not kinds:
            folder, name = root, "memory.events"
        elif "memory" in kinds.split(","):
            folder, name = root / "memory", "memory.oom_control"
        else:
            continue
        candidates = (folder / path.lstrip("/") / name, folder / name)
        yield from [candidate for candidate in candidates if candidate.exists()][:1]


def _kills(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
