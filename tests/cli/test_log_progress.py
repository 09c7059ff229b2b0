"""A progress bar below a run's log: on a real terminal, no line lost, gone at the end; nowhere else."""

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
from bafogpt.cli.console import log_progress
from bafogpt.cli.console.log_progress import Bar, StepFollower, progress_bar_below
from bafogpt.cli.console.output import Output
from bafogpt.core import process
from bafogpt.core.errors import ExitCode, JobFailedError
from bafogpt.core.settings import Settings
from bafogpt.launch.engines.base import EngineRun
from bafogpt.launch.engines.local import LocalEngine
from bafogpt.launch.plan import Plan
from bafogpt.reports.status import TrainingStatus
from tests import terminal
from tests.reports import synthetic
from tests.reports.synthetic import NAME
from tests.small_job import make_job
from tests.terminal import Screen

FULL, EMPTY = "█", "░"
TERMINAL_VARIABLES = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")
LINES = [
    "r1: attempt 1",
    "wide " * 40,
    "",
    "x" * 80,
    "\x1b[31mred\x1b[0m, [bold]no markup[/bold], 12:30 'quoted' {and: 1}",
    " 10 %\r 20 %\r100 %",
    "isiZulu: ngiyabonga — ĉu?",
    "saved   ",
    "r1: succeeded",
]
TICKS = "until [ -e {go} ]; do echo tick; sleep 0.1; done; echo end"
Launch = Callable[..., dict[str, str]]


def at_step(step: int, **changes: Any) -> TrainingStatus:
    values = {"loss": 2.5, "tokens_per_s": 1234.0, "mfu": 0.125, "stage": "news", "seconds_left": 68.0}
    return TrainingStatus(**({"step": step, "steps": 60} | values | changes))


class FixedSteps:
    """Steps that are known from the first line on, or never."""

    def __init__(self, last: TrainingStatus | None = None) -> None:
        self.last = last
        self.closed = False

    def on_line(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_here(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal in this process; called by the test itself, after pytest has set its own."""
    made = Terminal()
    for name in TERMINAL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(terminal.COLUMNS))
    return made


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """``launch(then, lines)``: run r1, which prints the lines, at step 30 of 120; returns the environment for its
    logs."""
    home, records = tmp_path / "home", synthetic.new(tmp_path)
    records.train(1, 30)
    for info in (folder := records.store.folder(NAME)).list("metrics/"):
        records.store.folder("r1").put(info.path, folder.get(info.path))
    records.save(name="r1", state="running", step=30)
    engine = LocalEngine(Settings(home=str(home), bucket=f"file://{tmp_path}/bucket"))

    def launched(then: str = "", lines: list[str] = LINES) -> dict[str, str]:
        words = " ".join(shlex.quote(line) for line in lines)
        task = {"name": "r1", "run": f"printf '%s\\n' {words}; {then}", "envs": {}, "resources": {}}
        engine.launch(Plan(name="r1", job=make_job(), task=task, infra="local", root=tmp_path), resume=False)
        kept = {key: value for key, value in os.environ.items() if key not in TERMINAL_VARIABLES}
        bucket = {"BAFOGPT_HOME": str(home), "BAFOGPT_BUCKET": f"file://{tmp_path}/bucket"}
        return kept | bucket | {"TERM": "xterm-256color", "PYTHONUTF8": "1"}

    yield launched
    engine.down("r1")


def logs(*more: str) -> list[str]:
    return ["-m", "bafogpt.cli.main", "cloud", "logs", "-f", "r1", *more]


def seen(lines: list[str]) -> list[str]:
    """What a terminal shows after these lines."""
    return Screen.of("".join(f"{line}\r\n" for line in lines)).text()


def with_ticks(end: Screen, *last: str) -> list[str]:
    """The same with as many ticks as ``end`` shows."""
    return seen([*LINES, *["tick"] * end.text().count("tick"), *last])


@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal_a_bar_is_below_the_log_and_goes_away_at_the_end(launch: Launch, tmp_path: Path, colour: bool):
    go = tmp_path / "go"
    environment = launch(TICKS.format(go=go), LINES if colour else [LINES[0]])
    environment |= {} if colour else {"NO_COLOR": "1"}
    code, written = terminal.run(logs(), environment, on=b"step 30/120", do=lambda _: go.touch())

    end = Screen.of(written)
    assert code == 0
    assert f"{FULL}{EMPTY}" in written and "tokens/s" in written
    assert bool(re.search(r"\x1b\[[\d;]*m", written)) == colour
    assert end.cursor
    assert end.text() == (with_ticks(end, "end") if colour else seen([LINES[0], *end.text()[1:-1]]))


def test_ctrl_c_takes_the_bar_away_and_loses_no_line(launch: Launch, tmp_path: Path):
    environment = launch(TICKS.format(go=tmp_path / "never"))
    code, written = terminal.run(logs(), environment, on=b"step 30/120", do=terminal.ctrl_c)

    end = Screen.of(written)
    assert code == ExitCode.INTERRUPTED
    assert (end.text(), end.cursor) == (with_ticks(end), True)


def test_where_no_bar_can_be_there_are_the_lines_alone(launch: Launch):
    environment = launch()

    dumb, on_dumb_terminal = terminal.run(logs(), environment | {"TERM": "dumb"})
    _, as_json = terminal.run(logs("--json"), environment)
    piped = subprocess.run([sys.executable, *logs()], env=environment, stdout=subprocess.PIPE, check=True)

    assert dumb == 0
    assert on_dumb_terminal == "".join(f"{line}\r\n" for line in LINES)
    assert [json.loads(line)["line"] for line in as_json.splitlines()] == LINES
    assert piped.stdout.decode() == "".join(f"{line}\n" for line in LINES)


class FakeEngine:
    """An engine whose run prints the lines, then ends in ``state`` or with ``error``."""

    def __init__(self, state: Any, error: BaseException | None = None) -> None:
        self._run = EngineRun(name="r1", infra="local", state=state, started="2026-01-01T00:00:00+00:00")
        self._error = error

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        yield from LINES
        if self._error is not None:
            raise self._error

    def status(self, name: str) -> EngineRun:
        return self._run


def on_terminal(screen: Terminal) -> Screen:
    return Screen.of(screen.getvalue().replace("\n", "\r\n"))


def test_a_watched_launch_has_the_bar_below_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    screen, steps = terminal_here(monkeypatch), FixedSteps(at_step(59))
    cloud._conclude(cloud._watch(FakeEngine("succeeded"), "r1", Output(), steps), Output())  # type: ignore[arg-type]

    end = on_terminal(screen)
    assert "  step 59/60  loss 2.5000  1,234 tokens/s  1 min 08 s left" in screen.getvalue()
    assert (end.text(), end.cursor, steps.closed) == (seen(LINES), True, True)
    assert capsys.readouterr().out == "r1 succeeded; see it: bafogpt runs show r1\n"


@pytest.mark.parametrize("error", [JobFailedError("gone", ""), KeyboardInterrupt()])
def test_an_error_in_the_midst_takes_the_bar_away(monkeypatch: pytest.MonkeyPatch, error: BaseException):
    screen, steps = terminal_here(monkeypatch), FixedSteps(at_step(59))
    with pytest.raises(type(error)):
        cloud._watch(FakeEngine("running", error), "r1", Output(), steps)  # type: ignore[arg-type]

    end = on_terminal(screen)
    assert (end.text(), end.cursor, steps.closed) == (seen(LINES), True, True)
    assert sys.stderr is screen


@pytest.mark.parametrize(
    ("out", "steps", "shown"),
    [
        (Output(json=True), FixedSteps(at_step(1)), []),
        (Output(quiet=True), FixedSteps(at_step(1)), []),
        (Output(), FixedSteps(), LINES),
    ],
    ids=["json", "quiet", "no step"],
)
def test_json_quiet_and_a_run_without_steps_have_no_bar(
    monkeypatch: pytest.MonkeyPatch, out: Output, steps: FixedSteps, shown: list[str]
):
    screen = terminal_here(monkeypatch)
    cloud._watch(FakeEngine("succeeded"), "r1", out, steps)  # type: ignore[arg-type]

    assert screen.getvalue() == "".join(f"{line}\n" for line in shown)


def test_a_line_that_the_terminal_cannot_encode_is_an_error_that_takes_the_bar_away(monkeypatch: pytest.MonkeyPatch):
    class Latin(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    terminal_here(monkeypatch)
    raw, steps = io.BytesIO(), FixedSteps(at_step(1))
    with (
        pytest.raises(UnicodeEncodeError),
        progress_bar_below(Output(), Latin(raw, "latin-1"), lambda _: None, steps) as show,
    ):
        show("one")
        show("café")
        show("→")

    end = Screen.of(raw.getvalue().decode("latin-1").replace("\n", "\r\n"))
    assert b"-----\x1b[0m  step 1/60" in raw.getvalue()
    assert (end.text(), end.cursor) == (seen(["café"]), True)


def test_a_warning_is_printed_above_the_bar(monkeypatch: pytest.MonkeyPatch):
    screen = terminal_here(monkeypatch)
    with progress_bar_below(Output(), screen, Output().say, FixedSteps(at_step(1))) as show:
        show("one")
        print("a warning", file=sys.stderr)
        show("more")

    assert on_terminal(screen).text() == seen(["one", "a warning", "more"])


def test_the_last_step_is_read_from_the_bucket_when_the_run_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_progress, "READ_EVERY_S", 0.0)
    follower = StepFollower(NAME, Settings(bucket=f"file://{tmp_path}/bucket"))
    follower.on_line()  # no bucket yet
    run = synthetic.new(tmp_path)

    def shows(step: int) -> bool:
        follower.on_line()
        return follower.last is not None and follower.last.step == step

    run.train(1, 30)
    run.save(state="running", step=0)
    assert process.wait_until(lambda: shows(30), timeout_s=30)
    run.train(31, 33)
    assert process.wait_until(lambda: shows(33), timeout_s=30)
    follower.close()
    assert not follower._thread.is_alive()


def bar(width: int, status: TrainingStatus) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    with console.capture() as captured:
        console.print(Bar(status))
    return captured.get()


def test_the_bar_shows_what_there_is_room_for(monkeypatch: pytest.MonkeyPatch):
    terminal_here(monkeypatch)
    status = at_step(15)

    assert bar(200, status) == (
        f"{FULL * 10}{EMPTY * 30}  step 15/60  loss 2.5000  1,234 tokens/s  1 min 08 s left  MFU 12.5%  news"
    )
    assert bar(80, status).endswith("1,234 tokens/s  1 min 08 s left")
    assert bar(40, status) == f"{FULL * 3}{EMPTY * 9}  step 15/60  loss 2.5000"
    assert bar(12, status) == "step 15/6"
    assert "loss" not in bar(200, at_step(15, loss=None))
    assert " left" not in bar(200, at_step(60, seconds_left=0.0))
    assert all(len(bar(width, status)) <= width - 3 for width in range(4, 120))
