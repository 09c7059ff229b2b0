"""Speed and memory of whole steps, beside what the models that launches are planned with expect."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bafogpt.core import schema
from bafogpt.train import metrics, parallel
from bafogpt.train.batches import Batch
from bafogpt.train.config import OptimizerConfig, TrainConfig
from bafogpt.train.estimates import flops, gpus, memory
from bafogpt.train.estimates.step_time import EXPECTED, PESSIMISTIC, step_time
from bafogpt.train.learner import Learner
from bafogpt.train.step import train_step
from benchmarks.gpu_check.learners import SHARDS, Kind, learner_of, random_micros
from benchmarks.gpu_check.models import (
    TOY,
    clean,
    config_of,
    difference,
    fill,
    peaks,
    shape_of,
    sync,
    timed_ms,
    vocabulary,
)
from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.target import best_row

ROOT = Path(__file__).parents[2]
SAMPLES = 16
"""A process's samples of a step: enough that the optimizer's share is small, as in a job."""
STEPS = 3
MEMORY_RATIO = 1.1
"""The memory model is red where the allocator reserved that many times what it expects."""
TOP = 12
"""Kernels of a profile that are named."""
GRAPHS = 8
"""Compiled variants at most, of two steps, a validation and a step with documents: torch's limit for one block."""


def throughput(
    report: Report,
    *,
    micro_batch: int,
    recompute: str,
    kind: str = "fsdp",
    profiled: bool = False,
    float8: str = "none",
) -> float | None:
    """tokens/s and MFU of steps of Gemma-2-2B with 296,000 ids, and their memory.

    FSDP2 with one process where that fits the card by the memory model, else one shard of four. Returns tokens/s; None
    where neither fits.
    """
    report.say_device()
    changes: dict[str, Any] = {"activation_checkpointing": recompute}
    if float8 != "none":
        changes["float8"] = float8
    config = config_of(report, micro_batch=micro_batch, samples=SAMPLES, **changes)
    fitting = _fitting(report, config, "autocast" if kind == "autocast" else "fsdp")
    if fitting is None:
        report.note("left_out", "does not fit this card by the memory model")
        return None
    config, how, need = fitting
    report.note("kind", how)
    learner = learner_of(report, config, ids=vocabulary(report), kind=how)
    chance = np.random.default_rng(1)
    clean(report)
    report.note("first_step_s", _seconds(report, learner, random_micros(report, config, vocabulary(report), chance)))
    micros = random_micros(report, config, vocabulary(report), chance)
    report.note("second_step_s", _seconds(report, learner, micros))
    spent = [_seconds(report, learner, micros) for _ in range(1 if report.tiny else STEPS)]
    speed = _note_speed(report, config, how, min(spent))
    _note_memory(report, need)
    if profiled and report.device.type == "cuda":
        with report.case("kernels"):
            report.note("kernels", _profile(report, learner, micros))
    return speed


def _fitting(report: Report, config: TrainConfig, kind: Kind) -> tuple[TrainConfig, Kind, int] | None:
    """(configuration, kind, bytes that the memory model expects) of what fits the card; None where nothing does."""
    shape = shape_of(config, vocabulary(report))
    gpu = report.device.type == "cuda"
    room = memory.MARGIN * parallel.device_bytes(report.device)
    alone = memory.estimate(
        shape, config, micro_batch=config.batch.micro_batch_size, processes=1, gpu=gpu, sharding="step"
    )
    if kind == "fsdp":  # gradients wait whole, as among several processes
        alone = replace(alone, accumulated=4 * flops.matrix_weights(shape))
    if alone.total <= room:
        return config, kind, alone.total
    config = replace(config, batch=replace(config.batch, tokens=SHARDS * config.batch.tokens))
    shard = memory.estimate(
        shape, config, micro_batch=config.batch.micro_batch_size, processes=SHARDS, gpu=gpu, sharding="step"
    )
    return (config, "shard", shard.total) if kind == "fsdp" and shard.total <= room else None


def _seconds(report: Report, learner: Learner, micros: Sequence[Batch]) -> float:
    sync(report)
    began = time.perf_counter()
    train_step(learner, micros)
    sync(report)
    return time.perf_counter() - began


def _note_speed(report: Report, config: TrainConfig, kind: Kind, seconds: float) -> float:
    """Note tokens/s of one process, its MFU and the projected seconds of a step. Returns tokens/s."""
    processes = SHARDS if kind == "shard" else 1
    length = config.data.sequence_length
    shape = shape_of(config, vocabulary(report))
    speed = config.batch.tokens / processes / seconds
    report.note("step_s", seconds)
    report.note("tokens_per_s", speed)
    report.note("mfu", speed * flops.flops_per_token(shape, length, config.adapter) / metrics.peak_flops(report.device))
    listed = None if report.tiny else gpus.of_device(torch.cuda.get_device_name(report.device))
    for assumptions in (EXPECTED, PESSIMISTIC):
        if listed is None:
            break
        projected = step_time(
            shape,
            config,
            listed,
            processes=processes,
            micro_batch=config.batch.micro_batch_size,
            assumptions=assumptions,
        )
        report.note(f"projected_s, {assumptions.name}", projected.computation + projected.optimizer)
    return speed


def _note_memory(report: Report, need: int) -> None:
    """The allocator's peaks against the memory model, whose context is outside of the allocator."""
    if found := peaks(report):
        ratio = (1e9 * found["reserved_gb"] + memory.CONTEXT_BYTES) / need
        report.note("memory", {**found, "model_gb": need / 1e9, "ratio": ratio}, ok=ratio <= MEMORY_RATIO)


def _profile(report: Report, learner: Learner, micros: Sequence[Batch]) -> list[list[Any]]:
    """[name, milliseconds, calls] of the kernels that take longest in one step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        train_step(learner, micros)
        sync(report)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    return [[event.key[:70], event.self_device_time_total / 1e3, event.count] for event in events[:TOP]]


def compiled(report: Report) -> None:
    """Blocks compiled or not: step time, graph breaks, compiled variants, and the host's waits for the GPU: none."""
    report.say_device()
    for mode in ("never",) if report.tiny else ("never", "always"):
        with report.case(f"compile {mode}"):
            found = _compiled(report, mode)
            ok = not found["graph_breaks"] and not found["waits"] and found["graphs"] <= GRAPHS
            report.note(f"compile {mode}", found, ok=ok)


def _compiled(report: Report, mode: str) -> dict[str, Any]:
    ids = 512 if report.tiny else 32_768
    overrides = TOY if report.tiny else {"n_layer": min(4, report.options.layers)}
    config = config_of(report, micro_batch=2, samples=4, compile=mode, model={"overrides": overrides})
    clean(report)
    torch._dynamo.utils.counters.clear()
    learner, chance = learner_of(report, config, ids=ids, kind="fsdp"), np.random.default_rng(1)
    first = _seconds(report, learner, random_micros(report, config, ids, chance))
    micros = random_micros(report, config, ids, chance)
    spent = timed_ms(report, lambda: train_step(learner, micros), times=3, warm=1)
    waits = _waits(report, learner, config, ids, chance)
    model = learner.state.model
    model.eval()
    with torch.no_grad():
        learner.model(micros[0].ids, micros[0].targets)
    model.train()
    parallel.reshard(model)
    _seconds(report, learner, random_micros(report, config, ids, chance, documents=4))
    counters = torch._dynamo.utils.counters
    return {
        "first_step_s": first,
        "step_ms": spent,
        "waits": waits,
        "graph_breaks": sum(counters["graph_break"].values()),
        "graphs": counters["stats"]["unique_graphs"],
        **peaks(report),
    }


def _waits(report: Report, learner: Learner, config: TrainConfig, ids: int, chance: Any) -> list[str]:
    """Where the host waits for the GPU in a step, its batches' copies included; file and line."""
    if report.device.type != "cuda":
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        train_step(learner, random_micros(report, config, ids, chance))
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


def qlora(report: Report, *, optimizer: str) -> None:
    """The step of ``jobs/finetune.yaml``, of a quarter of its tokens: NF4 weights, pairs on attention, bf16."""
    report.say_device()
    config = _finetune(report, optimizer)
    clean(report)
    with report.case("quantised alike"):
        _quantised_alike(report)
    learner = learner_of(
        report,
        config,
        ids=vocabulary(report),
        kind="autocast",
        load_base=lambda model: _onto(report, model),
    )
    chance = np.random.default_rng(1)
    clean(report)
    report.note("first_step_s", _seconds(report, learner, random_micros(report, config, vocabulary(report), chance)))
    micros = random_micros(report, config, vocabulary(report), chance)
    spent = [_seconds(report, learner, micros) for _ in range(1 if report.tiny else STEPS)]
    _note_speed(report, config, "autocast", min(spent))
    shape = shape_of(config, vocabulary(report))
    gpu = report.device.type == "cuda"
    need = memory.estimate(
        shape, config, micro_batch=config.batch.micro_batch_size, processes=1, gpu=gpu, sharding="step"
    )
    _note_memory(report, need.total)


def _finetune(report: Report, optimizer: str) -> TrainConfig:
    """The job's own section, with the sizes that the other parts have."""
    from bafogpt.jobs import job as jobs

    config = jobs.load(ROOT / "jobs" / "finetune.yaml").train
    sized = config_of(report, micro_batch=config.batch.micro_batch_size, samples=4 * config.batch.micro_batch_size)
    return replace(
        config,
        data=sized.data,
        model=sized.model,
        batch=sized.batch,
        compile=sized.compile,
        optimizer=schema.build(OptimizerConfig, {**asdict(config.optimizer), "name": optimizer}, where="gpu-check"),
    )


def _onto(report: Report, model: Any) -> None:
    """Give a base random bf16 weights on the device, where it is then quantised: a CPU would take a minute."""
    from bafogpt.model.gpt import materialise, tie

    model.to("meta").to(torch.bfloat16)
    tie(model)
    materialise(model, report.device)
    fill(model)


def _quantised_alike(report: Report) -> None:
    """Jobs quantise on the CPU and move the result: it must be what the device itself makes of a matrix."""
    from bafogpt.model.nf4 import NF4Linear, dequantised

    linear = torch.nn.Linear(2304, 1024, bias=False, dtype=torch.bfloat16)
    moved = dequantised(NF4Linear.of(linear).to(report.device))
    there = dequantised(NF4Linear.of(linear.to(report.device)))
    found = difference(moved, there)
    report.note("quantised alike", {"difference": found}, ok=found <= 1e-2)


def float8(report: Report) -> None:
    """The best row again with the blocks' products in fp8, and how much faster it is."""
    report.say_device()
    if not report.tiny and torch.cuda.get_device_capability(report.device) < (8, 9):
        report.note("left_out", "this card has no fp8")
        return
    best = best_row(report.earlier)
    micro_batch, recompute, kind = _recipe(best)
    speed = throughput(report, micro_batch=micro_batch, recompute=recompute, kind=kind, float8="tensorwise")
    if best is not None and speed is not None:
        report.note("against", {"row": best["row"], "speed_up": speed / best["tokens_per_s"]})


def _recipe(row: Mapping[str, Any] | None) -> tuple[int, str, Kind]:
    """Micro-batch, recomputation and kind of a throughput part, from its name; those of ``jobs/pretrain.yaml`` for
    None."""
    if row is None:
        return 2, "selective", "fsdp"
    *kind, micro_batch, recompute = row["row"].split()[1:]
    return int(micro_batch), recompute, "autocast" if kind else "fsdp"
