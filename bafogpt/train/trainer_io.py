"""The files that supervisor and trainer exchange, in one local folder.

::

    order.json                          the order of the supervisor
    resume/step-00000020/               the checkpoint to resume from, if any
    metrics-0001.jsonl                  one line a step, appended by rank 0; one file an attempt
    checkpoints/step-00000040/          a saved state; it gets this name when it is complete
    profile/0001-step-00000004.json.gz  a trace of some steps, on request; likewise
    results/rank-0.json                 how the trainer ended

The trainer only reads from the bucket: tokens and first weights. The supervisor transfers everything else, so a trainer
can be killed at any moment without damage to the bucket.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bafogpt.core import errors, files, schema
from bafogpt.train.config import TrainConfig

Outcome = Literal["finished", "stopped", "failed"]
CHECKPOINT_META = "checkpoint.json"
_CHECKPOINT_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True)
class TrainOrder:
    """The supervisor's order to a trainer process."""

    bucket: str
    config: TrainConfig
    device: Literal["cpu", "cuda"] = "cpu"
    attempt: int = 1
    """1-based attempt number."""
    collective_timeout_s: float = 60.0
    """Limit of the first all-reduce over all processes; 0 is no limit."""
    resume_step: int | None = None
    """Step of the checkpoint in ``resume/`` to resume from; None starts anew."""


class StopFlag:
    """Set by SIGTERM; the loop saves and ends after the current step."""

    def __init__(self) -> None:
        self.requested = False

    def set(self) -> None:
        self.requested = True


@dataclass(frozen=True)
class WorkerResult:
    """How a trainer process ended."""

    outcome: Outcome
    step: int
    samples: int
    error: str = ""
    hint: str = ""
    exit_code: int = 0
    retry: bool = False
    """Whether a restart can help: not after a wrong configuration or a full disk."""


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """The start of all trainers, on several nodes, that saved a checkpoint together."""

    id: str
    nodes: int


@dataclass(frozen=True)
class StagedCheckpoint:
    """A complete checkpoint folder on local disk."""

    folder: Path
    step: int
    samples: int
    metadata: Mapping[str, Any]
    rendezvous: Rendezvous | None
    """None for a run on one node, whose checkpoint is whole in ``folder``."""


class TrainerFiles:
    """The folder that supervisor and trainer share, by its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.resume = folder / "resume"
        self.results = folder / "results"
        self.profile = folder / "profile"

    def metrics(self, attempt: int) -> Path:
        """The metrics file of an attempt."""
        return self.folder / f"metrics-{attempt:04d}.jsonl"

    def write_order(self, order: TrainOrder) -> None:
        """Write the order and clear earlier results, before the supervisor starts trainers."""
        for path in self.results.glob("rank-*.json"):
            path.unlink()
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        files.write_atomic(self.folder / "order.json", json.dumps(asdict(order), indent=2))

    def clear_leftovers(self) -> None:
        """Remove what a kill left half written or half removed. Only while no trainer runs."""
        for path in self.checkpoints.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)  # the upload thread may be removing one

    def read_order(self) -> TrainOrder:
        """The order, for a trainer process."""
        path = self.folder / "order.json"
        return schema.build(TrainOrder, json.loads(path.read_text(encoding="utf-8")), where=str(path))

    def write_result(self, rank: int, result: WorkerResult) -> None:
        """Write how this trainer process ended."""
        files.write_atomic(self.results / f"rank-{rank}.json", json.dumps(asdict(result)))

    def read_results(self) -> list[WorkerResult]:
        """The results by rank; a killed trainer has none."""
        paths = sorted(self.results.glob("rank-*.json"))
        return [
            schema.build(WorkerResult, json.loads(path.read_text(encoding="utf-8")), where=str(path)) for path in paths
        ]

    def pending(self) -> list[Path]:
        """The complete checkpoints on local disk, oldest first."""
        return sorted(path for path in self.checkpoints.glob("step-*") if _CHECKPOINT_NAME.fullmatch(path.name))

    def partial(self, step: int) -> Path:
        """The folder of a step's checkpoint until :meth:`commit`."""
        return self.checkpoints / f".{checkpoint_name(step)}.partial"

    def partial_bytes(self) -> int:
        """Bytes of the checkpoint that is being written; it may be renamed or removed meanwhile."""
        total = 0
        for folder in self.checkpoints.glob(".step-*.partial"):
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat().st_size
        return total

    def commit(self, partial: Path, meta: Mapping[str, Any], rendezvous: Rendezvous | None = None) -> Path:
        """Make a written folder the checkpoint of step ``meta["step"]``: sync first, then rename."""
        final = self.checkpoints / checkpoint_name(meta["step"])
        written = {**meta, "rendezvous": asdict(rendezvous) if rendezvous else None}
        files.write_atomic(partial / CHECKPOINT_META, json.dumps(written, indent=1))
        _sync_files(partial)
        partial.rename(final)
        files.sync_folder(self.checkpoints)
        return final

    def drop(self, folder: Path) -> None:
        """Remove a checkpoint folder, after renaming it, so that no half of one is ever visible."""
        doomed = folder.with_name(f".{folder.name}.dropped")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read_staged(folder: Path) -> StagedCheckpoint:
    """Read the metadata of a checkpoint folder. Raises :class:`~bafogpt.core.errors.CorruptError`."""
    try:
        meta = json.loads((folder / CHECKPOINT_META).read_text(encoding="utf-8"))
        found = meta["rendezvous"]
        rendezvous = Rendezvous(id=str(found["id"]), nodes=int(found["nodes"])) if found else None
        return StagedCheckpoint(folder, int(meta["step"]), int(meta["samples"]), meta, rendezvous)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.CorruptError(f"{folder} is not a checkpoint: {error}", f"ls {folder}") from None


def checkpoint_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        files.sync_file(path)
    files.sync_folder(folder)
