"""A small job and the fake worker that trains it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bafogpt.core import schema
from bafogpt.jobs.job import Job

FAKE_WORKER = (sys.executable, str(Path(__file__).parent / "agent" / "fake_worker.py"))


def make_job(**over: Any) -> Job:
    """20 steps of 4 samples, a checkpoint every 5."""
    values: dict[str, Any] = {
        "train": {
            "tokens": 800,
            "data": {"path": "data/x", "sequence_length": 10},
            "batch": {"tokens": 40, "micro_batch_size": 2},
            "checkpoint": {"every": 5},
            "model": {"overrides": {"n_layer": 2, "n_embd": 64}},  # a disk that has room for its checkpoints
        },
        "supervisor": {"flush_s": 0.2, "grace_s": 5, "storage_timeout_s": 30, "processes": 1},
    }
    return schema.build(Job, schema.merge(values, over), where="test")
