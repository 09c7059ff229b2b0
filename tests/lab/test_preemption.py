"""A spot pod is taken away: the managed job goes on in another one, and nothing of the run shows it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bafogpt.runs import store
from tests.lab import pods
from tests.lab.rented import BATCH, Rented

pytestmark = pytest.mark.slow

STEPS = 1500
RUN: dict[str, Any] = {"train.tokens": STEPS * BATCH, "train.checkpoint.every": 50, "train.validation.every": 100_000}


def consumed(rented: Rented, name: str) -> list[tuple[int, list[int], float]]:
    """(step, samples, loss) as the run that counts has them, in its own order."""
    return [(point["step"], point["samples"], point["loss"]) for point in store.curve(rented.store.metrics(name))]


def test_a_preempted_run_is_the_run_that_was_left_in_peace(rented: Rented, name: str) -> None:
    quiet = f"{name}-quiet"
    sets = rented.words(quiet, **RUN)
    at = sets.index("--infra")
    local = ["--infra", "local", "--yes"]
    rented.command(*sets[:at], *local, *sets[at + 6 :])

    rented.launch(name, "--spot", "-d", **RUN)
    rented.until_step(name, 120, 400)
    (first,) = managed(name)
    assert first["podType"] == "INTERRUPTABLE" and first["costPerHr"] == 2.76
    lost_at, reached = time.monotonic(), rented.record(name).step
    assert pods.control({"preempt": first["id"]})["preempted"] == [first["id"]]

    rented.until(lambda: rented.record(name).attempts == 2, 400)
    back = time.monotonic() - lost_at
    rented.until(lambda: rented.record(name).state == "succeeded", 400)
    rented.until(lambda: not managed(name), 180)
    events = rented.store.events(name)
    restored = [event["step"] for event in events if event["event"] == "checkpoint_restored"]
    print(f"taken away at step {reached}, at work again after {back:.0f} s from step {restored}")

    assert restored and 50 <= restored[0] <= reached + 50
    assert consumed(rented, name) == consumed(rented, quiet)
    assert [step for step, _, _ in consumed(rented, name)] == list(range(1, STEPS + 1))
    assert "each once and in order" in rented.command("runs", "verify", name).stdout
    record = rented.record(name)
    assert (record.state, record.attempts, record.step) == ("succeeded", 2, STEPS)
    assert rented.told(name)[0] == f"{name}: succeeded"
    assert rented.status(name)["state"] == "succeeded"


def managed(name: str) -> list[dict[str, Any]]:
    """Pods of a managed job; the controller names its clusters after the job, with a number."""
    return [pod for pod in pods.control()["pods"] if pod["name"].startswith(name)]
