"""Some of the scripts of ``./scripts/bench faults --faults``, by the same code."""

from __future__ import annotations

import logging

import pytest

from bafogpt.core.errors import CorruptError
from bafogpt.storage.tokens import manifest as manifests

from .bad_network import NetworkCampaign
from .bench import DATA, Bench
from .fault_script import Script
from .plan import Plan
from .proxy import Fault, Request
from .run_under_test import RunUnderTest, undisturbed


def test_what_a_bad_line_does_is_undone_or_said(bench: Bench, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)
    tally = NetworkCampaign(bench).run(8, seed=11)
    assert tally.problems == []
    assert (tally.found, tally.unsound) == (8, 0)
    assert tally.samples == 8 * 62
    assert sum(tally.faults.values()) > 40


def test_a_whole_run_over_a_bad_line_ends_as_if_it_were_good(bench: Bench):
    plan = Plan(steps=16, every=4)
    reference = undisturbed(bench, plan, "undisturbed")
    script = Script(11, rate=0.25)

    def decide(request: Request) -> Fault | None:
        """All but the one request that asks without retries, so that a wrong bucket is said at once."""
        return None if "is-it-there" in request.query.get("prefix", "") else script(request)

    with RunUnderTest("bad-line", bench, plan, decide=decide) as tested:
        result = tested.run([], reference)
        assert result.problems == []
        assert sum(tested.proxy.faults.values()) > 5


def test_no_flipped_bit_of_a_datasets_manifest_goes_unseen(bench: Bench):
    data = bench.bucket.child(DATA)
    written = data.get("manifest.json")
    reference = manifests.from_json(written, "here")
    for at in range(0, len(written), 7):
        flipped = written[:at] + bytes([written[at] ^ 1 << at % 8]) + written[at + 1 :]
        try:
            read = manifests.from_json(flipped, "here")
        except CorruptError:
            continue
        assert read.digest == reference.digest  # the time at which it was made may differ
