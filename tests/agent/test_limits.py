"""Limits of money and time, and trainers that hang: real processes under a supervisor whose clock the test sets."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bafogpt.agent import supervisor
from bafogpt.agent.claim import LaunchInfo
from bafogpt.agent.outcome import ExitOutcome
from bafogpt.agent.recorder import Recorder
from bafogpt.agent.workers import Workers
from bafogpt.core import process
from bafogpt.core.errors import ExitCode, UsageError
from bafogpt.jobs.job import Job
from bafogpt.runs import store as runs
from bafogpt.runs import usage
from bafogpt.runs.store import RunStore
from bafogpt.runs.usage import AttemptUsage
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder
from tests.small_job import FAKE_WORKER, make_job

PRICE = 4.56
Run = Callable[..., ExitOutcome]


def fast(factor: float) -> Callable[[], float]:
    """A clock on which a second of the test is ``factor`` seconds."""
    return lambda: factor * time.monotonic()


@pytest.fixture
def run(bucket: Bucket, tmp_path: Path) -> Run:
    def supervise(job: Job, clock: Callable[[], float] = time.monotonic, price: float = PRICE) -> ExitOutcome:
        bucket.put("data/x/manifest.json", b"{}")
        launch = LaunchInfo(price_per_hour=price)
        return supervisor.supervise(job, "run", bucket, tmp_path / "work", launch, FAKE_WORKER, clock=clock)

    return supervise


def test_a_run_that_has_cost_what_it_may_saves_and_ends_with_its_own_code_and_can_go_on(
    run: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_WORKER", "step_s=0.05")
    monkeypatch.setenv("BAFOGPT_MAX_COST", "5")
    job = make_job(train={"tokens": 80_000})
    outcome = run(job, price=3600)  # a dollar a second
    assert (outcome.state, outcome.exit_code) == ("stopped", ExitCode.LIMIT_REACHED)
    assert re.fullmatch(r"the limit of \$5\.00 is reached: \$[2-5]\.\d\d spent, at step \d+ of 2000", outcome.message)
    assert "--resume --max-cost" in outcome.hint
    store = RunStore(bucket)
    record = store.load("run")
    assert (record.state, record.message) == ("stopped", outcome.message)
    saved = store.checkpoints("run").complete()[-1]
    assert saved.step == record.step < 2000
    assert saved.samples == store.metrics("run")[-1]["samples"][1]  # what was done last is what was saved
    (account,) = usage.read_all(store.folder("run"))
    assert 2 < account.usd < 6  # the save and the last look are in it
    assert "the limit of $5.00" in store.logs("run")

    assert run(job, price=3600).exit_code == ExitCode.LIMIT_REACHED  # started again: no trainer starts
    assert [event["attempt"] for event in store.events("run") if event["event"] == "trainers_started"] == [1]

    monkeypatch.setenv("BAFOGPT_MAX_COST", "5000")
    monkeypatch.setenv("FAKE_WORKER", "step_s=0")
    more = make_job(train={"tokens": (saved.step + 20) * 40})
    assert run(more).state == "succeeded"
    assert runs.sample_gaps(runs.curve(store.metrics("run"))) == []
    assert [account.attempt for account in usage.read_all(store.folder("run"))] == [1, 2, 3]


def test_what_earlier_attempts_have_cost_counts_those_that_died_without_a_word_too(run: Run, bucket: Bucket):
    for attempt in (1, 2):
        RunStore(bucket).claim_attempt("run", {})
        dead = AttemptUsage(attempt=attempt, started=1000.0, seen=1000.0 + 3600, price_per_hour=PRICE)
        usage.write(bucket.child("runs/run"), dead)
    outcome = run(make_job(supervisor={"max_hours": 2}))
    assert outcome.exit_code == ExitCode.LIMIT_REACHED
    assert outcome.message == "the limit of 2 h is reached: 2.00 h used, at step 0 of 20"


def test_the_account_is_written_while_the_run_is_at_work(run: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    """So a machine that dies has paid up to its last entry."""
    monkeypatch.setattr(usage, "USAGE_EVERY_S", 0.0)
    monkeypatch.setenv("FAKE_WORKER", "step_s=0.1")
    seen: list[AttemptUsage] = []
    flush = Recorder.flush

    def watched(recorder: Recorder) -> None:
        flush(recorder)
        seen.extend(usage.read_all(bucket.child("runs/run")))

    monkeypatch.setattr(Recorder, "flush", watched)
    assert run(make_job()).state == "succeeded"
    assert len({span.seen for span in seen}) > 3
    assert sorted(seen, key=lambda span: span.seen) == seen


def test_a_limit_in_dollars_where_no_price_is_known_is_refused_before_anything_starts(
    run: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BAFOGPT_MAX_COST", "5")
    with pytest.raises(UsageError, match="the price of an hour here is unknown"):
        run(make_job(), price=0)
    assert RunStore(bucket).names() == []


def test_trainers_that_hang_say_where_they_are_and_come_back(run: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_WORKER", "hang_at=12,step_s=0.02")
    assert run(make_job(supervisor={"hang_timeout_s": 60, "first_step_s": 600}), fast(30)).state == "succeeded"
    store = RunStore(bucket)
    (hung,) = [event for event in store.events("run") if event["event"] == "trainers_hung"]
    assert hung["why"] == "no progress for 60 s"
    (died,) = [event for event in store.events("run") if event["event"] == "trainers_died"]
    assert died["why"] == "the trainers hung: no progress for 60 s"
    assert "in wait_for_ever" in store.logs("run")  # where it was
    assert store.load("run").restarts == 1
    assert runs.sample_gaps(runs.curve(store.metrics("run"))) == []


def test_a_real_worker_says_where_each_of_its_threads_is(tmp_path: Path):
    """The real worker around a loop that never ends."""
    TrainerFiles(tmp_path).write_order(TrainOrder(bucket="file:///nowhere", config=make_job().train))
    command = (sys.executable, str(Path(__file__).with_name("hung_worker.py")))
    said: list[str] = []
    trainers = Workers(tmp_path, 1, said.append, command)
    assert process.wait_until(lambda: "at work" in said, 60)
    trainers.dump()
    trainers.end()
    assert any("Current thread" in line for line in said)
    assert any("in train" in line for line in said)
