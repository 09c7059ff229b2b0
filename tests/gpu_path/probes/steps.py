"""Steps of a job with a validation between them: ``python -m tests.gpu_path.probes.steps < TRIAL``.

Prints what the null GPU counted in the second step, what Dynamo compiled, and the allocator's peak.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch._dynamo.utils import counters as dynamo

from bafogpt.core import schema
from bafogpt.train import batches, optimizer, parallel
from bafogpt.train.probes.step_probe import Trial, steps
from tests.gpu_path.probes import counters


def validate(learner: Any, trial: Trial) -> None:
    """As :func:`bafogpt.train.validation.Validator` calls the network."""
    length = trial.config.data.sequence_length
    ids = torch.zeros(trial.micro_batch, length, dtype=torch.int64, device=learner.fabric.device)
    documents = torch.zeros_like(ids, dtype=torch.int32) if trial.documents else None
    batch = batches.Batch(ids, ids, documents)
    learner.model.eval()
    with torch.no_grad():
        learner.model(batch.ids, batch.targets, documents=batch.documents)
    learner.model.train()
    parallel.reshard(learner.state.model)


def main() -> None:
    trial = schema.build(Trial, json.load(sys.stdin), where="trial")
    made, compiled = steps(trial), []
    learner = next(made)
    compiled.append(dynamo["stats"]["unique_graphs"])
    counters.reset()
    next(made)
    counted = counters.read()
    validate(learner, trial)
    next(made)
    compiled.append(dynamo["stats"]["unique_graphs"])
    validate(learner, trial)
    next(made)
    compiled.append(dynamo["stats"]["unique_graphs"])
    peak = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    learner.state.optimizer.state.clear()
    optimizer.init_state(learner.state.optimizer)  # as before a checkpoint is loaded
    next(made)
    found = {
        "counted": counted,
        "graphs": compiled,
        "graph_breaks": dict(dynamo["graph_break"]),
        "allocated": peak[0],
        "reserved": peak[1],
        "total": torch.cuda.get_device_properties(0).total_memory,
        "counted_on": sorted({str(state["step"].device) for state in learner.state.optimizer.state.values()}),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    import os

    os._exit(0)
