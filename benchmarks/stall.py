"""``./scripts/bench stall``: how long training stands still for a checkpoint, and how long the whole way would take.

A state of ``--mb`` MB (weights and both Adam moments, float32) is saved ``--saves`` times by the real
:class:`~bafogpt.train.checkpointer.Checkpointer`; the stall is the time until ``save`` returns. Beside it: the same
save waited for, and waited for with the upload to a real S3 server, which is what a trainer without a background writer
and without a supervisor would pay. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bafogpt.core.settings import EMBEDDED, Settings
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.embedded import server
from bafogpt.train.checkpointer import Checkpointer
from bafogpt.train.config import CheckpointConfig
from bafogpt.train.state import TrainState
from bafogpt.train.trainer_io import TrainerFiles


def make_state(megabytes: int) -> TrainState:
    """Four layers whose weights and optimizer state fill ``megabytes``."""
    size = int((megabytes * 1e6 / 4 / 3 / 4) ** 0.5)
    model = torch.nn.Sequential(*(torch.nn.Linear(size, size, bias=False) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, size)).sum().backward()
    optimizer.step()
    return TrainState(model, optimizer, {"model": {}, "data": "", "sequence_length": 0})


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=268)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = make_state(options.mb)
    stalls, saves, uploads = [], [], []
    with tempfile.TemporaryDirectory(prefix="bafogpt-stall-") as folder:
        trainer_files = TrainerFiles(Path(folder) / "work")
        trainer_files.checkpoints.mkdir(parents=True)
        with server.lease(Path(folder)):
            bucket = Bucket.open("s3://bafogpt", Settings(s3_endpoint=EMBEDDED, home=folder))
            bucket.create()
            checkpointer = Checkpointer(trainer_files, CheckpointConfig())
            for step in range(options.saves + 1):  # the first one warms up
                state.progress.step = step
                state.model[0].weight.data += 1  # type: ignore[index,union-attr,operator]
                stall = timed(lambda: checkpointer.save(state))
                save = stall + timed(checkpointer.wait)
                made = trainer_files.pending()[0]
                store = CheckpointStore(bucket.child(f"checkpoints-{step}"))  # nothing there that need not be sent
                upload = timed(
                    lambda s=store, m=made, n=step: s.upload(m, step=n, samples=0, upload_id="a", metadata={})
                )
                trainer_files.drop(made)
                if step:
                    stalls.append(stall), saves.append(save), uploads.append(save + upload)
    rows = {
        "stall of the loop (save)": statistics.median(stalls),
        "save waited for": statistics.median(saves),
        "save and upload waited for": statistics.median(uploads),
    }
    for name, seconds in rows.items():
        print(f"{name:<28} {seconds:8.3f} s   {seconds / rows['save and upload waited for']:7.1%}")
    if options.json:
        options.json.write_text(json.dumps({"mb": options.mb, **rows}, indent=1))


if __name__ == "__main__":
    main()
