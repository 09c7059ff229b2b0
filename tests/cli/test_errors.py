"""Exceptions as the user meets them: two lines, an exit code, and a traceback only on request."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import typer

from bafogpt.cli.console.errors import EXTRAS, explain
from bafogpt.core import errors
from bafogpt.core.errors import ExitCode


def raising(error):
    def run(json: bool = False) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BafoError("it broke", "mend it"), ExitCode.FAILURE),
        (errors.ConfigError("it broke", "mend it"), ExitCode.USAGE),
        (errors.AuthError("it broke", "mend it"), ExitCode.AUTH),
        (errors.RunNotFoundError("it broke", "mend it"), ExitCode.JOB_NOT_FOUND),
        (errors.JobFailedError("it broke", "mend it"), ExitCode.JOB_FAILED),
        (errors.JobCancelledError("it broke", "mend it"), ExitCode.JOB_CANCELLED),
    ],
)
def test_an_error_of_ours_is_its_message_its_hint_and_its_code(cli, stub, error, code):
    stub(raising(error))

    ran = cli("stub", "run")

    assert (ran.code, ran.out) == (code, "")
    assert ran.err == "error: it broke\n hint: mend it\n"


def test_an_error_without_a_hint_is_one_line(cli, stub):
    stub(raising(errors.BafoError("it broke")))

    assert cli("stub", "run").err == "error: it broke\n"


def test_a_message_of_several_lines_is_told_on_one(cli, stub):
    stub(raising(errors.BafoError("it broke\n  here\nand there")))

    assert cli("stub", "run").err == "error: it broke here and there\n"


def test_with_json_an_error_is_one_object(cli, stub):
    stub(raising(errors.AuthError("no key", "export AWS_ACCESS_KEY_ID=…")))

    ran = cli("stub", "run", "--json")

    assert ran.code == ExitCode.AUTH
    assert json.loads(ran.err) == {"error": "no key", "hint": "export AWS_ACCESS_KEY_ID=…", "exit_code": 4}


def test_json_after_a_double_dash_belongs_to_somebody_else(cli):
    assert cli("config", "show", "--", "--json").err.startswith("error:")


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left", "/data/x"), "no space left on the disk: /data/x", "df -h /data/x"),
        (OSError(errno.EDQUOT, "Quota"), "no space left on the disk: .", "df -h ."),
        (PermissionError(errno.EACCES, "Denied", "/data"), "no permission for /data", "ls -ld /data"),
        (ModuleNotFoundError("No", name="torch"), "torch is not installed", "pip install 'bafogpt[train]'"),
        (ModuleNotFoundError("No", name="sky.jobs"), "sky.jobs is not installed", "pip install 'bafogpt[cloud]'"),
    ],
)
def test_what_the_machine_lacks_is_named(error, message, hint):
    failure = explain(error)

    assert (failure.message, failure.hint, failure.exit_code) == (message, hint, ExitCode.FAILURE)


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.EIO, "I/O"), ModuleNotFoundError("No", name="foo")])
def test_anything_else_is_a_defect(error):
    failure = explain(error)

    assert failure.message.startswith(f"bafogpt failed unexpectedly: {type(error).__name__}: ")
    assert failure.hint == "run it again with --debug and report the traceback"
    assert failure.exit_code == ExitCode.FAILURE


def test_a_defect_shows_a_traceback_only_with_debug(cli, stub, monkeypatch):
    stub(raising(KeyError("x")))

    assert "Traceback" not in cli("stub", "run").err
    assert "Traceback" in cli("--debug", "stub", "run").err
    assert "Traceback" in cli("stub", "run", "--debug").err
    monkeypatch.setenv("BAFOGPT_DEBUG", "1")
    assert "Traceback" in cli("stub", "run").err


def test_a_traceback_shows_no_values_of_variables(cli, stub):
    def run() -> None:
        password = "hunter" + "2"
        raise KeyError(len(password))

    stub(run)

    assert "hunter2" not in cli("stub", "run", "--debug").err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Exit(130)])
def test_an_interrupt_is_exit_code_130(cli, stub, error):
    stub(raising(error))

    ran = cli("stub", "run")

    assert ran.code == ExitCode.INTERRUPTED
    assert "Traceback" not in ran.err


def test_every_extra_that_is_advised_exists():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = {"sky": "skypilot"}

    for module, extra in EXTRAS.items():
        requirements = project["optional-dependencies"][extra]
        assert any(requirement.startswith(names.get(module, module)) for requirement in requirements), module


ENDLESS = """
import sys, types, typer, time
from bafogpt.cli import main as root
def run():
    while True:
        print("line " * 100, flush=True)
        if {slow}: time.sleep(60)
module = types.ModuleType("bafogpt.cli.stub"); module.app = typer.Typer(); module.app.command("run")(run)
sys.modules["bafogpt.cli.stub"] = module; root.COMMANDS["stub"] = ""
sys.exit(root.main(["stub", "run"]))
"""


def test_a_reader_that_leaves_is_no_reason_to_complain():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS.format(slow=False)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(timeout=30) == ExitCode.FAILURE
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_reader_that_leaves_before_the_last_flush_is_none_either():
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [sys.executable, "-m", "bafogpt.cli.main", "--version"], stdout=writer, stderr=subprocess.PIPE
    )

    os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.FAILURE, b"")


def test_ctrl_c_ends_the_process_with_130_and_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS.format(slow=True)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == ExitCode.INTERRUPTED
    assert b"Traceback" not in err
