"""A look at a run from the bucket alone: right numbers, only what is new, until the run has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bafogpt.cli import main as root
from bafogpt.core.errors import RunNotFoundError
from bafogpt.reports import status
from tests.reports import synthetic
from tests.reports.synthetic import NAME, SyntheticRun

GPU = {"name": "NVIDIA L40", "utilization": 0.97, "memory_used": 44e9, "memory_total": 48e9, "power": 288.4}
JOB = {"train": {"batch": {"tokens": 2048}}}


def running(folder: Path, **changes: Any) -> SyntheticRun:
    """30 of 120 steps done, at 2,048 tokens/s or so and 1.20 $/h."""
    run = synthetic.new(folder)
    run.begin()
    run.start(0)
    run.train(1, 30)
    run.save(**{"state": "running", "step": 28, "job": JOB, **changes})
    return run


def measured(run: SyntheticRun, node: int = 0, **values: Any) -> None:
    line = {"cpu": 0.5, "cpus": 16, "memory_used": 3e9, "memory_total": 8e9, "disk_used": 1e9, "disk_total": 9e9}
    line |= {"time": run.clock, "attempt": run.attempt, "node": node, "step": 30, "gpus": [GPU], **values}
    path = run.folder / f"system_stats-{run.attempt}-{node}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    suffix = f"-n{node}" if node else ""
    run.store.folder(NAME).put(f"system_stats/{run.attempt:04d}{suffix}-00000.jsonl", path.read_bytes())


def look(run: SyntheticRun, after_s: float = 5.0) -> status.Snapshot:
    return status.StatusReader(run.store, NAME, wall=lambda: run.clock + after_s).read()


def test_a_snapshot_says_step_loss_speed_time_left_and_machine(tmp_path: Path):
    run = running(tmp_path)
    measured(run, cpu=0.1)
    measured(run, cpu=0.9)
    found = look(run)
    training = found.training
    assert (found.state, training.step, training.steps, training.stage) == ("running", 30, 120, "simple")
    assert found.training.loss == run.store.metrics(NAME)[-1]["loss"]
    assert found.training.validation_loss == pytest.approx(3.06 + 2.7 * 2.718281828 ** (-20 / 24))
    assert found.training.tokens_per_s == pytest.approx(2048, rel=0.05)
    assert found.training.seconds_left == pytest.approx(90 * 2048 / found.training.tokens_per_s)
    assert [each["cpu"] for each in found.machines] == [0.9]
    assert found.last_seen == run.clock


def test_only_what_is_new_is_read_and_a_step_that_is_done_again_counts_as_it_is(tmp_path: Path):
    run = running(tmp_path)
    reader = status.StatusReader(run.store, NAME, wall=lambda: run.clock)
    reader.read()
    run.start(20)
    run.train(21, 24)
    again = reader.read()
    assert again.training.loss == run.store.metrics(NAME)[-1]["loss"]
    assert again.training.step == 28  # the record knows how far it is once it is sent
    run.save(state="running", step=24, job=JOB)
    assert reader.read().training.step == 24


def test_each_node_of_the_newest_attempt_is_a_machine(tmp_path: Path):
    run = running(tmp_path, attempts=2)
    measured(run, cpu=0.1)
    run.attempt = 2
    measured(run, cpu=0.2)
    measured(run, node=1, cpu=0.3)
    assert [(each["node"], each["cpu"]) for each in look(run).machines] == [(0, 0.2), (1, 0.3)]


def test_a_running_run_of_which_nothing_is_heard_says_so(tmp_path: Path):
    run = running(tmp_path)
    assert look(run, after_s=10).silent_s is None
    assert look(run, after_s=180).silent_s == pytest.approx(180)
    assert "no record for 3 min 00 s" in status.line(look(run, after_s=180))
    run.save(state="failed", message="the disk is full")
    assert look(run, after_s=180).silent_s is None


def test_a_run_that_has_only_begun_or_has_a_broken_loss_is_shown_all_the_same(tmp_path: Path):
    run = synthetic.new(tmp_path)
    run.save(state="running", step=0, job={})
    found = look(run)
    training = found.training
    assert (training.loss, training.tokens_per_s, training.seconds_left, found.last_seen) == (None, None, None, None)
    assert status.line(found).startswith(f"{NAME} running: step 0/120  loss –")
    run.metrics(step=1, loss=float("nan"), tokens_per_s=None)
    assert look(run).training.loss is None


def test_a_run_without_a_record_is_named_and_the_engine_is_what_to_ask(tmp_path: Path):
    with pytest.raises(RunNotFoundError) as caught:
        status.StatusReader(synthetic.new(tmp_path).store, "first").read()
    assert "just launched" in caught.value.message
    assert caught.value.hint == "bafogpt cloud status first"


def test_the_gpus_come_first_in_words(tmp_path: Path):
    run = running(tmp_path)
    measured(run)
    (machine,) = look(run).machines
    assert status.describe_machine(machine)[0] == "NVIDIA L40 97.0 % · 44 GB of 48 GB · 288 W"
    assert "GPU 97.0 % 44 GB of 48 GB  CPU 50.0 %" in status.line(look(run))


def test_following_ends_with_the_run(tmp_path: Path):
    run = running(tmp_path)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            run.save(state="succeeded")

    reader = status.StatusReader(run.store, NAME, wall=lambda: run.clock)
    states = [snapshot.state for snapshot in status.follow(reader.read, 2.5, sleep)]
    assert states == ["running"] * 3 + ["succeeded"]
    assert slept == [2.5] * 3


def test_the_command_shows_a_screen_lines_or_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = running(tmp_path)
    measured(run)
    bucket = ["--bucket", f"file://{tmp_path}/bucket"]
    assert root.main(["cloud", "top", NAME, "--once", *bucket]) == 0
    screen = capsys.readouterr().out
    assert "25.0 %" in screen and "30 of 120 · simple" in screen and "NVIDIA L40 97.0 %" in screen
    assert "$1.20 an hour" in screen and "no record for" in screen
    run.save(state="succeeded")
    assert root.main(["cloud", "top", NAME, *bucket]) == 0
    assert capsys.readouterr().out.startswith(f"{NAME} succeeded: step 120/120  loss ")
    assert root.main(["cloud", "top", NAME, "--json", *bucket]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["machines"][0]["gpus"][0]["power"] == 288.4
    assert root.main(["cloud", "top", "nobody", "--once", *bucket]) == 102
