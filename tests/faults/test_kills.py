"""Twenty-five of the kills of ``./scripts/bench faults``, by the same code, on every run of the tests."""

from __future__ import annotations

import pytest

from .bench import Bench
from .campaign import Campaign
from .plan import Kill, Plan, Reference, StartOptions
from .run_under_test import RunUnderTest, undisturbed

KILLS = 25
SEED = 11


def test_a_run_that_is_killed_at_any_point_ends_as_if_it_had_not_been(bench: Bench):
    table = Campaign(SEED, bench).run(KILLS, parallel=2)
    assert table.verdict() == []
    assert len(table.done_kills) >= KILLS


@pytest.mark.slow
def test_the_real_trainer_ends_with_the_same_bits_too(bench: Bench):
    table = Campaign(SEED, bench, torch=True).run(4, parallel=1)
    assert table.verdict() == []


def test_other_numbers_of_processes_and_samples_read_ahead_are_the_same_run(bench: Bench):
    plan = Plan(steps=40, every=4)
    reference = undisturbed(bench, plan, "undisturbed")
    assert len(reference.history.steps) * plan.batch > 5 * 62  # the epoch edge, again and again
    all_options = [StartOptions(2, 4), StartOptions(1, 4, cache=True), StartOptions(4, 1)]
    kills = [Kill("machine", "request", "PUT marker", nth=2, stage="after", options=each) for each in all_options]
    with RunUnderTest("changing", bench, plan) as tested:
        result = tested.run(kills, reference)
    assert result.problems == []
    started = {(each["processes"], each["prefetch"]) for each in result.history.starts}
    assert started == {(2, 4), (1, 4), (4, 1)}


def test_everything_is_synced_before_a_checkpoint_has_its_name(bench: Bench):
    """A kill cannot prove this, for it leaves what is in the page cache; a power cut would not."""
    trace = bench.home / "trace"
    with RunUnderTest("synced", bench, Plan(steps=8, every=4), trace=trace) as tested:
        assert tested.run([]).problems == []
    done = [line.removeprefix("trainer\t") for line in trace.read_text().splitlines() if line.startswith("trainer")]
    partial = "checkpoints/.step-#.partial"
    for _ in range(2):
        written, named = done.index(f"half of {partial}/state-#-of-#.bin"), done.index(f"rename {partial}")
        between = done[written:named]
        for path in ("state-#-of-#.bin", "checkpoint.json"):
            assert f"fsync {partial}/{path}" in between
        assert between[-1] == f"fsync {partial}"
        assert done[named + 1] == "fsync checkpoints"
        del done[: named + 2]


def test_a_run_that_differs_is_not_passed(bench: Bench):
    plan = Plan(steps=8, every=4)
    reference = undisturbed(bench, plan, "equal")
    other = Reference(reference.history, reference.state[:-1] + bytes([reference.state[-1] ^ 1]))
    with RunUnderTest("differs", bench, plan) as tested:
        assert tested.run([], other).problems == ["differs: the final weights are not bit-equal"]
