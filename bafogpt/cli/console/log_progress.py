"""A run's log on a terminal with a progress bar below it.

The log is printed line by line as it is; the bar shows the run's last step, from its metrics in the bucket. Without an
interactive terminal (a pipe, a file, a dumb terminal, ``--json``, ``--quiet``) there is no bar.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

from bafogpt.cli.console.output import Output
from bafogpt.core.errors import BafoError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

    from bafogpt.core.settings import Settings
    from bafogpt.reports.status import StepReader, TrainingStatus

Show = Callable[[str], None]

WIDEST, NARROWEST = 40, 10
"""Cells of the bar; facts are left out where it would have fewer."""
READ_EVERY_S = 5.0
"""Seconds between two reads of the bucket, at least."""
CLOSE_TIMEOUT_S = 3.0


class Steps(Protocol):
    """Where the bar gets a run's last step from."""

    @property
    def last(self) -> TrainingStatus | None: ...

    def on_line(self) -> None:
        """The run has printed a line, so there may be a new step."""

    def close(self) -> None: ...


class StepFollower:
    """Reads a run's last step from the bucket, in a thread: when the run has printed, every few seconds at most."""

    def __init__(self, run: str, settings: Settings) -> None:
        self.last: TrainingStatus | None = None
        self._run = run
        self._settings = settings
        self._reader: StepReader | None = None
        self._printed = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="steps", daemon=True)
        self._started = False

    def on_line(self) -> None:
        if not self._started:
            self._started = True
            with _uninterrupted():  # the thread inherits the mask: Ctrl-C is for the main thread
                self._thread.start()
        self._printed.set()

    def close(self) -> None:
        self._closed.set()
        self._printed.set()
        if self._started:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _follow(self) -> None:
        while True:
            self._printed.wait()
            self._printed.clear()
            if self._closed.is_set():
                return
            with contextlib.suppress(BafoError):  # the next read may reach the bucket
                self._read()
            if self._closed.wait(READ_EVERY_S):
                return

    def _read(self) -> None:
        from bafogpt.reports.status import StepReader
        from bafogpt.runs.store import RunStore
        from bafogpt.storage.bucket import Bucket

        store = RunStore(Bucket.open(self._settings.bucket, self._settings))
        self._reader = self._reader or StepReader(store, self._run)
        record = store.find(self._run)
        if record is not None and record.state == "running":
            self.last = self._reader.read(record)


@contextlib.contextmanager
def progress_bar_below(
    out: Output, stream: TextIO, show_plain: Show, steps: Steps, wanted: bool = True
) -> Iterator[Show]:
    """``with progress_bar_below(out, sys.stderr, out.say, steps) as show: show(line)``.

    ``show_plain`` prints a line on ``stream``; ``show`` does too, and draws the bar below it where that is possible and
    ``wanted``. The bar goes away at the end.
    """
    if not wanted or out.json or out.quiet or not stream.isatty():
        yield show_plain
        return
    from rich.console import Console

    console = Console(file=stream)
    if not (console.is_terminal and console.is_interactive) or console.is_dumb_terminal:
        yield show_plain
        return
    display = _Display(console, show_plain, steps)
    try:
        yield display.show
    finally:
        display.close()
        steps.close()


class Bar:
    """One terminal line: a bar, and as many facts as there is room for. Draws :attr:`status` each time."""

    def __init__(self, status: TrainingStatus) -> None:
        self.status = status

    def facts(self) -> list[str]:
        """The most important first."""
        from bafogpt.reports.formatting import duration

        status = self.status
        return [
            f"step {status.step}/{status.steps}",
            *([f"loss {status.loss:.4f}"] if status.loss is not None else []),
            *([f"{status.tokens_per_s:,.0f} tokens/s"] if status.tokens_per_s is not None else []),
            *([f"{duration(status.seconds_left)} left"] if status.seconds_left else []),
            *([f"MFU {status.mfu:.1%}"] if status.mfu is not None else []),
            *([status.stage] if status.stage else []),
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.cells import cell_len
        from rich.text import Text

        room = options.max_width - len("^C ")  # the terminal writes it after the bar, and it must not wrap
        facts = self.facts()
        while len(facts) > 1 and cell_len("  ".join(facts)) + 2 + NARROWEST > room:
            facts.pop()
        words = "  ".join(facts)
        width = min(WIDEST, max(0, room - 2 - cell_len(words)))
        share = self.status.step / self.status.steps if self.status.steps else 0.0
        line = Text.assemble((bar(share, width, options.ascii_only), "cyan"), "  " if width else "", words, end="")
        line.truncate(room)
        yield line


def bar(share: float, width: int, ascii_only: bool = False) -> str:
    """``width`` cells, ``share`` of them full."""
    full, empty = "#-" if ascii_only else "█░"
    filled = round(width * min(1.0, max(0.0, share)))
    return full * filled + empty * (width - filled)


class _Display:
    """Lines above, a :class:`Bar` below once a step is known."""

    def __init__(self, console: Console, show_plain: Show, steps: Steps) -> None:
        self._console = console
        self._show_plain = show_plain
        self._steps = steps
        self._bar: Bar | None = None
        self._live: Live | None = None

    def show(self, line: str) -> None:
        from rich.segment import Segment, Segments

        self._steps.on_line()
        status = self._steps.last
        if self._live is None:
            self._show_plain(line)
            if status is not None:
                self._start(status)
            return
        if self._bar is not None and status is not None:
            self._bar.status = status
        errors = getattr(self._console.file, "errors", None) or "strict"
        line.encode(self._console.encoding, errors)  # fails here, where Rich would keep the line and fail again
        with _uninterrupted():
            self._console.print(Segments([Segment(f"{line}\n")]), crop=False)  # neither wrapped nor coloured

    def close(self) -> None:
        if self._live is not None:
            with _uninterrupted():
                self._live.stop()

    def _start(self, status: TrainingStatus) -> None:
        from rich.live import Live

        self._bar = Bar(status)
        self._live = Live(
            self._bar,
            console=self._console,
            auto_refresh=False,  # the bar changes with the lines
            transient=True,
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),  # warnings are printed above the bar
        )
        with _uninterrupted():
            self._live.start(refresh=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the drawing is complete: Rich would draw an incomplete frame again."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
