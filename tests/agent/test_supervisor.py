"""The supervisor keeps a run alive: real processes, real signals, a real S3 server, and workers without a model."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bafogpt.agent.claim import name_from_environment
from bafogpt.agent.outcome import ExitOutcome
from bafogpt.core.errors import ExitCode, NotFoundError
from bafogpt.core.settings import Settings
from bafogpt.runs import store as runs
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.embedded import server
from bafogpt.train.trainer_io import TrainerFiles, checkpoint_step
from tests.small_job import make_job

Supervise = Callable[..., ExitOutcome]


def events(bucket: Bucket, kind: str, name: str = "run") -> list[dict[str, object]]:
    return [event for event in RunStore(bucket).events(name) if event["event"] == kind]


def test_a_run_ends_with_everything_in_the_bucket_and_nothing_on_the_disk(
    supervise: Supervise, bucket: Bucket, tmp_path: Path
):
    assert supervise(make_job()) == ExitOutcome("succeeded")
    store = RunStore(bucket)
    record = store.load("run")
    assert (record.state, record.step, record.steps, record.attempts, record.restarts) == ("succeeded", 20, 20, 1, 0)
    points = runs.curve(store.metrics("run"))
    assert [point["step"] for point in points] == list(range(1, 21))
    assert runs.sample_gaps(points) == []
    assert [event["step"] for event in events(bucket, "checkpoint_committed")] == [5, 10, 15, 20]
    assert [checkpoint.step for checkpoint in store.checkpoints("run").complete()] == [5, 15, 20]
    assert "run: succeeded" in store.logs("run")
    assert bucket.exists("runs/run/report.html")
    assert not (tmp_path / "work" / "run").exists()


def test_the_best_checkpoint_stays_beside_the_newest(
    supervise: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_WORKER", "best_at=10,step_s=0.05")
    supervise(make_job(train={"checkpoint": {"keep_last": 1}}))
    assert [checkpoint.step for checkpoint in RunStore(bucket).checkpoints("run").complete()] == [10, 20]


def test_a_killed_trainer_comes_back_at_the_sample_after_the_checkpoint(supervise: Supervise, bucket: Bucket):
    job = make_job(supervisor={"drill_kill_at_step": 12}, train={"tokens": 1600})
    assert supervise(job).state == "succeeded"
    store = RunStore(bucket)
    (killed,) = events(bucket, "drill_kill")
    (restored,) = events(bucket, "checkpoint_restored")
    assert int(str(killed["step"])) >= 12
    assert restored["step"] in (10, 15)
    assert store.load("run").restarts == 1
    lines = [line for line in store.metrics("run") if "loss" in line]
    assert restored["samples"] in [line["samples"][0] for line in lines]
    assert runs.sample_gaps(runs.curve(lines)) == []


def test_a_trainer_that_crashes_every_time_fails_the_run_after_the_set_count(
    supervise: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_WORKER", "crash_at=7")
    outcome = supervise(make_job(supervisor={"max_restarts": 1}))
    assert outcome.state == "failed"
    assert "exit code 7; gave up after 1 restarts" in outcome.message
    record = RunStore(bucket).load("run")
    assert (record.state, record.message) == ("failed", outcome.message)
    assert [checkpoint.step for checkpoint in RunStore(bucket).checkpoints("run").complete()] == [5]


def test_a_failure_that_no_retry_helps_is_not_retried(
    supervise: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_WORKER", "fail")
    outcome = supervise(make_job())
    assert (outcome.message, outcome.hint, outcome.exit_code) == ("the job is wrong", "mend the job", ExitCode.USAGE)
    assert len(events(bucket, "trainers_started")) == 1


def after_steps(bucket: Bucket, action: Callable[[], None], steps: int = 3) -> threading.Thread:
    """Do something once the run has shipped so many steps."""

    def wait() -> None:
        store = RunStore(bucket)
        while len(store.metrics("run")) < steps:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_sigterm_saves_drains_and_exits_and_the_run_can_go_on(
    supervise: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_WORKER", "step_s=0.1")
    waiting = after_steps(bucket, lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = supervise(make_job())
    waiting.join()
    assert (outcome.state, outcome.exit_code) == ("stopped", ExitCode.JOB_CANCELLED)
    store = RunStore(bucket)
    saved = store.checkpoints("run").complete()[-1]
    lines = store.metrics("run")
    assert saved.samples == lines[-1]["samples"][1]  # what was done last is what was saved
    assert store.load("run").state == "stopped"

    monkeypatch.setenv("FAKE_WORKER", "")
    assert supervise(make_job()).state == "succeeded"
    assert store.load("run").attempts == 2
    assert runs.sample_gaps(runs.curve(store.metrics("run"))) == []
    (restored,) = events(bucket, "checkpoint_restored")
    assert restored["samples"] == saved.samples


def test_a_trainer_that_ignores_sigterm_is_killed_after_the_grace_period(
    supervise: Supervise, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_WORKER", "deaf,step_s=0.5")
    waiting = after_steps(bucket, lambda: os.kill(os.getpid(), signal.SIGTERM), steps=1)
    started = time.monotonic()
    outcome = supervise(make_job(supervisor={"grace_s": 0.5}))
    waiting.join()
    assert outcome.state == "stopped"
    assert time.monotonic() - started < 8  # twenty steps would take ten seconds


def test_a_run_that_has_succeeded_is_not_run_again(supervise: Supervise, bucket: Bucket):
    supervise(make_job())
    assert supervise(make_job()).state == "succeeded"
    assert RunStore(bucket).load("run").attempts == 1


def test_checkpoints_left_on_the_disk_by_a_dead_supervisor_are_sent_and_used(
    supervise: Supervise, bucket: Bucket, tmp_path: Path
):
    from tests.agent.fake_worker import save

    trainer_files = TrainerFiles(tmp_path / "work" / "run")
    trainer_files.checkpoints.mkdir(parents=True)
    save(trainer_files, step=15, samples=60)
    assert supervise(make_job()).state == "succeeded"
    (restored,) = events(bucket, "checkpoint_restored")
    assert restored["step"] == 15


def test_a_checkpoint_that_a_power_cut_tore_on_this_disk_is_discarded(
    supervise: Supervise, bucket: Bucket, tmp_path: Path
):
    torn = TrainerFiles(tmp_path / "work" / "run").checkpoints / "step-00000015"
    torn.mkdir(parents=True)
    (torn / "checkpoint.json").write_text("")
    assert supervise(make_job()).state == "succeeded"
    (discarded,) = events(bucket, "checkpoint_discarded")
    assert discarded["step"] == 15
    assert runs.sample_gaps(runs.curve(RunStore(bucket).metrics("run"))) == []


@pytest.mark.parametrize(("adapter", "command"), [(None, "data prepare"), ({}, "data instructions")])
def test_a_missing_dataset_is_an_error_before_anything_starts(
    supervise: Supervise, bucket: Bucket, adapter: dict[str, Any] | None, command: str
):
    with pytest.raises(NotFoundError, match="no dataset at") as caught:
        supervise(make_job(train={"data": {"path": "data/other"}, "adapter": adapter}))
    assert caught.value.hint == f"bafogpt {command} starter --tokenizer bytes --out data/other"
    assert RunStore(bucket).names() == []


def test_a_server_that_goes_away_ends_the_run_clearly_and_it_resumes_when_it_is_back(
    supervise: Supervise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "s3"
    endpoint = server.detach(home)
    for name, value in endpoint.environment().items():
        monkeypatch.setenv(name, value)
    bucket = Bucket.open("s3://comes-and-goes", Settings(s3_endpoint=endpoint.url, s3_timeout_s=4))
    bucket.create()
    job = make_job(supervisor={"storage_timeout_s": 1.0}, train={"tokens": 4000})
    monkeypatch.setenv("FAKE_WORKER", "step_s=0.1")
    try:
        waiting = after_steps(bucket, lambda: server.stop(home))
        outcome = supervise(job, on=bucket)
        waiting.join()
        assert (outcome.state, outcome.exit_code) == ("failed", ExitCode.FAILURE)
        assert "cannot be reached" in outcome.message
        assert "on local disk, not in the bucket" in outcome.message
        assert "--resume" in outcome.hint
        left = [checkpoint_step(folder) for folder in TrainerFiles(tmp_path / "work" / "run").pending()]
        assert left

        server.detach(home, port=int(endpoint.url.rsplit(":", 1)[1]))
        bucket = Bucket.open("s3://comes-and-goes", Settings(s3_endpoint=endpoint.url))
        monkeypatch.setenv("FAKE_WORKER", "")
        patient = make_job(
            supervisor={"storage_timeout_s": 60}, train={"tokens": 4000}
        )  # on a busy machine it starts slowly
        outcome = supervise(patient, on=bucket)
        assert outcome.state == "succeeded", outcome
        (restored,) = events(bucket, "checkpoint_restored")
        assert restored["step"] == left[-1]
        assert runs.sample_gaps(runs.curve(RunStore(bucket).metrics("run"))) == []
    finally:
        server.stop(home)


def test_a_recovered_task_gets_the_name_it_had(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SKYPILOT_TASK_ID", raising=False)
    assert name_from_environment("pretrain") == "pretrain"
    monkeypatch.setenv("SKYPILOT_TASK_ID", "sky-managed-2026-11-01_pretrain_7-0")
    named = name_from_environment("pretrain")
    assert named == name_from_environment("pretrain")
    runs.check_name(named)
