"""The trainer's own objects around a network, in the ways in which a job would have them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist

from bafogpt.train import batches, parallel
from bafogpt.train.config import TrainConfig
from bafogpt.train.learner import Learner, build_learner
from benchmarks.gpu_check.models import fill, random_rows, shape_of
from benchmarks.gpu_check.report import Report

Kind = Literal["autocast", "fsdp", "shard"]
"""``autocast``: one process, as it trains alone. ``fsdp``: FSDP2 with one process. ``shard``: one of :data:`SHARDS`
processes, the others replaced by torch's fake process group: its memory and its work, with nothing exchanged, so that
what it computes has no meaning."""
SHARDS = 4


def learner_of(
    report: Report,
    config: TrainConfig,
    *,
    ids: int,
    kind: Kind,
    filled: bool = True,
    load_base: Callable[[torch.nn.Module], None] | None = None,
) -> Learner:
    """A :class:`Learner` of ``config`` with ``ids`` ids; with random weights made on the device where ``filled``, else
    with those that ``config.seed`` draws."""
    if kind == "shard":
        os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(SHARDS)
    if kind != "autocast" and not dist.is_initialized():
        _join(report, kind)
    device: Any = report.device.type
    fabric = parallel.make_fabric(config, device, "step", sharded=kind != "autocast")
    fabric.launch()
    learner = build_learner(
        config,
        shape_of(config, ids),
        fabric,
        sharding="step",
        identity={},
        empty=filled,
        load_base=load_base,
    )
    if filled and config.adapter is None:
        fill(learner.state.model)
    return learner


def _join(report: Report, kind: Kind) -> None:
    if kind == "shard":
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=SHARDS, store=FakeStore())
        return
    backend = "cpu:gloo,cuda:nccl" if report.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())


def random_micros(
    report: Report, config: TrainConfig, ids: int, chance: Any, *, documents: int = 1
) -> list[batches.Batch]:
    """One step's micro-batches of this process."""
    micro_batch = config.batch.micro_batch_size
    share = config.batch_samples // parallel.world_size()
    rows = random_rows(report, ids, share, chance, documents=documents)
    return [
        batches.make_batch(rows[start : start + micro_batch], report.device) for start in range(0, share, micro_batch)
    ]
