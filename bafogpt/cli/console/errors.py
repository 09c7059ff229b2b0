"""Every exception becomes two lines on stderr (what is wrong, what to type next) and an exit code.

Commands contain no ``try``. With ``--json`` the two lines are one JSON object; ``--debug`` (or ``BAFOGPT_DEBUG=1``)
prints the traceback first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import typer

from bafogpt.core.errors import BafoError, ExitCode, did_you_mean

EXTRAS = {
    "babel": "train",
    "bitsandbytes": "train",
    "jinja2": "train",
    "huggingface_hub": "hub",
    "lightning": "train",
    "litgpt": "train",
    "safetensors": "train",
    "tokenizers": "train",
    "torch": "train",
    "matplotlib": "cloud",
    "sky": "cloud",
    "starlette": "serve",
    "uvicorn": "serve",
    "wandb": "tracking",
}
"""The extra of the project that installs a module."""


@dataclass(frozen=True)
class ErrorReport:
    """What the user reads, one line each; the hint may be empty."""

    message: str
    hint: str
    exit_code: int


def guard(action: Callable[[], object], words: Sequence[str], debug: bool) -> int:
    """Run ``action``, print what it raises, and return the exit code of the process.

    ``words`` is the command line, read for ``--json``. ``action`` may return an exit code.
    """
    try:
        code = action()
        sys.stdout.flush()  # here, where a broken pipe can still be handled
    except BrokenPipeError:
        _abandon_stdout()
        return ExitCode.FAILURE
    except (Exception, KeyboardInterrupt) as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group's bare name: its message is the group's help
            print(error)
            return ExitCode.OK
        if debug:
            _print_traceback(error)
        report = explain(error)
        _print(report, as_json="--json" in own_words(words))
        return report.exit_code
    return code if type(code) is int else ExitCode.OK


def own_words(words: Sequence[str]) -> Sequence[str]:
    """The words before ``--``; the rest is the command of another program."""
    return words[: words.index("--")] if "--" in words else words


def explain(error: BaseException) -> ErrorReport:
    """The table of exceptions."""
    if isinstance(error, BafoError):
        return ErrorReport(error.message, error.hint, error.exit_code)
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return ErrorReport("interrupted", "", ExitCode.INTERRUPTED)
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra:
            return ErrorReport(f"{error.name} is not installed", f"pip install 'bafogpt[{extra}]'", ExitCode.FAILURE)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "."
        return ErrorReport(f"no space left on the disk: {where}", f"df -h {where}", ExitCode.FAILURE)
    if isinstance(error, PermissionError) and error.filename:
        return ErrorReport(f"no permission for {error.filename}", f"ls -ld {error.filename}", ExitCode.FAILURE)
    return ErrorReport(
        f"bafogpt failed unexpectedly: {type(error).__name__}: {error}",
        "run it again with --debug and report the traceback",
        ExitCode.FAILURE,
    )


def _usage(error: typer.TyperException) -> ErrorReport:
    """A mistake on the command line. Typer's exception classes are private, hence the ``getattr``."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bafogpt"
    option, near = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    message = f"{error.message}{did_you_mean(option, near)}" if option and near else error.format_message()
    return ErrorReport(message.rstrip("."), f"{command} --help", error.exit_code)


def _print(report: ErrorReport, as_json: bool) -> None:
    message, hint = _one_line(report.message), _one_line(report.hint)
    if as_json:
        record = {"error": message, "hint": hint, "exit_code": int(report.exit_code)}
        print(json.dumps(record, ensure_ascii=False), file=sys.stderr)
        return
    red, cyan, end = ("\033[1;31m", "\033[36m", "\033[0m") if _colour() else ("", "", "")
    print(f"{red}error:{end} {message}", file=sys.stderr)
    if hint:
        print(f"{cyan} hint:{end} {hint}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _colour() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)


def _abandon_stdout() -> None:
    """Redirect stdout to /dev/null, so that the interpreter's last flush raises no error."""
    with contextlib.suppress(OSError, ValueError):  # a stdout without a file descriptor needs no redirection
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
