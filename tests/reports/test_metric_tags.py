"""Which number of a record goes under which tag."""

from __future__ import annotations

import math

import pytest

from bafogpt.reports import metric_tags


def test_a_step_has_its_loss_also_under_its_stage():
    line = {"step": 3, "time": 1.0, "loss": 2.5, "mfu": None, "stage": "replay & hard", "samples": [0, 4]}
    assert metric_tags.of_metrics(line) == {"train/loss": 2.5, "train/stage/replay _ hard/loss": 2.5}


def test_a_validation_has_losses_by_stage_and_by_language():
    line = {
        "validation_loss": 3.0,
        "validation_bpb": 1.5,
        "validation_stages": {"news": {"loss": 2.0, "bpb": 1.0}, "prose": {"loss": 4.0}},
        "validation_languages": {"eng+zul": {"loss": 3.0}, "zul": None},
    }
    assert metric_tags.of_metrics(line) == {
        "validation/loss": 3.0,
        "validation/bits_per_byte": 1.5,
        "validation/stage/news/loss": 2.0,
        "validation/stage/news/bits_per_byte": 1.0,
        "validation/stage/prose/loss": 4.0,
        "validation/language/eng_zul/loss": 3.0,
    }


def test_what_is_no_finite_number_has_no_tag():
    assert metric_tags.of_metrics({"loss": math.nan, "stage": "news", "mfu": "fast", "validation_stages": 3}) == {}


def test_the_machine_has_its_numbers_in_units_that_people_read():
    line = {"cpu": 0.5, "memory_used": 44e9, "gpus": [{"power": 300, "utilization": None, "memory_used": 40e9}]}
    assert metric_tags.of_system_stats(line) == {
        "machine/cpu": 0.5,
        "machine/memory_used_GB": 44.0,
        "machine/gpu0/memory_used_GB": 40.0,
        "machine/gpu0/power": 300,
    }
    assert list(metric_tags.of_system_stats({"node": 2, "cpu": 1})) == ["machine/node2/cpu"]


@pytest.mark.parametrize(
    ("name", "word"), [("isiZulu", "isiZulu"), ("a/b", "a_b"), ("..", "_"), ("eng+zul", "eng_zul")]
)
def test_a_name_becomes_one_part_of_a_tag(name: str, word: str):
    assert metric_tags.part(name) == word


def test_feeds_are_one_in_time_and_each_keeps_its_order():
    first = [{"time": 5, "n": 1}, {"time": 3, "n": 2}]  # of the second machine, whose clock is behind
    second = [{"time": 4, "n": 3}, {"time": 6, "n": 4}]
    assert [(feed, line["n"]) for feed, line in metric_tags.merge_by_time(first, second)] == [
        (1, 3),
        (0, 1),
        (0, 2),
        (1, 4),
    ]
