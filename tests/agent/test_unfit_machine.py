"""A run whose machine fails the checks: it ends at once, its reason is in the bucket, and nothing was fetched."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bafogpt.agent import collective, machine_check
from bafogpt.agent.outcome import ExitOutcome
from bafogpt.core import nvidia_smi, schema
from bafogpt.core.errors import ExitCode
from bafogpt.jobs.job import Job
from bafogpt.runs import store
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.train.config import TrainConfig
from bafogpt.train.trainer_io import TrainerFiles
from tests.small_job import make_job
from tests.smi import FakeSmi

Supervise = Callable[[Job], ExitOutcome]


def events(bucket: Bucket, kind: str) -> list[dict[str, Any]]:
    return [event for event in RunStore(bucket).events("run") if event["event"] == kind]


def old_driver(smi: FakeSmi, patch: pytest.MonkeyPatch) -> None:
    smi.gpus(*["NVIDIA L40"] * 4, driver="550.54.15")


def broken_all_reduce(smi: FakeSmi, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        collective,
        "run",
        lambda *_, **__: collective.CollectiveResult(failure="an all-reduce over 4 processes did not end"),
    )


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (old_driver, "the NVIDIA driver is 550.54.15"),
        (broken_all_reduce, "an all-reduce over 4 processes did not end"),
    ],
)
def test_it_ends_with_its_exit_code_and_its_reason_before_a_trainer_or_a_checkpoint(
    smi: FakeSmi,
    supervise_rented: Supervise,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[FakeSmi, pytest.MonkeyPatch], None],
    said: str,
):
    def refuse(*_: Any) -> None:
        raise AssertionError("a checkpoint was fetched")

    monkeypatch.setattr(CheckpointStore, "fetch_newest", refuse)
    broken(smi, monkeypatch)
    outcome = supervise_rented(make_job(supervisor={"processes": 0}))

    assert (outcome.state, outcome.exit_code) == ("failed", 105)
    assert said in outcome.message and outcome.hint
    record = RunStore(bucket).load("run")
    assert (record.state, record.message, record.wants_another_machine) == ("failed", outcome.message, True)
    assert record.machines[-1]["unfit"] == outcome.message and record.machines[-1]["hint"] == outcome.hint
    (checked,) = events(bucket, "machine_checked")
    assert not checked["fit"] and said in " ".join(checked["problems"])
    assert events(bucket, "trainers_started") == []
    assert [event["message"] for event in events(bucket, "run_ended")] == [outcome.message]
    assert said in RunStore(bucket).logs("run")


def test_a_good_machine_trains_and_its_figures_are_an_event(
    smi: FakeSmi, supervise_rented: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(collective, "run", lambda *_, **__: collective.CollectiveResult(gb_per_s=11.8))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-value")
    assert supervise_rented(make_job()).state == "succeeded"
    (checked,) = events(bucket, "machine_checked")
    assert checked["fit"] and checked["problems"] == []
    assert (checked["driver"], len(checked["gpus"])) == ("580.95.05", 4)
    assert abs(checked["clock_skew_s"]) < 5 and checked["disk_free"] > checked["disk_needed"]
    assert "planted-value" not in str(checked)
    assert RunStore(bucket).load("run").unfit == []


def test_gpus_that_did_not_answer_when_the_supervisor_started_are_used_all_the_same(
    smi: FakeSmi, supervise_rented: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(nvidia_smi, "count", lambda: 0)
    orders: list[str] = []
    monkeypatch.setattr(TrainerFiles, "write_order", lambda self, order: orders.append(order.device))
    supervise_rented(make_job(supervisor={"max_restarts": 0, "collective_timeout_s": 0}))
    assert orders == ["cuda"]


def test_what_the_checks_find_that_trainers_need_is_in_their_environment(
    smi: FakeSmi, supervise_rented: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def run(*_: Any, environment: dict[str, str], **__: Any) -> collective.CollectiveResult:
        works = environment.get("NCCL_P2P_DISABLE") == "1"
        return collective.CollectiveResult(gb_per_s=3.0) if works else collective.CollectiveResult(failure="it hung")

    monkeypatch.setattr(collective, "run", run)
    monkeypatch.setenv("FAKE_WORKER", "print=NCCL_P2P_DISABLE")
    outcome = supervise_rented(make_job(supervisor={"processes": 2}))
    assert outcome.exit_code != ExitCode.MACHINE_UNFIT
    logs = RunStore(bucket).logs("run")
    assert "it hung; with NCCL_P2P_DISABLE=1 it works, and training continues with it" in logs
    assert "NCCL_P2P_DISABLE=1\n" in logs


def test_after_three_unfit_machines_in_a_row_the_run_has_failed_and_lists_their_reasons(
    smi: FakeSmi, supervise_rented: Supervise, bucket: Bucket
):
    job = make_job()
    reasons = []
    for driver, code in (("550.1", 105), ("551.2", 105), ("552.3", 100)):
        smi.gpus(*["NVIDIA L40"] * 4, driver=driver)
        outcome = supervise_rented(job)
        assert outcome.exit_code == code
        reasons.append(driver)
    assert outcome.message.startswith("3 machines in a row could not run the job")
    assert all(driver in outcome.message for driver in reasons)
    record = RunStore(bucket).load("run")
    assert (record.state, record.message, record.wants_another_machine) == ("failed", outcome.message, False)


def test_a_machine_that_works_ends_the_row(smi: FakeSmi, supervise_rented: Supervise, bucket: Bucket):
    machines = [{"unfit": "a"}, {"unfit": "b"}, {}, {"unfit": "c"}]
    record = RunRecord(name="r", trainer="pretrain", state="failed", created="", updated="", machines=machines)
    assert record.unfit == ["c"] and record.wants_another_machine
    assert store.MAX_UNFIT == 3


def test_the_trial_of_a_launch_without_gpus_is_a_key_of_the_job(
    supervise_rented: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    assert supervise_rented(make_job()).exit_code == ExitCode.MACHINE_UNFIT
    assert supervise_rented(make_job(supervisor={"require_gpus": False})).state == "succeeded"


@pytest.mark.parametrize(
    ("launched", "skypilot", "asked"),
    [("L40:4", "4", 4), ("", "2", 2), ("A10", "", 1), ("L40:4", "0", 4), ("", "0.5", 1), ("", "many", 0), ("", "", 0)],
)
def test_how_many_gpus_were_asked_for(tmp_path: Path, launched: str, skypilot: str, asked: int):
    record = RunRecord(name="r", trainer="pretrain", state="running", created="", updated="")
    environment = {"BAFOGPT_GPUS": launched, "SKYPILOT_NUM_GPUS_PER_NODE": skypilot}
    found = machine_check.requirements(make_job(), record, tmp_path, None, environment)
    assert (found.gpus, found.gpu) == (asked, launched.partition(":")[0])
    assert not found.rented
    rented = schema.build(RunRecord, {**schema.to_dict(record), "machines": [{"cloud": "runpod"}]}, where="test")
    assert machine_check.requirements(make_job(), rented, tmp_path, None, environment).rented  # by plain sky launch


def config(**over: Any) -> TrainConfig:
    values = {"tokens": 10**10, "data": {"path": "data/x", "cache_gb": 4}, "batch": {"tokens": 262_144}}
    return schema.build(TrainConfig, schema.merge(values, over), where="test")


def test_the_disk_that_a_job_needs_by_hand():
    matrices = 26 * (2304 * 256 * (8 + 2 * 4) + 8 * 256 * 2304 + 3 * 2304 * 9216) + 2304 * 256_000
    checkpoint = 12 * matrices  # weights and two moments, float32
    assert machine_check.disk_bytes(config(), resumed=False) == 3 * checkpoint + 4 * 10**9
    assert machine_check.disk_bytes(config(), 296_000, resumed=False) == 3 * 12 * (matrices + 2304 * 40_000) + 4 * 10**9
    named = {"name": "Gemma-2-2b", "checkpoint": "models/x"}
    begun = config(model=named, checkpoint={"max_pending": 1}, precision="bf16-true")
    assert machine_check.disk_bytes(begun, resumed=False) == 2 * checkpoint // 2 + 4 * 10**9 + 2 * matrices
    assert machine_check.disk_bytes(begun, resumed=True) == 2 * checkpoint // 2 + 4 * 10**9
    pairs = 16 * 26 * ((2304 + 2048) + 2 * (2304 + 1024) + (2048 + 2304))
    tuned = config(model=named, adapter={})
    assert machine_check.disk_bytes(tuned, resumed=True) == 3 * 12 * pairs + 4 * 10**9 + 2 * matrices
    assert machine_check.disk_bytes(config(tokens=10**6), resumed=False) == 3 * checkpoint + 4 * 10**6
    assert machine_check.disk_bytes(config(model={"name": "Llama-3-8B"}), resumed=False) is None
    assert machine_check.disk_bytes(config(model={"checkpoint": "models/x"}), resumed=False) is None, "not in the job"


def test_a_stop_while_the_machine_is_checked_is_a_stop(
    smi: FakeSmi, supervise_rented: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    def run(*_: Any, stopped: Callable[[], bool], **__: Any) -> collective.CollectiveResult:
        os.kill(os.getpid(), signal.SIGTERM)
        while not stopped():
            time.sleep(0.01)
        return collective.CollectiveResult(stopped=True)

    monkeypatch.setattr(collective, "run", run)
    outcome = supervise_rented(make_job(supervisor={"processes": 2}))
    assert (outcome.state, outcome.exit_code) == ("stopped", ExitCode.JOB_CANCELLED)
    assert events(bucket, "trainers_started") == []
