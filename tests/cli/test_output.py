"""The sink: what goes where, for people, programs and scripts."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bafogpt.cli.console.output import Output
from bafogpt.core.errors import ExitCode, UsageError

RUN = {"name": "demo", "step": 40, "loss": 2.3456, "tags": ["a", "b"], "gpu": None, "cost": {"usd": 1.5, "zar": 27.0}}
RUNS = [{"name": "demo", "state": "running", "step": 40}, {"name": "longer-name", "state": "done", "step": 1000}]
PEOPLE, PROGRAM, SCRIPT = Output(), Output(json=True), Output(quiet=True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """``out, err = terminal("y\n")`` makes all three streams a terminal on which that is typed.

    A call, because pytest puts streams of its own in place between a fixture and its test.
    """

    def make(typed=""):
        out, err = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        return out, err

    return make


def test_a_result_is_text_for_people_json_for_programs_and_an_id_for_scripts(capsys):
    for out in (PEOPLE, PROGRAM, SCRIPT):
        out.result(RUN, "demo: step 40", id="demo")

    people, program, script = capsys.readouterr().out.splitlines()
    assert people == "demo: step 40"
    assert json.loads(program) == RUN
    assert script == "demo"


def test_a_result_without_text_is_a_listing_of_keys_and_values(capsys):
    PEOPLE.result(RUN)

    assert capsys.readouterr().out.splitlines() == [
        "name      demo",
        "step      40",
        "loss      2.346",
        "tags      a, b",
        "gpu       -",
        "cost.usd  1.5",
        "cost.zar  27",
    ]


def test_text_is_printed_as_it_is(capsys):
    PEOPLE.result({}, "[bold]not markup[/bold] " + "x" * 300)

    assert capsys.readouterr().out == "[bold]not markup[/bold] " + "x" * 300 + "\n"


def test_rows_are_aligned_columns_where_there_is_no_terminal(capsys):
    PEOPLE.rows(RUNS, ["name", "step"], id="name")

    assert capsys.readouterr().out.splitlines() == ["NAME         STEP", "demo         40", "longer-name  1000"]


def test_rows_for_programs_are_whole_objects_and_for_scripts_ids(capsys):
    PROGRAM.rows(RUNS, ["name"], id="name")
    SCRIPT.rows(RUNS, ["step"], id="name")

    *objects, first, second = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in objects] == RUNS
    assert [first, second] == ["demo", "longer-name"]


@pytest.mark.parametrize("out", [PEOPLE, PROGRAM, SCRIPT])
def test_no_rows_print_nothing(capsys, out):
    out.rows(iter([]), ["name"], id="name")

    assert capsys.readouterr().out == ""


def test_rows_on_a_terminal_are_a_table_in_which_nothing_is_markup(terminal):
    screen, _ = terminal()

    Output().rows([{"name": "[red]demo[/red]", "step": 40}], ["name", "step"], id="name")

    text = screen.getvalue()
    assert "[red]demo[/red]" in text
    assert "\x1b[1m" in text


def test_no_color_takes_the_colour_away(terminal, monkeypatch):
    from rich.text import Text

    screen, _ = terminal()
    Output().result({}, Text("warm", style="red"))
    monkeypatch.setenv("NO_COLOR", "1")
    Output().result({}, Text("warm", style="red"))

    coloured, plain = screen.getvalue().splitlines()
    assert "\x1b[31m" in coloured
    assert plain == "warm"


def test_a_renderable_is_drawn_plainly_where_there_is_no_terminal(capsys):
    from rich.text import Text

    PEOPLE.result({}, Text("warm " + "x" * 200, style="red"))

    assert capsys.readouterr().out == "warm " + "x" * 200 + "\n"


def test_values_that_json_does_not_know_are_written_as_text(capsys):
    @dataclass
    class Point:
        x: int

    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    PROGRAM.result({"at": moment, "path": Path("a/b"), "code": ExitCode.AUTH, "point": Point(1), "set": {2, 1}})

    record = json.loads(capsys.readouterr().out)
    assert record == {"at": moment.isoformat(), "path": "a/b", "code": 4, "point": {"x": 1}, "set": [1, 2]}


def test_a_column_has_the_title_that_people_read_and_times_have_no_fractions(capsys):
    records = [{"name": "demo", "started": "2030-01-02T03:04:05.678+00:00", "price_per_hour": 4.56}]
    columns = {"name": "name", "started": "started", "price_per_hour": "$/hour"}
    PEOPLE.rows(records, columns, id="name")
    PROGRAM.rows(records, columns, id="name")

    assert capsys.readouterr().out.splitlines() == [
        "NAME  STARTED                    $/HOUR",
        "demo  2030-01-02 03:04:05+00:00  4.56",
        json.dumps(records[0]),
    ]


def test_a_number_that_is_none_is_null_in_json(capsys):
    PROGRAM.event({"loss": float("nan"), "curve": [{"loss": float("inf")}, 1.5]}, "")

    assert capsys.readouterr().out == '{"loss": null, "curve": [{"loss": null}, 1.5]}\n'


def test_json_keeps_letters_as_they_are(capsys):
    PROGRAM.result({"text": "isiZulu — ŋ"})

    assert "isiZulu — ŋ" in capsys.readouterr().out


def test_a_value_without_a_json_form_is_an_error_not_a_guess():
    with pytest.raises(TypeError, match="object has no JSON form"):
        PROGRAM.result({"x": object()})


def test_events_are_lines_for_people_objects_for_programs_and_nothing_for_scripts(capsys):
    for out in (PEOPLE, PROGRAM, SCRIPT):
        out.event({"step": 1}, "step 1")

    assert capsys.readouterr().out.splitlines() == ["step 1", '{"step": 1}']


def test_messages_go_to_stderr_and_quiet_has_none(capsys):
    for out in (PEOPLE, PROGRAM, SCRIPT):
        out.say("starting")

    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "starting\n" * 2)


@pytest.mark.parametrize("answer", ["y\n", "YES\n", " yes \n"])
def test_a_person_agrees_with_a_yes(terminal, answer):
    out, err = terminal(answer)

    assert Output().confirm("Launch for $2 an hour?", yes=False)
    assert (out.getvalue(), err.getvalue()) == ("", "Launch for $2 an hour? [y/N] ")


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "yep\n"])
def test_anything_but_a_yes_is_a_no(terminal, answer):
    terminal(answer)

    assert not Output().confirm("Launch?", yes=False)


def test_with_yes_nothing_is_asked(capsys):
    assert PEOPLE.confirm("Launch?", yes=True)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_a_question_is_an_error_and_does_not_hang(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))

    with pytest.raises(UsageError, match="no terminal to ask on: Launch") as caught:
        PEOPLE.confirm("Launch?", yes=False)
    assert "--yes" in caught.value.hint
