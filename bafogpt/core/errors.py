"""Exceptions for users.

Each has a ``message`` (what is wrong, one line) and a ``hint`` (what to type next, one line); the command line prints
both and exits with ``exit_code``. Any other exception is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``bafogpt``. 100 to 103 are SkyPilot's codes for a job's outcome.

    SkyPilot restarts a managed job after an exit code only where ``recover_on_exit_codes`` names it, or where
    ``max_restarts_on_errors`` allows any.
    """

    OK = 0
    FAILURE = 1
    USAGE = 2
    AUTH = 4
    JOB_FAILED = 100
    JOB_NOT_FINISHED = 101
    JOB_NOT_FOUND = 102
    JOB_CANCELLED = 103
    LIMIT_REACHED = 104
    MACHINE_UNFIT = 105
    """The machine cannot run the job, another one may; managed jobs list it in ``recover_on_exit_codes``."""
    INTERRUPTED = 130


class BafoError(Exception):
    """A failure that the user can fix."""

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BafoError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A job, task or settings file is wrong: unknown key, wrong type, impossible combination."""


class NotFoundError(BafoError):
    """The named object does not exist."""


class RunNotFoundError(NotFoundError):
    """No run has that name."""

    exit_code = ExitCode.JOB_NOT_FOUND


class ConflictError(BafoError):
    """The target exists already, or another process holds it."""


class AuthError(BafoError):
    """Credentials are missing, wrong or expired, or lack a permission."""

    exit_code = ExitCode.AUTH


class StorageError(BafoError):
    """A storage operation failed."""


class UnreachableError(StorageError):
    """The storage server did not answer any retry. The operation can be repeated later."""


class CorruptError(StorageError):
    """Stored bytes differ from what was written: a digest or a size does not match."""


class ClockError(AuthError):
    """This machine's clock is so wrong that the storage server refuses its signatures."""

    exit_code = ExitCode.MACHINE_UNFIT


class UnfitMachineError(BafoError):
    """This machine cannot run the job, even after a restart; another one may."""

    exit_code = ExitCode.MACHINE_UNFIT


class DataError(BafoError):
    """Text or tokens are unusable; the message names file and line."""


class DiskFullError(BafoError):
    """A local disk is full."""


class JobFailedError(BafoError):
    """The job ran and failed."""

    exit_code = ExitCode.JOB_FAILED


class JobCancelledError(BafoError):
    """The job was stopped on request."""

    exit_code = ExitCode.JOB_CANCELLED


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest of ``known``; empty if none is close."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""
