"""Models, batches and timing that the parts share."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from benchmarks.gpu_check.report import Report

WIDTH = 2304
"""Of Gemma-2-2B."""
TOY = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_query_groups": 1, "head_size": 32, "intermediate_size": 128}
SMALL = {"n_layer": 2, "n_embd": 256, "n_head": 4, "n_query_groups": 2, "head_size": 256, "intermediate_size": 512}
"""Gemma-2's head size, so that its kernels run, in a network that a CPU computes in a second."""
PIECE = 1 << 24
"""Numbers that are compared at a time."""


def vocabulary(report: Report) -> int:
    """Ids of the extended vocabulary."""
    return 512 if report.tiny else 296_000


def length(report: Report) -> int:
    """Tokens a sample."""
    return 64 if report.tiny else 2048


def config_of(report: Report, *, micro_batch: int, samples: int, **changes: Any) -> Any:
    """The :class:`~bafogpt.train.config.TrainConfig` of Gemma-2-2B, or of a toy where ``tiny``, with steps of
    ``samples``."""
    from bafogpt.core import schema
    from bafogpt.train.config import TrainConfig

    tokens = length(report)
    values: dict[str, Any] = {
        "tokens": 10**12,
        "data": {"path": "random", "sequence_length": tokens},
        "model": {"overrides": TOY if report.tiny else {"n_layer": report.options.layers}},
        "batch": {"tokens": samples * tokens, "micro_batch_size": micro_batch},
        "precision": "bf16-mixed",
        "compile": "never" if report.tiny else "auto",
    }
    return schema.build(TrainConfig, values | changes, where="gpu-check")


def shape_of(config: Any, ids: int) -> Any:
    """litgpt's configuration of ``config``'s network with ``ids`` ids."""
    from bafogpt.model.config import gpt_config

    return gpt_config(config.model.network, config.model.overrides, ids)


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Give every parameter random numbers where it lies, norms zeros: a CPU takes a minute for 2.7 G of them."""
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if "norm" in name or "ln_f" in name:
            local.zero_()
        else:
            local.normal_(0, 0.02)


def random_rows(report: Report, ids: int, count: int, chance: np.random.Generator, *, documents: int = 1) -> list[Any]:
    """``count`` samples of random tokens; with more ``documents`` than one, hidden from each other."""
    from bafogpt.train.batches import SampleRow

    tokens = length(report)
    numbers = (np.arange(tokens) * documents // tokens).astype(np.int32) if documents > 1 else None
    return [SampleRow(chance.integers(0, ids, tokens + 1), numbers) for _ in range(count)]


def sync(report: Report) -> None:
    """Wait until the device has done all that it was given."""
    if report.device.type == "cuda":
        torch.cuda.synchronize(report.device)


def clean(report: Report) -> None:
    """Forget compiled code and cached memory, and begin peaks anew."""
    gc.collect()
    torch._dynamo.reset()
    if report.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(report.device)


def peaks(report: Report) -> dict[str, float]:
    """The allocator's peaks since :func:`clean`; nothing on a CPU."""
    if report.device.type != "cuda":
        return {}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"allocated_gb": allocated / 1e9, "reserved_gb": reserved / 1e9}


def timed_ms(report: Report, work: Callable[[], Any], *, times: int = 5, warm: int = 2) -> float:
    """Milliseconds of ``work``, the best of ``times``, after ``warm`` calls that are not counted."""
    for _ in range(warm):
        work()
    best = float("inf")
    for _ in range(1 if report.tiny else times):
        sync(report)
        began = time.perf_counter()
        work()
        sync(report)
        best = min(best, time.perf_counter() - began)
    return max(best, 1e-9) * 1e3


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖ / ‖other‖, in float64 on the device of ``one``; infinite where that is no number, as for an
    ``other`` of zeros. On a CPU it shows a device that computes nothing, and so agrees with itself."""
    pieces = (torch.split(each.flatten(), PIECE) for each in (one.detach(), other.detach().to(one.device)))
    sums = torch.zeros(2, dtype=torch.float64, device=one.device)
    for a, b in zip(*pieces, strict=True):
        sums += torch.stack([(a.double() - b.double()).square().sum(), b.double().square().sum()])
    value = float((sums[0] / sums[1]).sqrt())
    return value if math.isfinite(value) else math.inf
