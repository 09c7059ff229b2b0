"""A task's own setup: its output passes on, and its failure is in the bucket when its machine is gone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bafogpt.agent import setup
from bafogpt.agent.claim import LaunchInfo
from bafogpt.jobs import task
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from tests.small_job import make_job

FAILS = ("sh", "-c", "echo preparing; echo no such package >&2; exit 3")


@pytest.fixture
def on(bucket: Bucket) -> Bucket:
    """The test's bucket with a dataset."""
    bucket.put("data/x/manifest.json", b"{}")
    return bucket


def prepare(on: Bucket, folder: Path, command: tuple[str, ...]) -> int:
    return setup.prepare(make_job(), "run", on, folder / "run", LaunchInfo(infra="runpod"), command)


def test_a_failure_is_the_end_of_the_run_with_its_output_as_the_log(
    on: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(on, tmp_path, FAILS) == 3

    store = RunStore(on)
    record = store.load("run")
    assert (record.state, record.message, record.infra) == (
        "failed",
        "the task's setup ended with exit code 3",
        "runpod",
    )
    said = ["preparing", "no such package"]
    assert store.logs("run").splitlines() == [*said, "run: failed: the task's setup ended with exit code 3"]
    assert [event["event"] for event in store.events("run")] == ["run_ended"]
    assert capsys.readouterr().out.splitlines() == said


def test_a_success_leaves_nothing_and_a_later_attempt_may_go_on(on: Bucket, tmp_path: Path, supervise: Any) -> None:
    assert prepare(on, tmp_path, ("true",)) == 0
    assert RunStore(on).names() == []

    prepare(on, tmp_path, FAILS)
    assert supervise(make_job(), "run", on).state == "succeeded"
    assert RunStore(on).load("run").attempts == 2


def test_a_setup_that_was_killed_has_the_code_that_a_shell_gives_it(on: Bucket, tmp_path: Path) -> None:
    assert prepare(on, tmp_path, ("sh", "-c", "kill -9 $$")) == 137


def test_only_the_last_lines_of_a_long_output_are_kept(on: Bucket, tmp_path: Path) -> None:
    prepare(on, tmp_path, ("sh", "-c", "seq 5000; exit 1"))
    lines = RunStore(on).logs("run").splitlines()
    assert (len(lines), lines[0]) == (setup.KEPT_LINES + 1, "3001")


def test_a_launch_puts_a_setup_under_the_command_that_records_it(tmp_path: Path) -> None:
    """Run by a shell: with ``bafogpt`` on the PATH it is told job, run and script; without, the script runs alone."""
    mine = {
        "run": "cd here\nexec bafogpt job run jobs/x.yaml --run r1 --set a.b=2\n",
        "setup": 'echo "it\'s"; exit 3\n',
    }
    assert task.with_recorded_setup({"run": mine["run"]}) == {"run": mine["run"]}
    script = task.with_recorded_setup(mine)["setup"]

    plain = subprocess.run(["bash", "-c", script], env={"PATH": os.defpath}, capture_output=True, text=True)
    assert (plain.returncode, plain.stdout) == (3, "it's\n")

    (tmp_path / "bafogpt").write_text(f"#!{sys.executable}\nimport sys; print(sys.argv[1:])")
    (tmp_path / "bafogpt").chmod(0o755)
    told = subprocess.run(["bash", "-c", script], env={"PATH": f"{tmp_path}:{os.defpath}"}, capture_output=True)
    head = shlex.split("job setup jobs/x.yaml --run r1 --set a.b=2 --")
    assert told.stdout.decode().strip() == str([*head, "bash", "-c", mine["setup"]])


def test_the_command_ends_as_the_setup_does(s3: Any, starter: Bucket, tmp_path: Path) -> None:
    words = ["job", "setup", "demo", "--run", "own-setup", "--", *FAILS]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("bafogpt")), *words],
        env=os.environ | s3.environment | {"BAFOGPT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert RunStore(starter).load("own-setup").state == "failed"
