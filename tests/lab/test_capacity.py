"""Refusals of the pod cloud: an error with a hint, an exit code, and no pod."""

from __future__ import annotations

import pytest

from bafogpt.core.errors import ExitCode
from tests.lab import pods
from tests.lab.config import PODS
from tests.lab.rented import Rented

pytestmark = pytest.mark.slow
RENT = "podFindAndDeployOnDemand"
PLACES = 3
"""Regions of the lab's catalog with L40:4."""


def rents(name: str) -> list[str | None]:
    """The fault of each request for a pod of the run."""
    asked = [entry for entry in pods.control()["log"] if entry["op"] == RENT and entry["name"].startswith(name)]
    return [entry["fault"] for entry in asked]


def two_lines(rented: Rented, name: str, *words: str, code: int, **environment: str) -> tuple[str, str]:
    """Error and hint of a command that fails before anything is rented."""
    done = rented.command(*words, code=code, **environment)
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: ") and hint.startswith(" hint: "), done.stderr
    assert "Traceback" not in done.stderr
    assert not rented.pods(name)
    return error.removeprefix("error: "), hint.removeprefix(" hint: ")


def refuse(name: str, kind: str, times: int) -> None:
    """The next ``times`` requests for a pod of this run fail; those of other tests do not."""
    head = f"{name}-{PODS.user_hash}-head"
    pods.control({"fault": {"kind": kind, "op": RENT, "times": times, "match": {"name": head}}})


def test_out_of_stock_in_one_place_is_asked_for_in_the_next(rented: Rented, name: str) -> None:
    refuse(name, "capacity", 2)

    rented.launch(name)

    assert rents(name) == ["capacity", "capacity", None]
    assert rented.record(name).state == "succeeded"
    rented.until_gone(name)


def test_out_of_stock_everywhere_says_so_and_rents_nothing(rented: Rented, name: str) -> None:
    refuse(name, "capacity", 100)

    error, hint = two_lines(rented, name, *rented.words(name, "--yes"), code=ExitCode.FAILURE)

    print(error)
    assert error.startswith("no capacity: ")
    assert "no longer any instances available" in error
    assert "--retry-until-up" in hint
    assert rents(name) == ["capacity"] * PLACES


def test_with_retry_until_up_it_goes_on_asking(rented: Rented, name: str) -> None:
    refuse(name, "capacity", PLACES + 1)

    rented.launch(name, "--retry-until-up")

    assert rents(name) == [*["capacity"] * (PLACES + 1), None]
    assert rented.record(name).state == "succeeded"
    rented.until_gone(name)


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [("401", ExitCode.AUTH, "credentials"), ("500", ExitCode.FAILURE, "servers fail")],
)
def test_expired_credentials_and_a_broken_server_are_told_apart(
    rented: Rented, name: str, kind: str, code: int, says: str
) -> None:
    refuse(name, kind, 100)

    error, _ = two_lines(rented, name, *rented.words(name, "--yes"), code=code)

    print(error)
    assert says in error
    assert name not in rented.command("cloud", "ls", "--json").stdout


def test_a_cloud_that_is_not_enabled_is_named(rented: Rented, name: str) -> None:
    words = rented.words(name, "--yes")
    words[words.index("runpod")] = "lambda"
    words[words.index("L40:4")] = "A10:1"
    error, hint = two_lines(rented, name, *words, code=ExitCode.AUTH)
    print(error, hint)
    assert error.lower() == "lambda is not enabled in skypilot"
    assert hint.lower() == "sky check lambda"
