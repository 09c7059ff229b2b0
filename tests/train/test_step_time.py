"""The model of a step's time: reference figures, targets, and monotonicity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bafogpt.jobs import job as jobs
from bafogpt.jobs.model_shape import shape_of
from bafogpt.model.adapter import AdapterConfig
from bafogpt.train.config import OptimizerConfig, TrainConfig
from bafogpt.train.estimates import gpus, memory, recipes
from bafogpt.train.estimates import step_time as step_times
from bafogpt.train.estimates.gpus import GpuSpec
from bafogpt.train.estimates.step_time import EXPECTED, PESSIMISTIC, Assumptions, StepTime

JOBS = Path(__file__).parents[2] / "jobs"
PRETRAIN = jobs.load(JOBS / "pretrain.yaml").train
FINETUNE = jobs.load(JOBS / "finetune.yaml").train
VOCABULARY = 296_000
EIGHT_BIT = OptimizerConfig(name="adamw8bit-paged")
L40_DOLLARS = 4.56
"""Dollars an hour of four L40, from jobs/pretrain.yaml."""


def card(name: str) -> GpuSpec:
    found = gpus.of_accelerator(name)
    assert found is not None
    return found


def shape(config: TrainConfig) -> Any:
    return shape_of(config, VOCABULARY)


def time(config: TrainConfig, gpu: GpuSpec, processes: int, *, loss_rows: int = 0, **more: Any) -> StepTime:
    with pytest.MonkeyPatch.context() as patch:
        if loss_rows:
            patch.setattr(step_times, "chunk_rows", lambda vocabulary, tokens, gpu: min(loss_rows, tokens))
        options = {"micro_batch": config.batch.micro_batch_size, **more}
        return step_times.step_time(shape(config), config, gpu, processes=processes, **options)


def shipped(config: TrainConfig, gpu: str, processes: int, assumptions: Assumptions = EXPECTED) -> recipes.Recipe:
    return recipes.as_written(shape(config), config, card(gpu), processes=processes, assumptions=assumptions)


@pytest.mark.parametrize(
    ("config", "gpu", "processes", "micro_batch", "recompute", "rows", "sharding", "assumptions", "seconds", "within"),
    [
        (PRETRAIN, "L40", 4, 4, "full", 64, "pass", EXPECTED, 22.4, 0.05),
        (PRETRAIN, "L40", 4, 4, "full", 1024, "pass", EXPECTED, 12.8, 0.05),
        (PRETRAIN, "L40", 4, 2, "selective", 1024, "step", EXPECTED, 10.4, 0.05),
        # the draft gathered once a micro-batch, for which there is no value any more
        (PRETRAIN, "L40", 4, 4, "full", 64, "pass", PESSIMISTIC, 27.4, 0.07),
        # the draft hid all of a chunk's traffic here too: 0.8 s
        (PRETRAIN, "L40", 4, 4, "full", 1024, "step", PESSIMISTIC, 16.9, 0.07),
        (PRETRAIN, "H100-SXM", 1, 8, "full", 128, "step", EXPECTED, 15.4, 0.05),
        (PRETRAIN, "H100-SXM", 1, 8, "full", 1024, "step", EXPECTED, 11.0, 0.05),
        # the draft left out what 4-bit weights and an adapter's pairs read and write: 0.3 to 1 s
        (FINETUNE, "A10", 1, 1, "full", 16, "step", EXPECTED, 18.7, 0.09),
        (FINETUNE, "A10", 1, 4, "full", 64, "step", EXPECTED, 10.5, 0.09),
        (FINETUNE, "A10", 1, 4, "full", 1024, "step", EXPECTED, 8.9, 0.09),
    ],
)
def test_the_model_gives_the_reference_figures(
    config, gpu, processes, micro_batch, recompute, rows, sharding, assumptions, seconds, within
):
    found = time(
        replace(config, activation_checkpointing=recompute),
        card(gpu),
        processes,
        micro_batch=micro_batch,
        loss_rows=rows,
        sharding=sharding,
        assumptions=assumptions,
    )

    assert found.total == pytest.approx(seconds, rel=within)


def test_the_shipped_jobs_are_projected_to_reach_their_targets():
    expected, pessimistic = shipped(PRETRAIN, "L40", 4), shipped(PRETRAIN, "L40", 4, PESSIMISTIC)
    assert expected.time.mfu >= 0.55
    assert pessimistic.time.mfu >= 0.36
    assert PRETRAIN.tokens / expected.time.tokens_per_s / 3600 * L40_DOLLARS <= 11

    tuning = shipped(FINETUNE, "A10", 1)
    assert tuning.time.tokens_per_s >= 3_700
    assert tuning.memory_bytes <= 20e9


@pytest.mark.parametrize(("config", "gpu", "processes"), [(PRETRAIN, "L40", 4), (FINETUNE, "A10", 1)])
def test_a_shipped_recipe_leaves_two_gigabytes_of_its_card(config, gpu, processes):
    found = shipped(config, gpu, processes)

    assert found.fits and found.micro_batch == config.batch.micro_batch_size
    assert found.memory_bytes <= card(gpu).memory - 2e9


@pytest.mark.parametrize(
    ("config", "gpu", "processes"),
    [(PRETRAIN, "L40", 4), (FINETUNE, "A10", 1), (PRETRAIN, "H100", 1), (PRETRAIN, "RTX4090", 8)],
)
def test_the_recommended_recipe_fits_and_is_the_fastest(config, gpu, processes):
    best = recipes.fastest(shape(config), config, card(gpu), processes=processes)

    assert best is not None and best.memory_bytes <= card(gpu).memory - recipes.RESERVE
    for micro_batch in (1, 2, 4, 8):
        for recompute in recipes.RECOMPUTE:
            other = replace(
                config, activation_checkpointing=recompute, batch=replace(config.batch, micro_batch_size=micro_batch)
            )
            found = recipes.as_written(shape(config), other, card(gpu), processes=processes)
            if found.fits and found.memory_bytes <= card(gpu).memory - recipes.RESERVE:
                assert best.time.total <= found.time.total


def test_no_recipe_is_recommended_where_nothing_fits():
    assert recipes.fastest(shape(PRETRAIN), PRETRAIN, card("L40"), processes=1) is None
    assert not shipped(PRETRAIN, "L40", 1).fits


def test_a_recipe_that_fits_with_less_than_two_gigabytes_to_spare_is_not_recommended():
    best = recipes.fastest(shape(FINETUNE), FINETUNE, card("A10"), processes=1)
    assert best is not None
    tight = replace(card("A10"), memory=best.memory_bytes + recipes.RESERVE - 1)
    other = recipes.fastest(shape(FINETUNE), FINETUNE, tight, processes=1)

    assert other is not None and other.memory_bytes < best.memory_bytes


def test_weights_in_4_bits_take_time_to_expand():
    adapter = FINETUNE.adapter
    assert adapter is not None
    plain = time(replace(FINETUNE, adapter=replace(adapter, base="bf16")), card("A10"), 1)

    assert plain.weights == 0 < time(FINETUNE, card("A10"), 1).weights


def better(gpu: GpuSpec, **factors: float) -> GpuSpec:
    return replace(gpu, **{name: getattr(gpu, name) * factor for name, factor in factors.items()})


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE])
@pytest.mark.parametrize("assumptions", [EXPECTED, PESSIMISTIC])
def test_a_better_card_or_a_better_assumption_never_makes_a_step_slower(config, assumptions):
    gpu = card("L40")
    base = time(config, gpu, 4, assumptions=assumptions).total

    assert time(config, better(gpu, bandwidth=2), 4, assumptions=assumptions).total < base
    assert time(config, better(gpu, bf16=2), 4, assumptions=assumptions).total < base
    assert time(config, replace(gpu, link=300e9), 4, assumptions=assumptions).total < base
    plain = replace(assumptions, products_of=())
    for name in ("products", "attention", "memory", "hidden"):
        better_one = replace(plain, **{name: min(1.0, getattr(plain, name) * 1.1)})
        assert time(config, gpu, 4, assumptions=better_one).total < time(config, gpu, 4, assumptions=plain).total


def test_more_work_never_makes_a_step_faster():
    def total(config: TrainConfig = PRETRAIN, processes: int = 4, **more: Any) -> float:
        return time(config, card("L40"), processes, **more).total

    rows = [total(loss_rows=rows) for rows in (64, 256, 1024, 4096)]
    assert rows == sorted(rows, reverse=True)
    recompute = [total(replace(PRETRAIN, activation_checkpointing=each)) for each in recipes.RECOMPUTE]
    assert recompute == sorted(recompute)
    gathers = [total(sharding=sharding) for sharding in ("step", "pass", "full")]
    assert gathers == sorted(gathers) and gathers[0] < gathers[2]
    assert total(processes=8) < total(processes=4) < total(processes=2)
    assert total(micro_batch=4) < total(micro_batch=2)
    assert total(nodes=2) > total()


def test_fp8_speeds_up_products_where_the_card_has_it():
    in_fp8 = replace(PRETRAIN, float8="tensorwise")
    plain, fp8 = time(PRETRAIN, card("L40"), 4), time(in_fp8, card("L40"), 4)

    assert 1.1 < plain.total / fp8.total < 1.5
    assert plain.loss == fp8.loss  # the head stays in bf16
    assert time(in_fp8, card("A10"), 1) == time(PRETRAIN, card("A10"), 1)


def test_the_parts_add_up_and_the_description_names_every_assumption():
    found = time(PRETRAIN, card("L40"), 4)
    parts = found.products + found.attention + found.elementwise + found.weights + found.loss
    assert found.total == pytest.approx(parts + found.optimizer + found.exposed)
    assert found.to_dict()["total"] == found.total
    assert f"{found.total:.1f} s a step" in found.describe()
    describe = EXPECTED.describe(card("L40"), 4)
    assert describe == (
        "expected: products at 72% of 181 TFLOP/s, attention 35%, memory at 85% of 864 GB/s, "
        "20 GB/s between GPUs, 85% of that hidden"
    )
    assert "in fp8 42% of 362" in PESSIMISTIC.describe(card("L40"), 4, fp8=True)
    assert "the loss's traffic not hidden" in PESSIMISTIC.describe(card("L40"), 4)
    assert "between" not in EXPECTED.describe(card("A10"), 1)


@pytest.mark.parametrize(
    ("gpu", "processes", "change", "why"),
    [
        ("L40", 3, {}, "a batch of 128 samples does not divide among 3 processes with 2 a micro-batch"),
        ("L40", 256, {}, "a step has 128 samples, fewer than the 256 processes"),
        ("A10", 4, {"float8": "tensorwise"}, "train.float8 is tensorwise, and A10 has no fp8"),
        ("L40", 4, {"optimizer": EIGHT_BIT}, "adamw8bit-paged is for one process, here are 4"),
        ("L40", 4, {"adapter": AdapterConfig()}, "4 processes do not train an adapter in bf16-mixed"),
    ],
)
def test_a_job_that_the_trainer_refuses_does_not_fit_and_is_not_recommended(
    gpu: str, processes: int, change: dict[str, Any], why: str
):
    config = replace(PRETRAIN, **change)

    refused = recipes.refusal(config, card(gpu), processes)

    assert refused is not None and refused.message == why and refused.hint
    assert not shipped(config, gpu, processes).fits
    if processes != 3:
        assert recipes.fastest(shape(config), config, card(gpu), processes=processes) is None


def test_a_micro_batch_that_is_set_need_not_be_a_candidate():
    """128 samples at once, of a sixteenth of the length: what eight take."""
    short = replace(PRETRAIN.data, sequence_length=128)
    config = replace(
        PRETRAIN, data=short, batch=replace(PRETRAIN.batch, micro_batch_size=128), activation_checkpointing="full"
    )

    micro_batch, _ = memory.choose_micro_batch(shape(config), config, processes=4, gpu=True, memory=card("L40").memory)

    assert micro_batch == 128
