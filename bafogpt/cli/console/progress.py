"""Progress of a long step on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

INTERVAL_S = 5.0
"""Seconds between two lines. A shorter step prints none."""

Advance = Callable[[int], None]


@contextlib.contextmanager
def bar(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A bar that goes away at the end of the step."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        *([TransferSpeedColumn()] if unit == "B" else []),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, amount="")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, completed=done, amount=_amount(done, total, unit))

        yield advance


@contextlib.contextmanager
def lines(label: str, total: int | None, unit: str, clock: Callable[[], float]) -> Iterator[Advance]:
    """A line every :data:`INTERVAL_S` seconds of ``clock``, and a closing one if there was any.

    ``advance`` may be called from several threads.
    """
    began = last = clock()
    done = 0
    lock = threading.Lock()

    def advance(count: int) -> None:
        nonlocal done, last
        with lock:
            done += count
            now = clock()
            if now - last >= INTERVAL_S:
                last = now
                share = f"{100 * done / total:.0f} % " if total else ""
                pace = _pace(done, total, now - began) if unit == "B" else ""
                print(f"{label}: {share}({_amount(done, total, unit)}{pace})", file=sys.stderr, flush=True)

    yield advance
    if last > began:
        print(f"{label}: done ({_amount(done, None, unit)} in {clock() - began:.0f} s)", file=sys.stderr, flush=True)


@contextlib.contextmanager
def silent() -> Iterator[Advance]:
    """No output."""
    yield lambda count: None


def _amount(done: int, total: int | None, unit: str) -> str:
    """``"12 of 30 shards"``; bytes (unit ``"B"``) in megabytes."""
    if unit == "B":
        of = f" of {total / 1e6:,.1f}" if total else ""
        return f"{done / 1e6:,.1f}{of} MB"
    of = f" of {total:,}" if total else ""
    return f"{done:,}{of} {unit}".rstrip()


def _pace(done: int, total: int | None, seconds: float) -> str:
    """Rate and time left of a transfer: ``", 5.0 MB/s, 1:12 left"``."""
    rate = done / seconds
    if not total or rate <= 0:
        return f", {rate / 1e6:,.1f} MB/s"
    left = round(max(total - done, 0) / rate)
    return f", {rate / 1e6:,.1f} MB/s, {left // 60}:{left % 60:02d} left"
