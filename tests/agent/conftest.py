"""A machine whose ``nvidia-smi`` says what a test wants, and a supervisor on it without a real trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bafogpt.agent import preflight, supervisor
from bafogpt.agent.claim import LaunchInfo
from bafogpt.agent.outcome import ExitOutcome
from bafogpt.jobs.job import Job
from bafogpt.storage.bucket import Bucket
from tests.small_job import FAKE_WORKER
from tests.smi import FakeSmi


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSmi:
    """Four idle L40 with a new driver, until the test says otherwise; torch is one for CUDA 13."""
    monkeypatch.setattr(preflight, "torch_cuda", lambda: "13.0")
    monkeypatch.setattr(preflight, "RELEASE_S", 0.0)
    fake = FakeSmi(tmp_path / "bin", monkeypatch)
    fake.gpus(*["NVIDIA L40"] * 4)
    return fake


@pytest.fixture
def supervise_rented(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], ExitOutcome]:
    """``supervise_rented(job)``: one attempt at the run ``run`` on a rented machine that was to have four L40."""
    monkeypatch.setenv("BAFOGPT_GPUS", "L40:4")
    monkeypatch.setenv("SKYPILOT_NUM_GPUS_PER_NODE", "4")

    def run(job: Job) -> ExitOutcome:
        bucket.put("data/x/manifest.json", b"{}")
        launch = LaunchInfo(infra="runpod", price_per_hour=4.56)
        return supervisor.supervise(job, "run", bucket, tmp_path / "work" / "run", launch, worker=FAKE_WORKER)

    return run


@pytest.fixture
def supervise(bucket: Bucket, tmp_path: Path) -> Callable[..., ExitOutcome]:
    """``supervise(job, name="run")``: one attempt at a run, with fake workers, on the test's bucket or another."""

    def run(job: Job, name: str = "run", on: Bucket = bucket) -> ExitOutcome:
        on.put("data/x/manifest.json", b"{}")
        folder = tmp_path / "work" / name
        return supervisor.supervise(job, name, on, folder, LaunchInfo(), worker=FAKE_WORKER)

    return run
