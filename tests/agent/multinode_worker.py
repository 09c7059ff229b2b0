"""A trainer of a run on several nodes, without a model: ranks that wait for each other, a file of the state each.

All ranks meet at MASTER_ADDR:MASTER_PORT and exchange the samples that each consumed, so the end of one is the end of
all, as with a real process group. The state is a list of the hashes of all samples so far, which each rank keeps whole
and of which it saves its own slice: a part of a checkpoint that is of another save than the rest is noticed when it is
read. ``hang`` in MULTINODE_WORKER lets the highest rank hang at step 12 of the first start.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from bafogpt.core import files
from bafogpt.train.config import rank_samples
from bafogpt.train.trainer_io import Rendezvous, StopFlag, TrainerFiles, WorkerResult, checkpoint_name, read_staged
from tests.ranks import Ranks

RANK, LOCAL = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
COUNT, LOCAL_COUNT = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
NODES = COUNT // LOCAL_COUNT


def main() -> int:
    faulthandler.register(signal.SIGUSR1)
    stop = StopFlag()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    trainer_files = TrainerFiles(Path(sys.argv[1]))
    order = trainer_files.read_order()
    config, ranks = order.config, Ranks()
    consumed: list[int] = []
    step = 0
    if order.resume_step is not None:
        folder = trainer_files.resume / checkpoint_name(order.resume_step)
        step, consumed = read_staged(folder).step, whole(folder)
        assert len(consumed) == step * config.batch_samples == read_staged(folder).samples
    stopping = False
    while step < config.steps and not stopping:
        time.sleep(0.03)
        if (
            os.environ.get("MULTINODE_WORKER") == "hang"
            and RANK == COUNT - 1
            and step == 12
            and order.resume_step is None
        ):
            threading.Event().wait()
        first = step * config.batch_samples
        own = list(rank_samples(first, first + config.batch_samples, config.batch_samples, RANK, COUNT))
        said = ranks.gather((own, stop.requested))
        stopping = any(each[1] for each in said)
        consumed += [index for each in said for index in each[0]]
        step += 1
        if RANK == 0:
            tell(trainer_files, order.attempt, step, consumed, config.batch_samples)
        if step % config.checkpoint.every == 0 or step == config.steps or stopping:
            while LOCAL == 0 and len(trainer_files.pending()) >= config.checkpoint.max_pending:
                time.sleep(0.02)
            ranks.gather(None)
            save(trainer_files, ranks, step, consumed)
    trainer_files.write_result(
        RANK, WorkerResult("finished" if step == config.steps else "stopped", step, len(consumed))
    )
    return 0


def tell(trainer_files: TrainerFiles, attempt: int, step: int, consumed: list[int], batch: int) -> None:
    line = {"step": step, "samples": [len(consumed) - batch, len(consumed)], "consumed": consumed[-batch:], "loss": 1.0}
    line |= {"learning_rate": 0.1, "tokens_per_s": 1.0, "mfu": 0.1, "stage": "news", "seconds": step}
    with trainer_files.metrics(attempt).open("a") as file:
        file.write(json.dumps(line) + "\n")


def save(trainer_files: TrainerFiles, ranks: Ranks, step: int, consumed: list[int]) -> None:
    """As the real one: every process its own file, then the first of each node commits the node's part."""
    partial = trainer_files.partial(step)
    if LOCAL == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    ranks.gather(None)
    launch = os.environ["TORCHELASTIC_RUN_ID"]
    part = {"step": step, "rendezvous_id": launch, "count": COUNT, "slice": consumed[RANK::COUNT]}
    files.write_atomic(partial / f"state-{RANK:03d}.json", json.dumps(part))
    ranks.gather(None)
    if LOCAL == 0:
        meta = {"step": step, "samples": len(consumed)}
        trainer_files.commit(partial, meta, Rendezvous(id=launch, nodes=NODES) if NODES > 1 else None)
    ranks.gather(None)


def whole(folder: Path) -> list[int]:
    """The samples that a checkpoint says were consumed, from the parts of any number of processes, all of one save."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("state-*.json"))]
    assert len({(part["step"], part["rendezvous_id"], part["count"]) for part in parts}) == 1, parts
    assert len(parts) == parts[0]["count"], f"{len(parts)} parts"
    consumed = [0] * sum(len(part["slice"]) for part in parts)
    for rank, part in enumerate(parts):
        consumed[rank :: len(parts)] = part["slice"]
    return consumed


if __name__ == "__main__":
    sys.exit(main())
