"""Writes checkpoints in a thread while training continues; the loop waits only for the copy to host memory.

Every process copies its slices and writes its own file (torch's ``dcp.async_save``). When all have, the first process
of each node adds the metadata, syncs, and renames the folder: only then the node's part of the checkpoint exists. At
most one save is in progress: the next one first waits for it, and raises its error.
"""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from bafogpt.core import files
from bafogpt.core.errors import DiskFullError
from bafogpt.train.config import CheckpointConfig
from bafogpt.train.parallel import any_process, local_rank, nodes, rank, world_size
from bafogpt.train.state import TrainState
from bafogpt.train.trainer_io import Rendezvous, TrainerFiles, checkpoint_name


class Checkpointer:
    """Saves a :class:`TrainState`. Every process has one and calls it at the same steps."""

    def __init__(self, trainer_files: TrainerFiles, config: CheckpointConfig) -> None:
        self._trainer_files = trainer_files
        self._config = config
        # a group of its own: its messages come from another thread and must not mix with those of training
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    def has_room(self, step: int, must: bool) -> bool:
        """Whether to save now, by the number of checkpoints on this disk that wait for their upload.

        At ``max_pending`` of them this waits for an upload, or returns False where ``on_backlog`` is ``skip`` and the
        checkpoint is not a ``must``.
        """
        self.wait()
        most = self._config.max_pending
        full = any_process(rank() == 0 and len(self._trainer_files.pending()) >= most)
        if full and self._config.on_backlog == "skip" and not must:
            if rank() == 0:
                print(f"no checkpoint at step {step}: {most} wait to be sent")
            return False
        while full and rank() == 0 and len(self._trainer_files.pending()) >= most:
            time.sleep(0.05)
        return True

    def save(self, state: TrainState) -> None:
        """Copy the state and start writing it. Returns when the copy is made, so training may change the state.

        Raises :class:`DiskFullError` when there is no room for it, and the error of the save before it.
        """
        self.wait()
        started = time.monotonic()
        name, partial = checkpoint_name(state.progress.step), self._trainer_files.partial(state.progress.step)
        tensors = state.tensors()
        # all processes' files on this disk, with a margin for headers
        size = int(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) * 1.02) + 64_000
        if local_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            files.require_space(self._trainer_files.checkpoints, size // nodes(), f"checkpoint {name}")
            partial.mkdir(parents=True)
        if self._group is not None:
            dist.barrier(self._group)
        meta = {**asdict(state.progress), "fingerprint": state.fingerprint, "processes": world_size()}
        writing = dcp.async_save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
            process_group=self._group,
            no_dist=self._group is None,
        )
        self._saving = self._thread.submit(self._finish, writing, partial, meta, size // nodes(), started)

    def wait(self) -> None:
        """Wait until the save in progress, if any, is a checkpoint under its name; raise its error."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()
        if self._group is not None:
            dist.barrier(self._group)

    def _finish(self, writing: Any, partial: Path, meta: dict[str, Any], size: int, started: float) -> None:
        """In the thread: wait for all processes' files, then commit."""
        try:
            writing.result()
            if local_rank() == 0:
                took = {"save_s": round(time.monotonic() - started, 3)}
                several = Rendezvous(id=os.environ["TORCHELASTIC_RUN_ID"], nodes=nodes()) if nodes() > 1 else None
                self._trainer_files.commit(partial, {**meta, **took}, several)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not _is_disk_full(error):
                raise
            folder, name = self._trainer_files.checkpoints, checkpoint_name(meta["step"])
            message = f"{folder}: no room for checkpoint {name} ({size / 1e6:,.1f} MB)"
            raise DiskFullError(message, f"df -h {folder}") from error


def _is_disk_full(error: BaseException) -> bool:
    """Whether the disk is full; DCP and safetensors wrap the original error in their own."""
    return isinstance(error, DiskFullError) or any(
        text in str(error) for text in ("No space left", "os error 28", "File too large", "Disk quota")
    )
