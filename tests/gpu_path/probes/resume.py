"""A step, a checkpoint, and the next step from it: ``python -m tests.gpu_path.probes.resume FOLDER``."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from bafogpt.core import schema
from bafogpt.model.config import gpt_config
from bafogpt.train.checkpointer import Checkpointer
from bafogpt.train.config import TrainConfig
from bafogpt.train.probes.step_probe import Trial, steps
from bafogpt.train.trainer_io import TrainerFiles

SIZES = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_query_groups": 1, "head_size": 32, "intermediate_size": 128}


def trial() -> Trial:
    values = {
        "tokens": 10**9,
        "data": {"path": "data", "sequence_length": 128},
        "model": {"overrides": SIZES},
        "batch": {"tokens": 512, "micro_batch_size": 2},
        "compile": "never",
    }
    network = asdict(gpt_config("Gemma-2-2b", SIZES, 512))
    config = schema.build(TrainConfig, values, where="probe")
    return Trial(config=config, network=network, micro_batch=2, sharding="step", device="cuda")


def main(folder: Path) -> None:
    trainer_files = TrainerFiles(folder)
    trainer_files.checkpoints.mkdir(parents=True)
    first = next(steps(trial()))
    checkpointer = Checkpointer(trainer_files, first.config.checkpoint)
    checkpointer.save(first.state)
    checkpointer.wait()

    made = steps(trial())
    second = next(made)  # the network is there after a step; what it learned is replaced
    second.state.optimizer.state.clear()
    second.state.load(trainer_files.pending()[0])
    done = [second.state.progress.step]
    next(made)
    done.append(second.state.progress.step)
    counted_on = sorted({str(state["step"].device) for state in second.state.optimizer.state.values()})
    print(json.dumps({"steps": done, "counted_on": counted_on}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
