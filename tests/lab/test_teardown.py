"""However a run ends, its pod is gone, its cost is below its limit, and its outcome is in the bucket.

Pods are listed by the pod cloud itself, not by SkyPilot.
"""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime
from typing import Any

import pytest

from bafogpt.runs import usage
from tests.lab import pods
from tests.lab.rented import BATCH, GONE_S, LONG, Rented

pytestmark = pytest.mark.slow

PRICE = 4.56
SUPERVISOR = "bafogpt job run"
TRAINER = "bafogpt.train.worker"
POLL_S = 1.0
"""What a limit may be overshot by: one look of the supervisor, with a step that was under way."""


def seconds_since(iso: str) -> float:
    return time.time() - datetime.fromisoformat(iso).timestamp()


def end_event(rented: Rented, name: str) -> dict[str, Any]:
    return [event for event in rented.store.events(name) if event["event"] == "run_ended"][-1]


def test_success_the_price_is_shown_before_it_asks_and_the_pod_is_gone_within_three_minutes(
    rented: Rented, name: str, record_property: Any
) -> None:
    code, screen = rented.on_terminal(rented.words(name), "[y/N]", "n", 120)
    assert (code, "4.56 $/h (runpod" in screen, rented.pods(name)) == (1, True, []), screen

    began, seen = time.monotonic(), {}

    def look() -> None:  # the pod may be gone before a slow client returns
        if time.monotonic() - began > seen.get("looked", -5.0) + 5.0:
            seen["looked"] = time.monotonic() - began
            seen.update({pod["id"]: pod for pod in rented.pods(name)})

    code, screen = rented.on_terminal(rented.words(name), "[y/N]", "y", 1200, look)

    assert code == 0, screen
    took = time.monotonic() - began
    assert screen.index("4.56 $/h") < screen.index("[y/N]") < screen.index("step     12/12")
    del seen["looked"]
    (pod,) = seen.values()
    assert (pod["imageName"], pod["gpuCount"], pod["costPerHr"]) == (pods.image(), 4, PRICE)
    rented.until_gone(name)
    after = seconds_since(rented.record(name).updated)
    print(f"launch to end {took:.0f} s; pod gone {after:.0f} s after the job's end")
    assert after <= GONE_S
    record = rented.record(name)
    assert (record.state, record.step, record.image) == ("succeeded", 12, pods.image())
    assert record.price_per_hour == PRICE
    assert rented.told(name) == (f"{name}: succeeded", 12)
    assert "each once and in order" in rented.command("runs", "verify", name).stdout
    assert rented.command("cloud", "logs", name).stdout.splitlines()[-1] == f"{name}: succeeded"
    rented.until(lambda: name not in rented.command("cloud", "ls", "--json").stdout, 120)


def test_cancel_saves_and_ends(rented: Rented, name: str) -> None:
    rented.launch(name, "-d", **LONG)
    rented.until_step(name, 3)

    assert json.loads(rented.command("cloud", "cancel", name, "--json").stdout)["state"] == "stopped"

    rented.until_gone(name)
    record = rented.record(name)
    assert record.state == "stopped"
    assert record.step in rented.saved(name)
    last, lines = rented.told(name)
    assert last.startswith(f"{name}: stopped: stopped on request")
    assert lines >= 3


def test_an_exception_in_the_trainer(rented: Rented, name: str) -> None:
    shown = rented.launch(name, code=100, train__optimizer__learning_rate="1e30")

    assert shown.stderr.splitlines()[-2].startswith(f"error: {name} failed")
    rented.until_gone(name)
    last, lines = rented.told(name)
    assert last.startswith(f"{name}: failed: ")
    assert lines >= 1
    assert rented.record(name).state == "failed"
    assert rented.status(name)["state"] == "failed"


def test_a_pod_without_the_gpus_that_were_asked_for(rented: Rented, name: str) -> None:
    rented.launch(name, "-d", supervisor__require_gpus="true")

    record = rented.until(lambda: (found := rented.store.find(name)) and found.state == "failed" and found)
    assert record.message == "L40:4 GPUs requested, 0 visible" and record.wants_another_machine
    rented.until_gone(name)
    last, lines = rented.told(name)
    assert last == f"{name}: failed: {record.message}"
    assert lines == 0


def test_the_supervisor_is_killed(rented: Rented, name: str) -> None:
    rented.launch(name, "-d", **LONG)
    rented.until_step(name, 3)

    rented.signal(name, signal.SIGKILL, SUPERVISOR)

    rented.until_gone(name)
    last, lines = rented.told(name)
    assert "step" in last
    assert lines >= 3
    assert rented.status(name)["state"] in ("gone", "failed")


@pytest.mark.parametrize("when", ["during the launch", "after it"])
def test_the_client_is_killed(rented: Rented, name: str, when: str) -> None:
    client = rented.start(*rented.words(name, "--yes"))
    if when == "after it":
        rented.until_step(name, 1)
    else:
        rented.until(lambda: rented.pods(name))

    os.kill(client.pid, signal.SIGKILL)
    client.wait()

    rented.until(lambda: (found := rented.store.find(name)) and found.state == "succeeded")
    rented.until_gone(name)
    assert rented.told(name) == (f"{name}: succeeded", 12)


def test_max_hours_ends_it_in_time(rented: Rented, name: str) -> None:
    shown = rented.launch(name, "--max-hours", "0.01", code=None, **LONG)

    assert shown.returncode in (100, 103, 104), shown.stderr
    (span,) = usage.read_all(rented.store.folder(name))
    assert span.hours * 3600 <= 0.01 * 3600 + POLL_S
    rented.until_gone(name)
    record = rented.record(name)
    last, lines = rented.told(name)
    print(f"used {span.hours * 3600:.1f} of 36 s, {span.usd:.4f} $; {last}; client's exit code {shown.returncode}")
    assert record.state == "stopped" and "the limit of 0.01 h is reached" in last
    assert record.step in rented.saved(name)
    assert lines > 0


def test_max_cost_ends_it_in_time_over_all_attempts(rented: Rented, name: str) -> None:
    """An attempt before this one has spent an hour less a minute and a half: what is left pays for that."""
    folder = rented.store.folder(name)
    spent = usage.AttemptUsage(attempt=1, started=0.0, seen=3600.0 - 90.0, price_per_hour=PRICE)
    usage.write(folder, spent)
    folder.put("attempts/0001.json", b"{}")

    rented.launch(name, "--max-cost", "4.56", code=None, **LONG)

    spans = usage.read_all(folder)
    usd = sum(span.usd for span in spans)
    rented.until_gone(name)
    last, lines = rented.told(name)
    print(f"spent {usd:.4f} of 4.56 $: {last}")
    assert len(spans) == 2
    assert usd <= 4.56 + POLL_S * PRICE / 3600
    assert rented.record(name).state == "stopped" and "the limit of $4.56 is reached" in last
    assert lines > 0


def test_a_hang_is_ended(rented: Rented, name: str) -> None:
    rented.launch(name, "-d", supervisor__hang_timeout_s=15, **LONG)
    rented.until_step(name, 3)

    rented.signal(name, signal.SIGSTOP, TRAINER)

    rented.until_gone(name, GONE_S + 60)
    last, lines = rented.told(name)
    assert "the trainers hung: no progress for 15 s" in last
    assert lines >= 3


def test_memory_runs_out(rented: Rented, name: str) -> None:
    rented.launch(name, "-d", **LONG)
    rented.until_step(name, 3)

    pods.control({"oom": rented.pods(name)[0]["id"]})

    rented.until_gone(name)
    last, lines = rented.told(name)
    assert f"{name}: failed: " in last
    assert "killed" in last
    assert lines >= 3


def test_the_api_server_dies_and_the_pod_ends_itself(rented: Rented, name: str) -> None:
    rented.launch(name, "-d", **{"train.tokens": 600 * BATCH})
    rented.until_step(name, 3)

    rented.lab.sky("api", "stop")
    try:
        rented.until(lambda: rented.record(name).state == "succeeded")
        rented.until_gone(name)
    finally:
        rented.lab.sky("api", "start")
    assert rented.told(name) == (f"{name}: succeeded", 600)
    assert rented.status(name)["state"] == "succeeded"


def test_a_setup_that_fails(rented: Rented, name: str, tmp_path: Any) -> None:
    """Our tasks have no ``setup:``; a user's may."""
    import shutil

    from tests.lab.config import ROOT

    for folder in ("jobs", "sky"):
        shutil.copytree(ROOT / folder, tmp_path / "own" / folder)
    task = tmp_path / "own/sky/pretrain.yaml"
    task.write_text(task.read_text() + "\nsetup: |\n  echo preparing; exit 3\n")

    shown = rented.command(*rented.words(name, "--yes"), code=None, cwd=tmp_path / "own")

    assert shown.returncode == 100, shown.stderr
    rented.until_gone(name)
    assert rented.told(name) == (f"{name}: failed: the task's setup ended with exit code 3", 0)
    assert "preparing" in rented.command("cloud", "logs", name).stdout.splitlines()
    assert rented.status(name)["state"] == "failed"
