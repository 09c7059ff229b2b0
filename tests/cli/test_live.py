"""A bar under a run's lines: on a real terminal, with nothing lost, and gone afterwards; nowhere else."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bafogpt.cli import cloud
from bafogpt.cli.console.log_progress import Bar, progress_bar_below
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import ExitCode, JobFailedError
from bafogpt.core.settings import Settings
from bafogpt.launch.engines.base import EngineRun
from bafogpt.launch.engines.local import LocalEngine
from bafogpt.launch.plan import Plan
from bafogpt.runs.step_line import StepTimer, format_step, read_step
from tests import terminal
from tests.small_job import make_job
from tests.terminal import Screen

FULL, EMPTY = "█", "░"
OTHERS = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")
"""What a person may have set that decides about terminals."""
Launch = Callable[..., dict[str, str]]


def step(number: int, **over: Any) -> str:
    line = {"step": number, "loss": 2.5, "learning_rate": 1e-3, "tokens_per_s": 1234.0, "mfu": 0.125, "stage": "news"}
    return format_step(line | over, 60)


LINES = [
    "r1: attempt 1",
    step(1),
    "wide " * 40,
    "",
    "x" * 80,
    "\x1b[31mred\x1b[0m, [bold]no markup[/bold], 12:30 'quoted' {and: 1}",
    " 10 %\r 20 %\r100 %",
    step(2),
    step(59),
    "isiZulu: ngiyabonga — ĉu?",
    step(60),
    "saved   ",
    "r1: succeeded",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_here(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal, in this process; called by the test itself, after pytest has set its own."""
    made = Terminal()
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(terminal.COLUMNS))
    return made


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """``launch(then, lines)``: run r1, which prints the lines; gives the environment to ask for its logs in."""
    home = tmp_path / "home"
    engine = LocalEngine(Settings(home=str(home), bucket=f"file://{tmp_path}/bucket"))

    def launched(then: str = "", lines: list[str] = LINES) -> dict[str, str]:
        words = " ".join(shlex.quote(line) for line in lines)
        task = {"name": "r1", "run": f"printf '%s\\n' {words}; {then}", "envs": {}, "resources": {}}
        engine.launch(Plan(name="r1", job=make_job(), task=task, infra="local", root=tmp_path), resume=False)
        kept = {key: value for key, value in os.environ.items() if key not in OTHERS}
        return kept | {"BAFOGPT_HOME": str(home), "TERM": "xterm-256color", "PYTHONUTF8": "1"}

    yield launched
    engine.down("r1")


def logs(*more: str) -> list[str]:
    return ["-m", "bafogpt.cli.main", "cloud", "logs", "-f", "r1", *more]


def seen(lines: list[str]) -> list[str]:
    """What a terminal shows after these lines."""
    return Screen.of("".join(f"{line}\r\n" for line in lines)).text()


def test_on_a_terminal_a_bar_is_under_the_lines_and_goes_away_after_them(launch: Launch):
    code, written = terminal.run(logs(), launch())

    end = Screen.of(written)
    assert code == 0
    assert f"{FULL}{EMPTY}" in written
    assert "  step 59/60  loss 2.5000  1,234 tokens/s  MFU 12.5%  news" in written
    assert (end.text(), end.cursor) == (seen(LINES), True)


def test_ctrl_c_takes_the_bar_away_and_loses_no_line(launch: Launch):
    code, written = terminal.run(logs(), launch("sleep 60"), stop_at=b"r1: succeeded")

    end = Screen.of(written)
    assert code == ExitCode.INTERRUPTED
    assert (end.text(), end.cursor) == (seen(LINES), True)
    assert EMPTY in written


def test_where_no_bar_can_be_there_are_the_lines_alone(launch: Launch):
    environment = launch()

    dumb, on_dumb_terminal = terminal.run(logs(), environment | {"TERM": "dumb"})
    _, as_json = terminal.run(logs("--json"), environment)
    piped = subprocess.run([sys.executable, *logs()], env=environment, stdout=subprocess.PIPE, check=True)

    assert dumb == 0
    assert on_dumb_terminal == "".join(f"{line}\r\n" for line in LINES)
    assert [json.loads(line)["line"] for line in as_json.splitlines()] == LINES
    assert piped.stdout.decode() == "".join(f"{line}\n" for line in LINES)


def test_without_colour_the_bar_has_none(launch: Launch):
    lines = [line for line in LINES if "\x1b" not in line]

    code, written = terminal.run(logs(), launch(lines=lines) | {"NO_COLOR": "1"})

    assert (code, EMPTY in written) == (0, True)
    assert not re.search(r"\x1b\[[\d;]*m", written)
    assert Screen.of(written).text() == seen(lines)


class Fake:
    """An engine whose run prints the lines and then ends as it is told to."""

    def __init__(self, state: Any, lines: list[str] | None = None, error: BaseException | None = None) -> None:
        self._run = EngineRun(name="r1", infra="local", state=state, started="2026-01-01T00:00:00+00:00")
        self._lines = LINES if lines is None else lines
        self._error = error

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        yield from self._lines
        if self._error is not None:
            raise self._error

    def status(self, name: str) -> EngineRun:
        return self._run


def on_terminal(screen: Terminal) -> Screen:
    return Screen.of(screen.getvalue().replace("\n", "\r\n"))


def test_a_launch_that_is_watched_has_the_bar_where_its_lines_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    screen = terminal_here(monkeypatch)
    cloud._conclude(cloud._watch(Fake("succeeded"), "r1", Output.of()), Output.of())  # type: ignore[arg-type]

    end = on_terminal(screen)
    assert EMPTY in screen.getvalue()
    assert (end.text(), end.cursor) == (seen(LINES), True)
    assert capsys.readouterr().out == "r1 succeeded; see it: bafogpt runs show r1\n"


@pytest.mark.parametrize("error", [JobFailedError("gone", ""), KeyboardInterrupt()])
def test_an_error_in_the_midst_takes_the_bar_away(monkeypatch: pytest.MonkeyPatch, error: BaseException):
    screen = terminal_here(monkeypatch)
    with pytest.raises(type(error)):
        cloud._watch(Fake("running", error=error), "r1", Output.of())  # type: ignore[arg-type]

    end = on_terminal(screen)
    assert (end.text(), end.cursor) == (seen(LINES), True)
    assert sys.stderr is screen


@pytest.mark.parametrize("out", [Output.of(json=True), Output.of(quiet=True)])
def test_json_and_quiet_show_neither_lines_nor_a_bar(monkeypatch: pytest.MonkeyPatch, out: Output):
    screen = terminal_here(monkeypatch)
    cloud._watch(Fake("succeeded"), "r1", out)  # type: ignore[arg-type]

    assert screen.getvalue() == ""


def test_a_run_without_steps_has_no_bar(monkeypatch: pytest.MonkeyPatch):
    screen = terminal_here(monkeypatch)
    cloud._watch(Fake("succeeded", lines=["one", "two"]), "r1", Output.of())  # type: ignore[arg-type]

    assert screen.getvalue() == "one\ntwo\n"


def test_a_line_that_the_terminal_cannot_take_is_an_error_that_takes_the_bar_away(monkeypatch: pytest.MonkeyPatch):
    class Latin(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    terminal_here(monkeypatch)
    raw = io.BytesIO()
    with pytest.raises(UnicodeEncodeError), progress_bar_below(Output.of(), Latin(raw, "latin-1"), print) as show:
        show(step(1))
        show("café")
        show("→")

    end = Screen.of(raw.getvalue().decode("latin-1").replace("\n", "\r\n"))
    assert b"-----\x1b[0m  step 1/60" in raw.getvalue()
    assert (end.text(), end.cursor) == (seen(["café"]), True)


def test_a_warning_in_between_comes_above_the_bar(monkeypatch: pytest.MonkeyPatch):
    screen = terminal_here(monkeypatch)
    with progress_bar_below(Output.of(), screen, Output.of().say) as show:
        show(step(1))
        print("somebody warns", file=sys.stderr)
        show("more")

    assert on_terminal(screen).text() == seen([step(1), "somebody warns", "more"])


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def bar(pace: StepTimer, width: int, line: str) -> str:
    found = read_step(line)
    assert found is not None
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    with console.capture() as captured:
        console.print(Bar(found, pace))
    return captured.get()


def test_the_bar_shows_what_there_is_room_for(monkeypatch: pytest.MonkeyPatch):
    terminal_here(monkeypatch)
    clock = Clock()
    pace = StepTimer(clock)
    for number in (10, 12, 14):
        pace.record(number)
        clock.now += 3

    assert bar(pace, 200, step(15)) == (
        f"{FULL * 10}{EMPTY * 30}  step 15/60  loss 2.5000  1,234 tokens/s  1 min 08 s left  MFU 12.5%  news"
    )
    assert bar(pace, 80, step(15)).endswith("1,234 tokens/s  1 min 08 s left")
    assert bar(pace, 40, step(15)) == f"{FULL * 3}{EMPTY * 9}  step 15/60  loss 2.5000"
    assert bar(pace, 12, step(15)) == "step 15/6"
    assert " left" not in bar(pace, 200, step(60))
    assert "loss nan" in bar(pace, 200, step(15, loss=float("nan")))
    assert all(len(bar(pace, width, step(15))) <= width - 3 for width in range(4, 120))
