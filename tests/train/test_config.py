"""The job's arithmetic: steps, shares, the learning rate."""

from __future__ import annotations

import itertools

import pytest

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError
from bafogpt.train.config import ScheduleConfig, TrainConfig, check_processes
from bafogpt.train.optimizer import learning_rate


def config(**over: object) -> TrainConfig:
    values = {
        "tokens": 10_000,
        "data": {"path": "data/x", "sequence_length": 10},
        "batch": {"tokens": 80, "micro_batch_size": 2},
    }
    return schema.build(TrainConfig, schema.merge(values, over), where="job")


def test_tokens_are_rounded_down_to_whole_steps():
    assert config(tokens=169).steps == 2
    assert config().batch_samples == 8


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"batch": {"tokens": 85}}, "not a multiple"),
        ({"tokens": 79}, "less than one batch"),
        ({"checkpoint": {"every": 0}}, "every is 0"),
        ({"optimizer": {"learning_rate": 0}}, "learning_rate is 0"),
        ({"precision": "fp16"}, "32-true, bf16-mixed, bf16-true"),
        ({"optimizer": {"name": "adamw8bit"}}, "adamw, adamw8bit-paged"),
    ],
)
def test_impossible_configurations_are_refused(over: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        config(**over)


@pytest.mark.parametrize(
    ("processes", "said", "hint"),
    [
        (3, "does not divide among 3 processes", "--set train.batch.tokens=120"),
        (16, "a step has 8 samples, fewer than the 16 processes", "--set train.batch.tokens=320"),
    ],
)
def test_a_batch_that_does_not_divide_names_one_that_does(processes: int, said: str, hint: str):
    with pytest.raises(ConfigError, match=said) as caught:
        check_processes(config(), processes)
    assert caught.value.hint == hint


def test_the_learning_rate_warms_up_to_its_peak_and_ends_at_its_final_ratio():
    schedule = ScheduleConfig(warmup_steps=4, final_ratio=0.1)
    rates = [learning_rate(step, peak=1.0, steps=20, schedule=schedule) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.1)


def test_a_run_shorter_than_its_warmup_has_a_rate():
    schedule = ScheduleConfig(warmup_steps=10)
    assert [learning_rate(s, peak=1.0, steps=2, schedule=schedule) for s in range(2)] == [0.1, 0.2]
