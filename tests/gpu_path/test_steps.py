"""Whole steps of the shipped recipes: launches, waits, compilations and memory."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from litgpt.config import Config

from bafogpt.jobs import job
from bafogpt.model.config import gpt_config
from bafogpt.train.config import Sharding
from bafogpt.train.estimates import memory
from bafogpt.train.probes.step_probe import Trial
from tests.gpu_path.cuda_build import ROOT, CudaBuild

VOCABULARY = 296_000
"""Gemma's 256,000 ids and 40,000 more."""
GIGABYTE = 10**9


def trial(recipe: str, *sets: str, micro_batch: int | None = None, recompute: str | None = None) -> Trial:
    """A shipped job as it is, or with another micro-batch and recomputation."""
    changed = list(sets)
    if micro_batch is not None:
        changed.append(f"train.batch.micro_batch_size={micro_batch}")
    if recompute is not None:
        changed.append(f"train.activation_checkpointing={recompute}")
    config = job.load(ROOT / "jobs" / f"{recipe}.yaml", changed).train
    return Trial(
        config=config,
        network=asdict(gpt_config(config.model.network, config.model.overrides, VOCABULARY)),
        micro_batch=config.batch.micro_batch_size,
        sharding="step",
        documents=config.adapter is not None,
    )


def expected(tried: Trial, processes: int) -> memory.MemoryEstimate:
    shape = Config(**tried.network)
    return memory.estimate(
        shape, tried.config, micro_batch=tried.micro_batch, processes=processes, gpu=True, sharding=tried.sharding
    )


def peak(gpu: CudaBuild, tried: Trial, card: str, processes: int) -> dict[str, Any]:
    stdin = json.dumps(asdict(tried))
    return gpu.run("bafogpt.train.probes.step_probe", card=card, processes=processes, stdin=stdin)


@pytest.fixture(scope="module")
def pretraining(gpu: CudaBuild) -> dict[str, Any]:
    """Four steps and two validations of ``jobs/pretrain.yaml`` as one of four processes on L40s, all 26 layers."""
    return gpu.run("tests.gpu_path.probes.steps", stdin=json.dumps(asdict(trial("pretrain"))), processes=4)


def test_a_step_never_waits_for_the_gpu(pretraining: dict[str, Any]) -> None:
    counted = pretraining["counted"]

    assert (counted["waits"], counted["event_waits"], counted["to_host"]) == (0, 0, 0)


def test_launches_of_a_step_are_bounded(pretraining: dict[str, Any]) -> None:
    """Three micro-batches of 26 layers: 1,884 kernels and 1,206 products were counted, 24 and 15 a layer."""
    counted = pretraining["counted"]

    assert 1000 < counted["products"] <= 1300
    assert 1000 < counted["launches"] <= 2100


def test_a_sharded_optimizer_state_created_for_loading_works(pretraining: dict[str, Any]) -> None:
    assert pretraining["counted_on"] == ["cuda:0"]


def test_blocks_are_compiled_once_for_training_and_once_for_validation(pretraining: dict[str, Any]) -> None:
    """Twice, since layers with a window and without are alike at this length: forward with and without gradients."""
    first, validated, again = pretraining["graphs"]

    assert first <= 2 and validated <= 4
    assert again == validated, "a second validation and step compile nothing"
    assert pretraining["graph_breaks"] == {}


def test_the_memory_estimate_of_pretraining_is_within_a_tenth(
    pretraining: dict[str, Any],
) -> None:
    need = expected(trial("pretrain"), processes=4)

    assert need.reserved == pytest.approx(pretraining["reserved"], rel=0.1)
    assert pretraining["reserved"] + need.context <= pretraining["total"] - 2 * GIGABYTE


def test_the_memory_estimate_of_fine_tuning_is_within_a_tenth(gpu: CudaBuild) -> None:
    tuning = trial("finetune")
    need, found = expected(tuning, processes=1), peak(gpu, tuning, "A10", 1)

    assert found["fits"]
    assert need.reserved == pytest.approx(found["reserved"], rel=0.1)
    assert found["reserved"] + need.context <= 20 * GIGABYTE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "card", "processes", "micro_batch", "recompute", "sharding"),
    [
        ("pretrain", "L40", 4, 4, "full", "step"),
        ("pretrain", "L40", 4, 8, "full", "step"),
        ("pretrain", "L40", 4, 16, "full", "step"),
        ("pretrain", "L40", 4, 2, "selective", "step"),
        ("pretrain", "L40", 4, 4, "selective", "step"),
        ("pretrain", "L40", 4, 1, "none", "step"),
        ("pretrain", "L40", 4, 2, "none", "step"),
        ("pretrain", "L40", 4, 4, "full", "pass"),
        ("pretrain", "L40", 4, 4, "full", "full"),
        ("pretrain", "RTX4090", 4, 4, "full", "full"),
        ("pretrain", "H100", 1, 4, None, "step"),
        ("finetune", "A10", 1, 4, "full", "step"),
        ("finetune", "A10", 1, 2, "selective", "step"),
    ],
)
def test_the_memory_estimate_is_within_a_tenth(
    gpu: CudaBuild, recipe: str, card: str, processes: int, micro_batch: int, recompute: str | None, sharding: Sharding
) -> None:
    tried = replace(trial(recipe, micro_batch=micro_batch, recompute=recompute), sharding=sharding)

    reserved = peak(gpu, tried, card, processes)["reserved"]
    assert expected(tried, processes).reserved == pytest.approx(reserved, rel=0.1)


def test_a_micro_batch_that_does_not_fit_is_reported(gpu: CudaBuild) -> None:
    """32 samples with nothing recomputed, on a network of four layers with 296,000 ids, on a card of 24 GB."""
    tried = trial(
        "pretrain", "train.model.overrides.n_layer=4", "train.compile=never", micro_batch=32, recompute="none"
    )

    assert peak(gpu, tried, "A10", 4) == {"fits": False, "allocated": 0, "reserved": 0}


def test_a_resumed_run_steps_with_the_fused_optimizer(gpu: CudaBuild, tmp_path: Path) -> None:
    found = gpu.run("tests.gpu_path.probes.resume", str(tmp_path))

    assert found == {"steps": [1, 2], "counted_on": ["cuda:0"]}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_products_in_fp8_compile_without_a_break_or_a_wait(gpu: CudaBuild, recipe: str) -> None:
    tried = trial("pretrain", "train.model.overrides.n_layer=2", f"train.float8={recipe}")
    found = gpu.run("tests.gpu_path.probes.steps", stdin=json.dumps(asdict(tried)), processes=4)

    assert (found["counted"]["waits"], found["counted"]["event_waits"], found["graph_breaks"]) == (0, 0, {})
    assert found["graphs"][1] == found["graphs"][2] <= 4
