"""Runs whole steps of a job on one GPU in a process of its own: whether they fit, and the memory they take.

    python -m bafogpt.train.probes.step_probe < TRIAL

A :class:`Trial` (as JSON) runs the trainer's own code, with torch's fake process group in place of the run's other
processes: memory is as it would be among them, and nothing is exchanged. It makes two steps, because the optimizer's
state exists after the first. The last line of the output is a :class:`Peak` as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from litgpt.config import Config

from bafogpt.core import schema
from bafogpt.train import batches, parallel
from bafogpt.train.config import Sharding, TrainConfig
from bafogpt.train.estimates.memory import is_out_of_memory
from bafogpt.train.learner import Learner, build_learner
from bafogpt.train.step import train_step

STEPS = 2
MICRO_BATCHES = 3
"""At most, of a step: the first, one in the middle that gathers nothing, and the last."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The steps to try."""

    config: TrainConfig
    network: dict[str, Any]
    """The fields of litgpt's ``Config``."""
    micro_batch: int
    """Samples a micro-batch."""
    sharding: Sharding
    documents: bool = False
    """Whether attention is limited to a document."""
    device: Literal["cpu", "cuda"] = "cuda"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The memory that the steps took, in bytes of torch's allocator; 0 on a CPU."""

    fits: bool
    allocated: int = 0
    reserved: int = 0


def steps(trial: Trial) -> Iterator[Learner]:
    """Make steps without end; yields the learner after each."""
    config = trial.config
    if parallel.world_size() > 1 and not dist.is_initialized():
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=parallel.rank(), world_size=parallel.world_size(), store=FakeStore())
    fabric = parallel.make_fabric(config, trial.device, trial.sharding)
    fabric.launch()
    shape = Config(**trial.network)
    learner = build_learner(config, shape, fabric, sharding=trial.sharding, identity={}, empty=True)
    share = config.batch_samples // parallel.world_size()
    length = config.data.sequence_length
    row = batches.SampleRow(np.zeros(length + 1, np.int64), np.zeros(length, np.int32) if trial.documents else None)
    count = min(MICRO_BATCHES, max(1, share // trial.micro_batch))
    while True:
        train_step(learner, [batches.make_batch([row] * trial.micro_batch, fabric.device) for _ in range(count)])
        yield learner


def measure(trial: Trial) -> Peak:
    """Measure the memory of :data:`STEPS` steps."""
    made = steps(trial)
    try:
        for _ in range(STEPS):
            next(made)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return Peak(fits=False)
    if trial.device == "cpu":
        return Peak(fits=True)
    torch.cuda.synchronize()
    return Peak(fits=True, allocated=torch.cuda.max_memory_allocated(), reserved=torch.cuda.max_memory_reserved())


def main() -> None:
    """Read a trial from stdin and print its peak."""
    trial = schema.build(Trial, json.load(sys.stdin), where="trial")
    with tempfile.TemporaryDirectory(prefix="bafogpt-probe-") as folder:
        os.chdir(Path(folder))  # for files that libraries write
        print(json.dumps(asdict(measure(trial))), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # do not wait for the fake process group
