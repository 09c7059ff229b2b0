"""What runs have cost, from accounts and records in a real bucket; the test sets the time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bafogpt.agent.budget import Budget
from bafogpt.cli import main as root
from bafogpt.core.errors import RunNotFoundError
from bafogpt.jobs.limits import Limits
from bafogpt.reports import cost, diff, html, metric_tags, status, terminal
from bafogpt.reports.summary import summarise
from bafogpt.runs import usage
from bafogpt.runs.store import RunStore
from bafogpt.runs.usage import AttemptUsage
from bafogpt.storage.bucket import Bucket
from tests.reports import synthetic
from tests.reports.synthetic import BEGIN, NAME, SyntheticRun

JOB = {"train": {"batch": {"tokens": 2048}}, "supervisor": {"max_cost": 9.0}}


@pytest.fixture
def run(bucket: Bucket, tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(RunStore(bucket), tmp_path)


def two_attempts(run: SyntheticRun, end: float = BEGIN + 40_000, price: float = 4.0) -> None:
    """An hour at $10, and an hour at ``price`` that ended at ``end``."""
    run.account(end - 40_000, hours=1, price=10.0)
    run.attempt = 2
    run.account(end - 3600, hours=1, price=price)


def at(hours: float) -> float:
    return BEGIN + 3600 * hours


@pytest.mark.parametrize(
    ("state", "price", "hours", "usd"), [("failed", 4.0, 2.0, 14.0), ("running", 0.04, 2.1, 10.044)]
)
def test_every_command_and_report_shows_the_same_dollars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str, price: float, hours: float, usd: float
):
    run, now = synthetic.new(tmp_path), time.time()
    run.train(1, 5)
    two_attempts(run, now - 360, price)  # the running one is an entry of six minutes ago, at a price that hardly moves
    run.save(state=state, attempts=2, price_per_hour=price, job=JOB)
    summary = summarise(run.store, NAME)
    accounts = usage.read_all(run.store.folder(NAME))
    worked = hours - accounts[0].hours
    clock = iter([0.0, *[3600 * worked] * 9])
    budget = Budget(Limits(), accounts[:1], attempt=2, price_per_hour=price, clock=lambda: next(clock))
    same_hours, same_usd = pytest.approx(hours, abs=0.01), pytest.approx(usd, abs=0.001)

    found = cost.of_run(run.store, NAME)
    results = diff.facts(summary)["results"]
    assert (summary.usage.hours, summary.usage.usd) == (same_hours, same_usd)
    assert (found.hours, found.usd) == (same_hours, same_usd)
    assert (results["machine_hours"], results["usd"]) == (same_hours, same_usd)
    assert (budget.hours, budget.usd) == (same_hours, same_usd)
    assert metric_tags.of_system_stats({"usd": budget.usd}) == {"cost/usd": same_usd}
    assert status.StatusReader(run.store, NAME).read().usd == same_usd
    for text in (terminal.summary_text(summary).plain, html.page(summary)):
        assert f"${usd:,.2f} for 2 h 0" in text
    shown = {}
    for words in (("runs", "show", NAME), ("cloud", "top", NAME, "--once"), ("cloud", "cost", NAME)):
        assert root.main([*words, "--bucket", f"file://{tmp_path}/bucket", "--json"]) == 0
        shown[words[1]] = json.loads(capsys.readouterr().out)
    total = shown["cost"]["total"]
    assert [shown["show"]["usd"], shown["top"]["usd"], total["usd"]] == [same_usd] * 3
    assert [shown["show"]["hours"], total["hours"]] == [same_hours] * 2


def test_an_ended_run_has_nothing_left_to_pay(run: SyntheticRun):
    two_attempts(run)
    run.save(price_per_hour=4.0, attempts=2, state="failed")
    found = cost.of_run(run.store, NAME, clock=lambda: at(100))

    assert found.usd_projected == found.usd
    assert (found.usd_per_hour, found.state, found.attempts) == (4.0, "failed", 2)


def test_a_running_run_is_counted_up_to_now_and_projected_to_its_last_step(run: SyntheticRun):
    run.start(0)
    run.train(1, 20)
    run.account(hours=1, price=3.6)
    run.save(state="running", steps=3620, job=JOB)
    found = cost.of_run(run.store, NAME, clock=lambda: at(1) + 60)

    assert found.state == "running"
    assert found.usd == pytest.approx(3.6 + 0.06)
    assert found.hours_left == pytest.approx(1.0, rel=0.05)  # 3600 steps of 2,048 tokens, some 2,048 a second
    assert found.usd_projected == pytest.approx(found.usd + found.hours_left * 3.6)
    assert found.max_cost == 9.0


def test_a_silent_run_is_counted_up_to_its_last_entry(run: SyntheticRun):
    run.account(hours=1, price=3.6)
    run.save(state="running", job=JOB)
    found = cost.of_run(run.store, NAME, clock=lambda: at(1) + usage.SILENT_S + 1)

    assert (found.state, found.usd) == ("silent", pytest.approx(3.6))
    assert found.hours_left is None and found.usd_projected is None  # no step was timed


def test_all_runs_and_their_total_most_expensive_first(run: SyntheticRun):
    run.account(hours=1, price=2.0)
    run.save()
    usage.write(run.store.folder("dear"), AttemptUsage(attempt=1, started=0, seen=7200, price_per_hour=5.0))
    run.store.folder("dear").put("run.json", run.store.folder(NAME).get("run.json").replace(NAME.encode(), b"dear"))
    found = cost.of_all(run.store, clock=lambda: at(100))

    assert [each.name for each in found] == ["dear", NAME]
    whole = cost.total(found)
    assert (whole.runs, whole.hours, whole.usd) == (2, pytest.approx(3.0), pytest.approx(12.0))


def test_a_run_without_an_account_has_cost_nothing_yet_and_an_unknown_one_is_an_error(run: SyntheticRun):
    run.save(state="running")
    assert cost.of_run(run.store, NAME, clock=lambda: at(0)).usd == 0.0
    with pytest.raises(RunNotFoundError):
        cost.of_run(run.store, "nobody")
