"""Twenty-five of the kills of ``./scripts/bench faults``, by the same code, on every run of the tests."""

from __future__ import annotations

import pytest

from .campaign import Campaign
from .lane import Lane, in_peace
from .place import Place
from .plan import Kill, Layout, Plan, Truth

KILLS = 25
SEED = 11


def test_a_run_that_is_killed_at_any_point_ends_as_if_it_had_not_been(place: Place):
    table = Campaign(SEED, place).run(KILLS, lanes=2)
    assert table.verdict() == []
    assert len(table.fallen) >= KILLS


@pytest.mark.slow
def test_the_real_trainer_ends_with_the_same_bits_too(place: Place):
    table = Campaign(SEED, place, torch=True).run(4, lanes=1)
    assert table.verdict() == []


def test_other_numbers_of_processes_and_samples_read_ahead_are_the_same_run(place: Place):
    plan = Plan(steps=40, every=4)
    truth = in_peace(place, plan, "in-peace")
    assert len(truth.history.steps) * plan.batch > 5 * 62  # the epoch edge, again and again
    layouts = [Layout(2, 4), Layout(1, 4, cache=True), Layout(4, 1)]
    kills = [Kill("machine", "request", "PUT marker", nth=2, stage="after", layout=each) for each in layouts]
    with Lane("changing", place, plan) as lane:
        outcome = lane.run(kills, truth)
    assert outcome.problems == []
    started = {(each["processes"], each["prefetch"]) for each in outcome.history.starts}
    assert started == {(2, 4), (1, 4), (4, 1)}


def test_everything_is_synced_before_a_checkpoint_has_its_name(place: Place):
    """A kill cannot prove this, for it leaves what is in the page cache; a power cut would not."""
    trace = place.home / "trace"
    with Lane("synced", place, Plan(steps=8, every=4), trace=trace) as lane:
        assert lane.run([]).problems == []
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


def test_a_run_that_differs_is_not_passed(place: Place):
    plan = Plan(steps=8, every=4)
    truth = in_peace(place, plan, "equal")
    other = Truth(truth.history, truth.state[:-1] + bytes([truth.state[-1] ^ 1]))
    with Lane("differs", place, plan) as lane:
        assert lane.run([], other).problems == ["differs: the final weights are not bit-equal"]
