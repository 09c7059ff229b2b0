"""What runs have cost, from accounts and records in a real bucket; the time of day is the test's."""

from __future__ import annotations

from pathlib import Path

import pytest

from bafogpt.core.errors import RunNotFoundError
from bafogpt.reports import cost
from bafogpt.runs import usage
from bafogpt.runs.store import RunStore
from bafogpt.runs.usage import Span
from bafogpt.storage.bucket import Bucket
from tests.reports.synthetic import BEGIN, NAME, SyntheticRun

JOB = {"train": {"batch": {"tokens": 2048}}, "supervisor": {"max_cost": 9.0}}


@pytest.fixture
def run(bucket: Bucket, tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(RunStore(bucket), tmp_path)


def account(run: SyntheticRun, attempt: int, start_h: float, hours: float, price: float) -> None:
    """The account of one attempt; times are hours after BEGIN."""
    begun = BEGIN + 3600 * start_h
    span = Span(attempt=attempt, started=begun, seen=begun + 3600 * hours, price_per_hour=price)
    usage.store(run.store.folder(NAME), span)


def at(hours: float) -> float:
    return BEGIN + 3600 * hours


def test_each_attempt_counts_at_its_own_price(run):
    account(run, 1, start_h=0, hours=2, price=4.56)
    account(run, 2, start_h=10, hours=1, price=2.76)
    run.save(price_per_hour=2.76, attempts=2, state="failed")
    found = cost.of_run(run.store, NAME, clock=lambda: at(100))

    assert found.hours == pytest.approx(3.0)
    assert found.usd == pytest.approx(2 * 4.56 + 2.76)
    assert found.usd_projected == found.usd  # it has ended: nothing comes any more
    assert (found.usd_per_hour, found.state, found.attempts) == (2.76, "failed", 2)


def test_a_run_at_work_is_counted_up_to_now_and_projected_to_its_last_step(run):
    run.start(0)
    run.train(1, 20)
    account(run, 1, start_h=0, hours=1, price=3.6)
    run.save(state="running", steps=3620, job=JOB)
    found = cost.of_run(run.store, NAME, clock=lambda: at(1) + 60)

    assert found.state == "running"
    assert found.usd == pytest.approx(3.6 + 0.06)
    assert found.hours_left == pytest.approx(1.0, rel=0.05)  # 3600 steps of 2,048 tokens, some 2,048 a second
    assert found.usd_projected == pytest.approx(found.usd + found.hours_left * 3.6)
    assert found.max_cost == 9.0


def test_a_run_that_fell_silent_is_not_counted_on(run):
    account(run, 1, start_h=0, hours=1, price=3.6)
    run.save(state="running", job=JOB)
    found = cost.of_run(run.store, NAME, clock=lambda: at(1) + cost.SILENT_S + 1)

    assert (found.state, found.usd) == ("silent", pytest.approx(3.6))
    assert found.hours_left is None and found.usd_projected is None  # no step was timed


def test_a_run_without_accounts_is_counted_from_its_events(run):
    run.begin()
    run.start(0)
    run.train(1, 40)
    run.end("succeeded")
    run.save(price_per_hour=36.0)
    found = cost.of_run(run.store, NAME, clock=lambda: at(100))

    assert found.hours == pytest.approx((run.clock - BEGIN) / 3600, abs=1e-5)
    assert found.usd == pytest.approx((run.clock - BEGIN) / 100, rel=1e-3)


def test_all_runs_and_their_total_dearest_first(run):
    account(run, 1, start_h=0, hours=1, price=2.0)
    run.save()
    other = run.store.load(NAME)
    usage.store(run.store.folder("dear"), Span(attempt=1, started=0, seen=7200, price_per_hour=5.0))
    run.store.folder("dear").put("run.json", run.store.folder(NAME).get("run.json").replace(NAME.encode(), b"dear"))
    found = cost.of_all(run.store, clock=lambda: at(100))

    assert [each.name for each in found] == ["dear", other.name]
    whole = cost.total(found)
    assert (whole.runs, whole.hours, whole.usd) == (2, pytest.approx(3.0), pytest.approx(12.0))


def test_a_run_that_has_only_begun_costs_nothing_yet_and_an_unknown_one_is_an_error(run):
    run.save(state="running")
    assert cost.of_run(run.store, NAME, clock=lambda: at(0)).usd >= 0.0
    with pytest.raises(RunNotFoundError):
        cost.of_run(run.store, "nobody")
