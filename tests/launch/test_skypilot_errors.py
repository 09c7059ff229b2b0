"""SkyPilot's exceptions and logs as our errors."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("sky", reason="SkyPilot is not installed (the 'cloud' extra)")

from bafogpt.core.errors import AuthError, BafoError, RunNotFoundError
from bafogpt.launch.engines.skypilot import errors, log_filter
from bafogpt.launch.engines.skypilot.errors import CapacityError, CloudServerError
from sky import exceptions


def test_capacity_names_every_candidates_reason_and_401_and_500_are_told_apart():
    def refused(*texts: str) -> BafoError:
        history = [exceptions.ResourcesUnavailableError("all", failover_history=[RuntimeError(t)]) for t in texts]
        return errors.explain(exceptions.ResourcesUnavailableError("Failed", failover_history=history))

    full = refused(
        "RunPod CA: no instances currently available", "Lambda us-east: no capacity", "Lambda us-east: no capacity"
    )
    assert isinstance(full, CapacityError)
    assert "RunPod CA: no instances currently available; Lambda us-east: no capacity" in full.message
    assert isinstance(refused("RunPod: 401 Unauthorized"), AuthError)
    assert isinstance(refused("RunPod: 500 Internal Server Error"), CloudServerError)
    assert isinstance(refused("Expecting value: line 1 column 1 (char 0)"), CloudServerError)  # RunPod's client
    assert "quota" in refused("GCP: Quota 'GPUS' exceeded").message
    assert isinstance(refused("RunPod: 401 Unauthorized", "Lambda: no capacity"), CapacityError)


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (exceptions.ApiServerConnectionError("http://127.0.0.1:1"), BafoError, "sky api start"),
        (exceptions.NoCloudAccessError("no cloud"), AuthError, "sky check"),
        (
            exceptions.ResourcesUnavailableError("Task requires runpod which is not enabled."),
            AuthError,
            "sky check runpod",
        ),
        (exceptions.ClusterDoesNotExist("x"), RunNotFoundError, "bafogpt cloud ls"),
        (exceptions.ServerTemporarilyUnavailableError("x"), CloudServerError, "try again in a minute"),
    ],
)
def test_skypilots_exceptions_become_our_errors(error: Exception, kind: type[BafoError], hint: str):
    found = errors.explain(error, "r1")
    assert isinstance(found, kind) and found.hint == hint and "\n" not in found.message


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_clouds_refusal_is_read_from_skypilots_log_of_a_launch():
    """SkyPilot 0.14.1 logs RunPod's refusals and leaves them out of the exception."""
    shown, said = Terminal(), "Unauthorized request, please check your API key."
    stream, log = log_filter.LogFilter(shown), "W 11-24 05:04:35.688 PID=1 instance.py:120] "
    for piece in (f"\x1b[2m{log}run_instances ", f"error: {said}\x1b[0m\n", f"{log}Full traceback:\n", log, "File x\n"):
        stream.write(piece)
    stream.write("Trying other\n⠋ Laun")
    assert stream.refusals == [said]
    assert shown.getvalue() == f"\x1b[2m{log}run_instances error: {said}\x1b[0m\nTrying other\n⠋ Laun"
    stream.write("ching\n")
    assert shown.getvalue().endswith("\n⠋ Launching\n")
    bare = exceptions.ResourcesUnavailableError("Failed to provision")
    assert isinstance(errors.explain(bare, "r1", stream.refusals), AuthError)
    assert type(errors.explain(bare, "r1", ["There are no longer any instances available"])) is CapacityError


def test_a_file_gets_whole_lines_without_colours_and_spinners():
    shown = io.StringIO()
    stream = log_filter.LogFilter(shown)
    for piece in ("\x1b[2mLaun", "\r⠋ Laun", "\r\x1b[32m✓ Launched\x1b[0m\n", "\x1b[0m⚙︎ Syncing files.\r\n", "⠋ Sub"):
        stream.write(piece)
    assert shown.getvalue() == "✓ Launched\n⚙︎ Syncing files.\n"
