"""Checkpoints are written by a thread while training goes on; the loop waits only for the copy in host memory.

Every process copies its own slices and writes its own file (torch's ``dcp.async_save``); when all have, on every node,
the first process of each node adds the metadata, syncs and renames, and only then there is a checkpoint under its name:
the node's part of it, where there are more nodes than one. One save is under way at a time: the next one begins by
waiting for the last, and that is where its error is raised.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from bafogpt.core import files
from bafogpt.core.errors import DiskFullError
from bafogpt.train.config import CheckpointConfig
from bafogpt.train.parallel import any_process, local_rank, nodes, rank, world_size
from bafogpt.train.state import TrainState
from bafogpt.train.trainer_io import TrainerFiles, checkpoint_name


class Checkpointer:
    """Saves a :class:`TrainState`. Every process has one and calls it at the same steps."""

    def __init__(self, trainer_files: TrainerFiles, config: CheckpointConfig) -> None:
        self._trainer_files = trainer_files
        self._config = config
        # a group of its own: its messages come from another thread and must not mix with those of training
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._pending: _PendingCheckpoint | None = None

    def has_room(self, step: int, must: bool) -> bool:
        """Whether there is place for one more checkpoint on this disk; the supervisor takes them away as it sends them.

        Where there is none, and the checkpoint is not a ``must``, the job's ``on_backlog`` says whether to wait.
        """
        self.wait()
        most = self._config.max_pending
        full = any_process(rank() == 0 and len(self._trainer_files.pending()) >= most)
        if full and self._config.on_backlog == "skip" and not must:
            if rank() == 0:
                print(f"no checkpoint at step {step}: {most} wait to be sent")
            return False
        if full and rank() == 0:
            while len(self._trainer_files.pending()) >= most:
                time.sleep(0.05)
        return True

    def save(self, state: TrainState) -> None:
        """Copy the state and start writing it. Returns when the copy is made, so training may change the state.

        Raises :class:`DiskFullError` when there is no room for it, and what the save before it ended with.
        """
        self.wait()
        started = time.monotonic()
        name, partial = checkpoint_name(state.progress.step), self._trainer_files.partial(state.progress.step)
        tensors = state.tensors()
        needed = _bytes(tensors) // nodes()
        if local_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            files.require_space(self._trainer_files.checkpoints, needed, f"checkpoint {name}")
            partial.mkdir(parents=True)
        if self._group is not None:
            dist.barrier(self._group)
        meta = {**asdict(state.progress), "fingerprint": state.fingerprint, "processes": world_size()}
        if nodes() > 1:
            meta |= {"nodes": nodes(), "rendezvous_id": os.environ["TORCHELASTIC_RUN_ID"]}
        writing = dcp.async_save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
            process_group=self._group,
            no_dist=self._group is None,
        )
        self._pending = _PendingCheckpoint(writing, self._trainer_files, partial, meta, needed, started)

    def wait(self) -> None:
        """Wait until the save under way, if there is one, is a checkpoint under its name; raise what went wrong."""
        if self._pending is not None:
            saving, self._pending = self._pending, None
            saving.join()
        if self._group is not None:
            dist.barrier(self._group)


class _PendingCheckpoint:
    """One checkpoint on its way to the disk."""

    def __init__(
        self,
        writing: Any,
        trainer_files: TrainerFiles,
        partial: Path,
        meta: dict[str, Any],
        needed: int,
        started: float,
    ) -> None:
        self._writing = writing
        self._trainer_files = trainer_files
        self._partial = partial
        self._meta = meta
        self._needed = needed
        self._started = started
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self._error is None:
            return
        shutil.rmtree(self._partial, ignore_errors=True)
        if _is_disk_full(self._error):
            folder, name = self._trainer_files.checkpoints, checkpoint_name(self._meta["step"])
            message = f"{folder}: no room for checkpoint {name} ({self._needed / 1e6:,.1f} MB)"
            raise DiskFullError(message, f"df -h {folder}") from self._error
        raise self._error

    def _run(self) -> None:
        try:
            self._writing.result()  # of all processes: DCP gathers their results on every rank
            if local_rank() == 0:
                taken = {"save_s": round(time.monotonic() - self._started, 3)}
                self._trainer_files.commit(self._partial, self._meta | taken)
        except BaseException as error:
            self._error = error


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Room that all processes' files need on this disk, with a margin for headers."""
    return int(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) * 1.02) + 64_000


def _is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full; DCP and safetensors wrap the original in their own."""
    return isinstance(error, DiskFullError) or any(
        text in str(error) for text in ("No space left", "os error 28", "File too large", "Disk quota")
    )
