"""A training without torch, in the place of :mod:`bafogpt.train.loop`: a start costs a tenth of what torch costs.

All around it is real: the worker, the trainer files, the stream, the commit of a checkpoint. The state is a vector of
floats that each sample changes in a way that depends on the order, cut into slices, one a process; each process reads
its own share of a step's samples, and all of them exchange these. So any sample that is lost, repeated or out of order
changes the bits, whatever number of processes was at work.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bafogpt.core import files
from bafogpt.core.errors import ConfigError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.stream import BlockCache, Samples, TokenStream, prefetch
from bafogpt.train.config import CheckpointConfig, rank_samples
from bafogpt.train.trainer_io import StopFlag, TrainerFiles, TrainOrder, WorkerResult, checkpoint_name, read_staged
from tests.ranks import Ranks

from . import ledger, points

FLOATS = "FAULTS_FLOATS"
"""Variable: floats in the state."""
Row = tuple[int, Any]


def train(order: TrainOrder, trainer_files: TrainerFiles, stop: StopFlag) -> WorkerResult:
    """As the real one: train until the last token or until ``stop``, and leave checkpoints in ``trainer_files``."""
    config, ranks = order.config, Ranks()
    if config.batch_samples % ranks.count:
        raise ConfigError("the batch does not divide among the processes", "choose another number")
    state = _State(ranks)
    if order.resume_step is not None:
        state.load(trainer_files.resume / checkpoint_name(order.resume_step))
    book = ledger.Ledger(Path(os.environ[ledger.VARIABLE])) if ranks.rank == 0 else None
    if book:
        where = {"processes": ranks.count, "prefetch": config.data.prefetch, "attempt": order.attempt}
        book.start(step=state.step, samples=state.samples, consumed=state.consumed, **where)
    rows = _rows(order, trainer_files, ranks, state.samples)
    while state.step < config.steps:
        own = [next(rows) for _ in range(config.batch_samples // ranks.count)]
        gathered = ranks.gather((own, stop.requested))
        step = [row for rows_of_rank, _ in gathered for row in rows_of_rank]
        stopping = any(requested for _, requested in gathered)
        if book:
            book.step(state.step + 1, [(index, _hash(tokens.tobytes())) for index, tokens in step])
        state.learn(step)
        if book:
            _metrics(trainer_files, order, state, config.batch_samples)
        must = state.step == config.steps or stopping
        if must or state.step % config.checkpoint.every == 0:
            full = ranks.gather(ranks.rank == 0 and _full(trainer_files, config.checkpoint))[0]
            if must or not full or config.checkpoint.on_backlog == "wait":
                while ranks.rank == 0 and _full(trainer_files, config.checkpoint):
                    time.sleep(0.01)
                state.save(trainer_files)
        if stopping:
            break
    finished = state.step == config.steps
    return WorkerResult("finished" if finished else "stopped", state.step, state.samples)


def _full(trainer_files: TrainerFiles, config: CheckpointConfig) -> bool:
    return len(trainer_files.pending()) >= config.max_pending


def _rows(order: TrainOrder, trainer_files: TrainerFiles, ranks: Ranks, first: int) -> Iterator[Row]:
    """This process's samples, read ahead or (prefetch 1) not."""
    config = order.config
    data = Bucket.open(order.bucket).child(config.data.path)
    cache = (
        BlockCache(trainer_files.folder / "cache", int(config.data.cache_gb * 1e9)) if config.data.cache_gb else None
    )
    samples = Samples(TokenStream(data, manifests.load(data), "train", cache=cache), config.data.sequence_length)
    last = config.steps * config.batch_samples
    indices = rank_samples(first, last, config.batch_samples, ranks.rank, ranks.count)
    if config.data.prefetch > 1:
        yield from prefetch(samples, indices, depth=config.data.prefetch)
    else:
        yield from ((index, samples[index]) for index in indices)


def _metrics(trainer_files: TrainerFiles, order: TrainOrder, state: _State, batch: int) -> None:
    line = {"step": state.step, "samples": [state.samples - batch, state.samples], "loss": 5 / state.step}
    line |= {"learning_rate": 0.1, "tokens_per_s": 1.0, "mfu": 0.1, "stage": "news", "seconds": state.step}
    with trainer_files.metrics(order.attempt).open("a") as file:
        file.write(json.dumps(line) + "\n")


class _State:
    """The slice of the state that one process holds, and how far the run is."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._size = int(os.environ.get(FLOATS, "16384"))
        share = self._size // ranks.count
        self._slice = slice(ranks.rank * share, (ranks.rank + 1) * share)
        self._values = np.zeros(share)
        self.step = self.samples = 0
        self.consumed = ""
        """A hash of every sample so far, in order."""

    def learn(self, rows: list[Row]) -> None:
        """One step, sample after sample."""
        for index, tokens in rows:
            self._values *= 0.9990234375
            self._values += np.resize(tokens.astype(np.float64), self._size)[self._slice] / (index + 3)
            self.consumed = ledger.chained(self.consumed, (index, _hash(tokens.tobytes())))
        self.step += 1
        self.samples += len(rows)

    def save(self, trainer_files: TrainerFiles) -> None:
        """As the real one: every process its own file, then the first commits the folder."""
        partial, rank = trainer_files.partial(self.step), self._ranks.rank
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            files.require_space(trainer_files.checkpoints, 8 * self._size, f"checkpoint {self.step}")
            partial.mkdir(parents=True)
        self._ranks.gather(None)
        path, raw = partial / f"state-{rank}-of-{self._ranks.count}.bin", self._values.tobytes()
        with files.disk_full_named(partial), path.open("wb", buffering=0) as file:
            file.write(raw[: len(raw) // 2])
            points.half_written(path)
            file.write(raw[len(raw) // 2 :])
        self._ranks.gather(None)
        if rank == 0:
            names = ("step", "samples", "consumed")
            trainer_files.commit(partial, {name: getattr(self, name) for name in names})
        self._ranks.gather(None)

    def load(self, folder: Path) -> None:
        """From any number of processes' files."""
        meta = read_staged(folder).metadata
        whole = state_bytes(folder)
        assert len(whole) == 8 * self._size, f"{folder} holds {len(whole)} bytes"
        self._values = np.frombuffer(whole, np.float64)[self._slice].copy()
        self.step, self.samples, self.consumed = meta["step"], meta["samples"], meta["consumed"]


def state_bytes(folder: Path) -> bytes:
    """The state in a checkpoint folder, whole."""
    paths = sorted(folder.glob("state-*"))
    assert paths and paths[0].stem.endswith(f"-of-{len(paths)}"), f"{folder} is not whole"
    return b"".join(path.read_bytes() for path in paths)


def _hash(tokens: bytes) -> str:
    return hashlib.blake2b(tokens, digest_size=8).hexdigest()
