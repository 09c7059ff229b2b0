"""The all-reduce over gloo with two real processes: it works, or ends at its deadline with what each rank said."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bafogpt.agent import collective, preflight
from bafogpt.agent.preflight import MachineRequirements
from bafogpt.core import process
from bafogpt.storage.bucket import Bucket
from bafogpt.train.probes import collective_check
from tests.smi import FakeSmi

COMMAND = (sys.executable, str(Path(__file__).with_name("stuck_rank.py")))


@pytest.fixture(autouse=True)
def _this_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)


def run(
    folder: Path, broken: str, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 120.0
) -> tuple[collective.CollectiveResult, list[str]]:
    monkeypatch.setenv("BROKEN", broken)
    said: list[str] = []
    return collective.run(2, "cpu", folder, timeout_s=timeout_s, log=said.append, command=COMMAND), said


def test_two_processes_that_reach_each_other_have_a_bandwidth(tmp_path: Path):
    outcome = collective.run(2, "cpu", tmp_path, timeout_s=120, log=print)
    assert outcome.failure == ""
    assert outcome.gb_per_s is not None and outcome.gb_per_s > 0
    assert collective.READY == collective_check.READY


def test_a_rank_that_never_arrives_is_killed_at_the_deadline_and_each_ranks_last_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outcome, said = run(tmp_path, "absent", monkeypatch, timeout_s=1.0)
    assert "an all-reduce over 2 processes did not end within 1 s" in outcome.failure
    assert "rank 0 printed last: ready; rank 1 printed last: still looking for GPU 0" in outcome.failure
    assert any("init_process_group" in line for line in said if line.startswith("[rank 0]"))  # where it is stuck
    assert [each for each in process.descendants(os.getpid()) if "stuck_rank" in " ".join(each.cmdline())] == []


def test_a_crash_is_told_with_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outcome, _ = run(tmp_path, "crash", monkeypatch)
    assert "failed: rank 1 ended with exit code 1" in outcome.failure
    assert "rank 1 printed last: ncclUnhandledCudaError" in outcome.failure


def test_a_wrong_sum_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outcome, _ = run(tmp_path, "wrong", monkeypatch)
    assert "gave sums between 9 and 9 in place of 3" in outcome.failure


def test_the_import_of_torch_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(collective, "START_S", 0.5)
    outcome, _ = run(tmp_path, "slow", monkeypatch)
    assert "did not start within 0.5 s (rank 0 printed last: nothing; rank 1 printed last: nothing)" in outcome.failure


def test_a_run_that_is_to_end_does_not_wait_for_it(tmp_path: Path):
    started = time.monotonic()
    outcome = collective.run(
        2, "cpu", tmp_path, timeout_s=120, log=print, stopped=lambda: True, command=("sh", "-c", "sleep 100")
    )
    assert outcome.stopped and time.monotonic() - started < 10


def check(bucket: Bucket, folder: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> preflight.PreflightReport:
    monkeypatch.setenv("BROKEN", broken)
    wanted = MachineRequirements(name="zulu", processes=2, gpu="L40", gpus=2, folder=folder, collective_timeout_s=1.0)
    return preflight.check(wanted, bucket, log=print, command=COMMAND)


def test_a_machine_without_peer_to_peer_goes_on_without_it_and_the_report_says_so(
    smi: FakeSmi, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preflight, "SECOND_TRY", 120.0)
    report = check(bucket, tmp_path, "p2p", monkeypatch)
    report.require_fit()
    assert report.environment == {"NCCL_P2P_DISABLE": "1"}
    (problem,) = report.problems
    assert "did not end within 1 s" in problem.message and "with NCCL_P2P_DISABLE=1 it works" in problem.message
    assert report.figures["all_reduce_gb_per_s"] > 0


def test_an_all_reduce_that_hangs_twice_makes_the_machine_unfit(
    smi: FakeSmi, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (problem,) = check(bucket, tmp_path, "absent", monkeypatch).fatal
    assert "did not end within 1 s" in problem.message
    assert problem.message.endswith(", also with NCCL_P2P_DISABLE=1")
    assert "--env NCCL_DEBUG" in problem.hint
