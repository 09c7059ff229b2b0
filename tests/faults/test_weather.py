"""Some of the scripts of ``./scripts/bench faults --faults``, by the same code."""

from __future__ import annotations

import logging

import pytest

from bafogpt.core.errors import CorruptError
from bafogpt.storage.tokens import manifest as manifests

from .fault_script import Script
from .lane import Lane, in_peace
from .place import DATA, Place
from .plan import Plan
from .proxy import Fault, Request
from .weather import Scripts


def test_what_a_bad_line_does_is_undone_or_said(place: Place, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)
    weather = Scripts(place).run(8, seed=11)
    assert weather.problems == []
    assert (weather.found, weather.unsound) == (8, 0)
    assert weather.samples == 8 * 62
    assert sum(weather.faults.values()) > 40


def test_a_whole_run_over_a_bad_line_ends_as_if_it_were_good(place: Place):
    plan = Plan(steps=16, every=4)
    truth = in_peace(place, plan, "in-peace")
    script = Script(11, rate=0.25)

    def decide(request: Request) -> Fault | None:
        """All but the one request that asks without retries, so that a wrong bucket is said at once."""
        return None if "is-it-there" in request.query.get("prefix", "") else script(request)

    with Lane("bad-line", place, plan, decide=decide) as lane:
        outcome = lane.run([], truth)
        assert outcome.problems == []
        assert sum(lane.proxy.faults.values()) > 5


def test_no_flipped_bit_of_a_datasets_manifest_goes_unseen(place: Place):
    data = place.bucket.child(DATA)
    written = data.get("manifest.json")
    truth = manifests.from_json(written, "here")
    for at in range(0, len(written), 7):
        flipped = written[:at] + bytes([written[at] ^ 1 << at % 8]) + written[at + 1 :]
        try:
            read = manifests.from_json(flipped, "here")
        except CorruptError:
            continue
        assert read.digest == truth.digest  # the time at which it was made may differ
