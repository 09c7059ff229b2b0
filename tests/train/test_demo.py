"""The demo's job, killed and resumed, ends with the same bits as an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bafogpt.agent.claim import LaunchInfo
from bafogpt.agent.supervisor import supervise
from bafogpt.jobs import job as jobs
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket

from .conftest import ROOT, assert_bit_equal


def test_the_demo_killed_and_resumed_ends_with_the_same_weights(
    starter: Bucket, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = RunStore(starter)
    weights = {}
    for name, kill_at, restarts in (("demo-in-peace", "null", 0), ("demo-killed", "50", 1)):
        job = jobs.load(ROOT / "jobs" / "demo.yaml", [f"supervisor.drill_kill_at_step={kill_at}"])
        assert supervise(job, name, starter, tmp_path / name, LaunchInfo()).state == "succeeded"
        assert store.load(name).restarts == restarts
        found = store.checkpoints(name).fetch_newest(tmp_path / "fetched" / name)
        assert found is not None
        assert found[0].step == job.train.steps
        (file,) = found[1].glob("*.safetensors")
        weights[name] = load_file(file)
    assert_bit_equal(*weights.values())
