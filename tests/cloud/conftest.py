"""A small job, a dataset that nobody reads, and a supervisor around workers that need no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bafogpt.agent import supervisor
from bafogpt.agent.claim import Place
from bafogpt.core import schema
from bafogpt.jobs.job import Job
from bafogpt.storage.bucket import Bucket

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def make_job(**over: Any) -> Job:
    """20 steps of 4 samples, a checkpoint every 5."""
    values: dict[str, Any] = {
        "train": {
            "tokens": 800,
            "data": {"path": "data/x", "sequence_length": 10},
            "batch": {"tokens": 40, "micro": 2},
            "checkpoint": {"every": 5},
            "model": {"overrides": {"n_layer": 2, "n_embd": 64}},  # a disk that has room for its checkpoints
        },
        "supervisor": {"ship_every_s": 0.2, "grace_s": 5, "patience_s": 30, "processes": 1},
    }
    return schema.build(Job, schema.merge(values, over), where="test")


@pytest.fixture
def supervise(bucket: Bucket, tmp_path: Path) -> Callable[..., supervisor.Ending]:
    """``supervise(job, name="run")``: one attempt at a run, with fake workers, on the test's bucket or another."""

    def run(job: Job, name: str = "run", on: Bucket = bucket) -> supervisor.Ending:
        on.put("data/x/manifest.json", b"{}")
        folder = tmp_path / "work" / name
        return supervisor.supervise(job, name, on, folder, Place(), worker=FAKE_WORKER)

    return run
