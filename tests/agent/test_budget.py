"""What a run may cost and take, over all attempts, in time for the last save, with a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bafogpt.agent.budget import Budget
from bafogpt.core.errors import UsageError
from bafogpt.jobs.limits import LimitReached, Limits
from bafogpt.runs import usage
from bafogpt.runs.usage import AttemptUsage
from bafogpt.storage.bucket import Bucket


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, *earlier: AttemptUsage, price: float = 4.56, **limits: float) -> Budget:
    return Budget(Limits(**limits), earlier, attempt=9, price_per_hour=price, clock=clock, wall=lambda: 1_800_000_000.0)


def span(hours: float, price: float, attempt: int = 1) -> AttemptUsage:
    return AttemptUsage(attempt=attempt, started=1000.0, seen=1000.0 + 3600 * hours, price_per_hour=price)


def test_hours_and_dollars_are_counted_over_all_attempts_each_at_its_own_price():
    clock = Clock()
    budget = make(clock, span(2, 4.56), span(1, 2.76, attempt=2), max_cost=20, price=4.56)
    clock.now += 1800
    assert budget.hours == pytest.approx(3.5)
    assert budget.usd == pytest.approx(2 * 4.56 + 2.76 + 0.5 * 4.56)
    assert budget.left_s() == pytest.approx((20 - budget.usd) / 4.56 * 3600)


def test_the_nearer_limit_counts_and_is_named():
    clock = Clock()
    budget = make(clock, max_cost=4.56, max_hours=0.5)
    clock.now += 1795
    assert budget.reached(reserve_s=4) is None
    assert budget.reached(reserve_s=6) == LimitReached(
        limit="max_hours", message="the limit of 0.5 h is reached: 0.50 h used"
    )
    budget = make(clock, max_cost=1.14, max_hours=0.5)
    clock.now += 899.5
    assert budget.reached(reserve_s=1) == LimitReached(
        limit="max_cost", message="the limit of $1.14 is reached: $1.14 spent"
    )


def test_without_a_limit_nothing_is_reached():
    clock = Clock()
    budget = make(clock, price=0)
    clock.now += 1e9
    assert (budget.left_s(), budget.reached(None)) == (math.inf, None)


def test_before_a_save_was_timed_a_share_of_the_limit_is_kept_for_it():
    clock = Clock()
    budget = make(clock, max_hours=1 / 6)  # ten minutes, of which half a minute
    clock.now += 569
    assert budget.reached(None) is None
    clock.now += 2
    assert budget.reached(None)


def test_an_attempt_after_one_that_ended_at_the_limit_has_nothing_left():
    clock = Clock()
    budget = make(clock, max_hours=1)
    clock.now += 3600 - 100
    assert budget.reached(reserve_s=120)
    clock.now += 50  # the save was quicker than that
    again = Budget(Limits(max_hours=1), [budget.usage], attempt=10, price_per_hour=4.56, clock=clock, wall=lambda: 2e9)
    assert again.left_s() == pytest.approx(50)
    assert again.reached(None)


@given(
    price=st.floats(0.01, 100),
    hours=st.floats(0.1, 100),
    share=st.floats(0, 0.8),
    poll=st.floats(0.05, 60),
    luck=st.floats(0.01, 0.99),
)
def test_no_more_is_spent_than_the_limit_and_one_look_when_the_save_takes_what_was_kept_for_it(
    price: float, hours: float, share: float, poll: float, luck: float
):
    clock = Clock()
    budget = make(clock, price=price, max_cost=price * hours)
    reserve = share * hours * 3600
    clock.now += hours * 3600 - reserve - luck * poll  # the last look that finds nothing
    assert budget.reached(reserve) is None
    clock.now += poll  # the look that finds it
    assert budget.reached(reserve)
    clock.now += reserve
    assert budget.usd <= (hours + poll / 3600) * price * (1 + 1e-9) + 1e-9


def test_the_launch_comes_before_the_job_and_must_be_a_number():
    job = Limits(max_cost=10, max_hours=5)
    assert job.with_environment({}) == job
    assert job.with_environment({"BAFOGPT_MAX_COST": "20"}) == Limits(max_cost=20, max_hours=5)
    for text in ("-1", "0", "nan", "inf", "much"):
        with pytest.raises(UsageError, match="BAFOGPT_MAX_HOURS is"):
            job.with_environment({"BAFOGPT_MAX_HOURS": text})


def test_a_limit_in_dollars_needs_a_price():
    with pytest.raises(UsageError, match="unknown") as caught:
        Limits(max_cost=5).check_price(0)
    assert "--max-hours" in caught.value.hint
    Limits(max_cost=5).check_price(1.29)
    Limits(max_hours=5).check_price(0)


def test_accounts_come_back_from_the_bucket_in_order(bucket: Bucket):
    accounts = [span(1, 4.56), span(2, 2.76, attempt=2)]
    for account in reversed(accounts):
        usage.write(bucket, account)
    assert usage.read_all(bucket) == accounts
    used = usage.total(accounts)
    assert (used.hours, used.usd) == (pytest.approx(3), pytest.approx(4.56 + 5.52))
