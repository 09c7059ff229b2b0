"""A profile of some steps, from the trainer to the bucket."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bafogpt.agent.claim import LaunchInfo
from bafogpt.agent.supervisor import supervise
from bafogpt.jobs.job import Job, SupervisorConfig
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train import profiler

from .conftest import Trained, kill_after, tiny

Train = Callable[..., Trained]
STEPS = "ProfilerStep#"


def steps_in(trace: bytes) -> list[str]:
    """The steps that a Chrome trace shows, in order."""
    events = json.loads(gzip.decompress(trace))["traceEvents"]
    return sorted({each["name"] for each in events if each["name"].startswith(STEPS)})


def test_a_trace_of_the_requested_steps_is_uploaded_and_nothing_else_changes(
    starter: Bucket, s3: Any, train: Train, tmp_path: Path
):
    config = tiny(profile=2, tokens=8 * 256, validation={"every": 0}, checkpoint={"every": 8})
    job = Job(train=config, supervisor=SupervisorConfig(processes=1, flush_s=0.2))
    assert supervise(job, "traced", starter, tmp_path / "work", LaunchInfo()).state == "succeeded"
    found = starter.list("runs/traced/profile/")
    paths = [info.path for info in found]
    assert [path.rpartition("/")[2] for path in paths] == ["0001-step-00000004.json.gz", "0001-step-00000004.txt"]
    assert len(steps_in(starter.get(paths[0]))) == 2
    assert "aten::mm" in starter.get(paths[1]).decode()
    sent = [each["path"] for each in RunStore(starter).events("traced") if each["event"] == "profile_sent"]
    assert sent == [path.removeprefix("runs/traced/") for path in paths]
    plain = train(tiny(tokens=8 * 256, validation={"every": 0}, checkpoint={"every": 8}))
    losses = {line["step"]: line["loss"] for line in RunStore(starter).metrics("traced") if "loss" in line}
    assert losses == plain.losses


def test_a_run_killed_while_it_is_traced_leaves_a_checkpoint_and_no_partial_trace(train: Train, tmp_path: Path):
    config = tiny(profile=7)  # steps 4 to 10
    killed = train(config, watch=kill_after(7), folder=tmp_path / "killed")
    assert [staged.step for staged in killed.staged] == [6]
    assert list((tmp_path / "killed" / "profile").glob("*")) == []
    resumed = train(config, resume=killed.staged[0].folder, folder=tmp_path / "resumed")
    assert [result.outcome for result in resumed.results] == ["finished"]
    assert sorted(resumed.losses) == [7, 8, 9, 10, 11, 12]
    (trace,) = (tmp_path / "resumed" / "profile").glob("*.json.gz")  # three of the seven: the run ended
    assert trace.name == "0001-step-00000010.json.gz"
    assert len(steps_in(trace.read_bytes())) == 3


def work() -> None:
    import torch

    torch.ones(8, 8).mm(torch.ones(8, 8))


def test_each_attempt_is_traced_once(tmp_path: Path):
    written = []
    for attempt in (1, 1, 2):
        traced = profiler.StepProfiler(tmp_path, steps=1, attempt=attempt, done=20)
        for _ in range(6):
            work()
            written.append(traced.step())
    assert [place for place, each in enumerate(written) if each] == [3, 15]  # after the fourth of its six
    traces = sorted(path.name for path in tmp_path.glob("*.gz"))
    assert traces == ["0001-step-00000024.json.gz", "0002-step-00000024.json.gz"]


def test_a_trace_that_cannot_be_written_does_not_stop_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "profile").write_text("a file where the folder should be")
    traced = profiler.StepProfiler(tmp_path / "profile", steps=1, attempt=1, done=0)
    for _ in range(6):
        work()
        traced.step()
    assert "no trace: " in capfd.readouterr().out
    assert os.listdir(tmp_path) == ["profile"]
