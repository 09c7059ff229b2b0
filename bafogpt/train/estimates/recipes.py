"""Micro-batch, recomputation and sharding for a job on a GPU, chosen by time among what fits. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bafogpt.core.errors import ConfigError
from bafogpt.train.config import Recompute, Sharding, TrainConfig, check_processes
from bafogpt.train.estimates import memory
from bafogpt.train.estimates.flops import Shape
from bafogpt.train.estimates.gpus import GpuSpec
from bafogpt.train.estimates.step_time import EXPECTED, Assumptions, StepTime, step_time

RESERVE = 2_000_000_000
"""Bytes of a card that a recommended recipe leaves free by the memory model."""
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
SHARDING: tuple[Sharding, ...] = ("step", "pass", "full")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that decide memory and time of a step, with both as projected."""

    micro_batch: int
    recompute: Recompute
    sharding: Sharding
    fits: bool
    """Whether the trainer would accept it on that card."""
    memory_bytes: int
    """Bytes of the card, by :mod:`bafogpt.train.estimates.memory`."""
    time: StepTime

    @property
    def assignments(self) -> list[str]:
        """The arguments of ``--set`` that select it."""
        return [
            f"train.batch.micro_batch_size={self.micro_batch}",
            f"train.activation_checkpointing={self.recompute}",
            *([f"train.sharding={self.sharding}"] if self.sharding != "step" else []),
        ]

    def describe(self, gpu: GpuSpec) -> str:
        """``"micro-batch 2, recompute selective, 39.1 of 47.7 GB a GPU"``."""
        sharding = f", sharding {self.sharding}" if self.sharding != "step" else ""
        return (
            f"micro-batch {self.micro_batch}, recompute {self.recompute}{sharding}, "
            f"{self.memory_bytes / 1e9:.1f} of {gpu.memory / 1e9:.1f} GB a GPU"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "micro_batch_size": self.micro_batch,
            "recompute": self.recompute,
            "sharding": self.sharding,
            "fits": self.fits,
            "need_gb": self.memory_bytes / 1e9,
            "step": self.time.to_dict(),
        }


def as_written(
    shape: Shape,
    config: TrainConfig,
    gpu: GpuSpec,
    *,
    processes: int,
    nodes: int = 1,
    assumptions: Assumptions = EXPECTED,
) -> Recipe:
    """The recipe that the trainer takes for ``config``; where nothing fits, its own micro-batch (or 1)."""
    fitting, sharding = memory.choose_micro_batch(shape, config, processes=processes, gpu=True, memory=gpu.memory)
    micro_batch = fitting or max(1, config.batch.micro_batch_size)
    needed = memory.estimate(shape, config, micro_batch=micro_batch, processes=processes, gpu=True, sharding=sharding)
    return Recipe(
        micro_batch=micro_batch,
        recompute=config.activation_checkpointing,
        sharding=sharding if processes > 1 else "step",
        fits=fitting > 0 and refusal(config, gpu, processes) is None,
        memory_bytes=needed.total,
        time=step_time(
            shape,
            config,
            gpu,
            processes=processes,
            micro_batch=micro_batch,
            sharding=sharding,
            nodes=nodes,
            assumptions=assumptions,
        ),
    )


def fastest(
    shape: Shape,
    config: TrainConfig,
    gpu: GpuSpec,
    *,
    processes: int,
    nodes: int = 1,
    assumptions: Assumptions = EXPECTED,
) -> Recipe | None:
    """The recipe with the shortest step among those that the trainer accepts and that leave :data:`RESERVE` free.

    Micro-batches are powers of two that divide a process's share of a step. None where nothing fits.
    """
    found = [
        as_written(shape, candidate, gpu, processes=processes, nodes=nodes, assumptions=assumptions)
        for candidate in _candidates(config, processes)
    ]
    fitting = [each for each in found if each.fits and each.memory_bytes <= gpu.memory - RESERVE]
    return min(fitting, key=lambda each: (each.time.total, each.memory_bytes), default=None)


def refusal(config: TrainConfig, gpu: GpuSpec, processes: int) -> ConfigError | None:
    """The error with which the trainer would refuse ``config`` on that card, whatever its memory; None if none."""
    try:
        check_processes(config, processes)
    except ConfigError as error:
        return error
    if config.float8 != "none" and gpu.fp8 is None:
        return ConfigError(f"train.float8 is {config.float8}, and {gpu.name} has no fp8", "--set train.float8=none")
    return None


def _candidates(config: TrainConfig, processes: int) -> Iterator[TrainConfig]:
    share = config.batch_samples // processes
    for micro_batch in [2**k for k in range(7) if share and share % 2**k == 0]:
        batch = replace(config.batch, micro_batch_size=micro_batch)
        for recompute in RECOMPUTE:
            for sharding in SHARDING if processes > 1 and config.adapter is None else SHARDING[:1]:
                yield replace(config, batch=batch, activation_checkpointing=recompute, sharding=sharding)
