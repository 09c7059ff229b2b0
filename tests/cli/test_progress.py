"""Progress: a bar on a terminal, a line now and then elsewhere, nothing where no one watches."""

from __future__ import annotations

import io
import sys

import pytest

from bafogpt.cli.console.output import Output


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_five_seconds_and_one_at_the_end(capsys):
    clock = Clock()

    with Output(clock=clock).progress("uploading", total=30, unit="shards") as advance:
        for _ in range(12):
            clock.now += 1
            advance(1)

    assert capsys.readouterr().err.splitlines() == [
        "uploading: 17 % (5 of 30 shards)",
        "uploading: 33 % (10 of 30 shards)",
        "uploading: done (12 shards in 12 s)",
    ]


def test_a_step_that_is_soon_over_prints_nothing(capsys):
    with Output(clock=Clock()).progress("uploading", total=3) as advance:
        advance(3)

    assert capsys.readouterr() == ("", "")


def test_bytes_are_shown_in_megabytes_and_a_total_may_be_unknown(capsys):
    clock = Clock()

    with Output(clock=clock).progress("reading", total=None, unit="B") as advance:
        clock.now += 5
        advance(2_500_000)

    assert capsys.readouterr().err.splitlines()[0] == "reading: (2.5 MB, 0.5 MB/s)"


def test_a_transfer_shows_its_rate_and_the_time_left(capsys):
    clock = Clock()

    with Output(clock=clock).progress("copying", total=50_000_000, unit="B") as advance:
        clock.now += 5
        advance(2_500_000)

    assert capsys.readouterr().err.splitlines()[0] == "copying: 5 % (2.5 of 50.0 MB, 0.5 MB/s, 1:35 left)"


@pytest.mark.parametrize("out", [Output(quiet=True, clock=Clock()), Output(json=True, clock=Clock())])
def test_quiet_and_json_show_none(capsys, out):
    with out.progress("uploading", total=3) as advance:
        out.clock.now += 60
        advance(3)

    assert capsys.readouterr() == ("", "")


def test_a_failure_passes_through_and_is_not_called_done(capsys):
    clock = Clock()

    with pytest.raises(KeyError), Output(clock=clock).progress("uploading", total=3) as advance:
        clock.now += 60
        advance(1)
        raise KeyError("x")

    assert "done" not in capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")

    with Output().progress("uploading [1]", total=30, unit="shards") as advance:
        advance(12)

    assert "uploading [1]" in screen.getvalue()
    assert "12 of 30 shards" in screen.getvalue()
