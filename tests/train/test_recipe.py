"""Schedule, new rows, memory and validation, each by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bafogpt.jobs.model_shape import KNOWN
from bafogpt.storage.tokens.manifest import Split, Stage
from bafogpt.train.config import OptimizerConfig, ScheduleConfig
from bafogpt.train.estimates import memory
from bafogpt.train.optimizer import NewTokenLR, learning_rate
from bafogpt.train.validation import ValidationSlice, bits_per_byte, plan_validation, validation_metrics

from .conftest import tiny

GEMMA = KNOWN["Gemma-2-2b"]


def test_wsd_stays_at_the_peak_and_decays_linearly_at_the_end():
    schedule = ScheduleConfig(kind="wsd", warmup_steps=2, final_ratio=0.0, decay_share=0.2)
    rates = [learning_rate(step, peak=1.0, steps=20, schedule=schedule) for step in range(20)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:16] == [1.0] * 14
    assert rates[16:] == pytest.approx([0.75, 0.5, 0.25, 0.0])


def test_an_extended_run_warms_up_again():
    first = ScheduleConfig(warmup_steps=2)
    again = ScheduleConfig(warmup_steps=2, restart_at=10)
    rates = [learning_rate(step, peak=1.0, steps=20, schedule=again) for step in range(10, 20)]
    assert rates == [learning_rate(step, peak=1.0, steps=10, schedule=first) for step in range(10)]


def test_new_rows_change_as_adamw_does_at_their_own_rate():
    torch.manual_seed(1)
    start, gradient = torch.randn(6, 3), torch.randn(6, 3)

    def moved(rate: float, factor: float) -> torch.Tensor:
        parameter = torch.nn.Parameter(start.clone())
        parameter.grad = gradient.clone()
        optimizer = torch.optim.AdamW([parameter], lr=rate, weight_decay=0.1)
        NewTokenLR([parameter], OptimizerConfig(first_new_row=4, new_rows_factor=factor), vocabulary=6).step(optimizer)
        return parameter.detach()

    slow, fast, mixed = moved(0.01, 1.0), moved(0.05, 1.0), moved(0.01, 5.0)
    assert torch.equal(mixed[:4], slow[:4])
    torch.testing.assert_close(mixed[4:], fast[4:])
    assert not torch.equal(mixed[4:], slow[4:])


def test_gemma_is_estimated_to_fit_four_l40_and_not_one():
    def chosen(processes: int) -> tuple[int, str]:
        config = tiny(
            tokens=2**24,
            data={"sequence_length": 2048},
            batch={"tokens": 262_144, "micro_batch_size": 0},
            precision="bf16-mixed",
            activation_checkpointing="full",
        )
        return memory.choose_micro_batch(GEMMA, config, processes=processes, gpu=True, memory=48 * 10**9)

    assert chosen(4)[0] >= 4
    assert chosen(1) == (0, "full")


class FakeSamples:
    """40 tokens in samples of 4 targets: sample i predicts tokens 4i+1 … 4i+4."""

    length, count, bos = 4, 9, None


def stage(name: str, start: int, tokens: int, **over: Any) -> Stage:
    return Stage(name, start, tokens, 1, {"x": tokens}, **over)


def test_each_validation_target_belongs_to_one_stage():
    stages = (stage("news", 0, 10, bytes=20), stage("web", 10, 30, bytes=90))
    found = plan_validation(FakeSamples(), Split(40, 2, (), stages), None)  # type: ignore[arg-type]
    assert found.slices[0] == (ValidationSlice(0, 1, 5), ValidationSlice(1, 1, 5), ValidationSlice(2, 1, 2))
    assert found.slices[1][0] == ValidationSlice(2, 2, 5)
    assert sum(piece.high - piece.low for slices in found.slices for piece in slices) == 36
    few = plan_validation(FakeSamples(), Split(40, 2, (), stages), 2)  # type: ignore[arg-type]
    assert few.slices == ((ValidationSlice(0, 1, 5),), (ValidationSlice(2, 2, 5),))


def test_bits_a_byte_use_the_stages_sizes_and_need_all_of_them():
    stages = (stage("news", 0, 10, bytes=20, languages=("zul",)), stage("web", 10, 30, bytes=90, languages=("eng",)))
    assert bits_per_byte(stages[:1], [2.0]) == pytest.approx(2.0 * 10 / 20 / math.log(2))
    line = validation_metrics(plan_validation(FakeSamples(), Split(40, 2, (), stages), None), [18.0, 27.0], [9, 27])  # type: ignore[arg-type]
    assert line["validation_loss"] == pytest.approx(45 / 36)
    assert line["validation_languages"]["zul"] == {"loss": 2.0, "bpb": pytest.approx(1 / math.log(2))}
    assert line["validation_bpb"] == pytest.approx((2.0 * 10 + 1.0 * 30) / 110 / math.log(2))
    assert bits_per_byte((stage("old", 0, 10),), [2.0]) is None
