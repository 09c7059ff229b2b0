"""A run's lines on a terminal with a bar under them: how far it is, taken from the lines of its steps that pass by.

Lines are written as they are: Rich takes the bar away before one and draws it again after it. Where nobody sees a bar
(a pipe, a file, a dumb terminal, ``--json``, ``--quiet``) there are the lines alone.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from bafogpt.cli.console.output import Output
from bafogpt.cli.monitor import bar

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

    from bafogpt.runs.step_line import Step, StepTimer

Show = Callable[[str], None]

WIDEST, NARROWEST = 40, 10
"""Cells of the bar itself; where it would have fewer, facts are left out for it."""


@contextlib.contextmanager
def progress_bar_below(out: Output, stream: TextIO, plain: Show, wanted: bool = True) -> Iterator[Show]:
    """``with bar_under(out, sys.stderr, out.say) as show: show(line)``: ``plain`` puts a line on ``stream``, and
    ``show`` does the same with a bar below wherever that can be and is ``wanted``. The bar goes away at the end."""
    if not wanted or out.json or out.quiet or not stream.isatty():
        yield plain
        return
    from rich.console import Console

    console = Console(file=stream)
    if not (console.is_terminal and console.is_interactive) or console.is_dumb_terminal:
        yield plain
        return
    display = _Display(console, plain, out.clock)
    try:
        yield display.show
    finally:
        display.close()


class Bar:
    """One line for a terminal: a bar, and as many facts as there is room for. Drawn anew from :attr:`step`."""

    def __init__(self, step: Step, pace: StepTimer) -> None:
        self.step = step
        self._pace = pace

    def facts(self) -> list[str]:
        """The most important first."""
        from bafogpt.reports.formatting import duration

        step, seconds = self.step, self._pace.seconds()
        left = [] if seconds is None or step.number >= step.steps else [seconds * (step.steps - step.number)]
        return [
            f"step {step.number}/{step.steps}",
            f"loss {step.loss:.4f}",
            f"{step.tokens_per_s:,.0f} tokens/s",
            *(f"{duration(each)} left" for each in left),
            f"MFU {step.mfu:.1%}",
            *([step.stage] if step.stage else []),
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.cells import cell_len
        from rich.text import Text

        room = options.max_width - len("^C ")  # which the terminal writes behind the bar, and must not begin a new row
        facts = self.facts()
        while len(facts) > 1 and cell_len("  ".join(facts)) + 2 + NARROWEST > room:
            facts.pop()
        words = "  ".join(facts)
        width = min(WIDEST, max(0, room - 2 - cell_len(words)))
        share = self.step.number / self.step.steps if self.step.steps else 0.0
        line = Text.assemble((bar(share, width, options.ascii_only), "cyan"), "  " if width else "", words, end="")
        line.truncate(room)
        yield line


class _Display:
    """Lines above, a :class:`Bar` below from the first step on."""

    def __init__(self, console: Console, plain: Show, clock: Callable[[], float]) -> None:
        from bafogpt.runs.step_line import StepTimer

        self._console = console
        self._plain = plain
        self._pace = StepTimer(clock)
        self._bar: Bar | None = None
        self._live: Live | None = None

    def show(self, line: str) -> None:
        from rich.segment import Segment, Segments

        from bafogpt.runs.step_line import read_step

        step = read_step(line)
        if step is not None:
            self._pace.record(step.number)
            if self._bar is not None:
                self._bar.step = step
        if self._live is not None:
            errors = getattr(self._console.file, "errors", None) or "strict"
            line.encode(self._console.encoding, errors)  # fails here, where Rich would keep the line and fail again
            with _whole():
                self._console.print(Segments([Segment(f"{line}\n")]), crop=False)  # neither wrapped nor coloured
            return
        self._plain(line)
        if step is not None:
            self._begin(step)

    def close(self) -> None:
        if self._live is not None:
            with _whole():
                self._live.stop()

    def _begin(self, step: Step) -> None:
        from rich.live import Live

        self._bar = Bar(step, self._pace)
        self._live = Live(
            self._bar,
            console=self._console,
            auto_refresh=False,  # no thread: the bar changes with the lines
            transient=True,
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),  # a warning of somebody's does not end up in the bar
        )
        with _whole():
            self._live.start(refresh=True)


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Ctrl-C waits for the end of what is being drawn: Rich would draw once more what was drawn by half."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
