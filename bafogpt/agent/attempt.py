"""One attempt at a run on one machine: what node 0 and the other nodes share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bafogpt.agent import machine_check
from bafogpt.agent.budget import Budget
from bafogpt.agent.recorder import Recorder
from bafogpt.agent.workers import RankLayout, Workers
from bafogpt.core import nvidia_smi
from bafogpt.jobs.job import Job
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder, WorkerResult


@dataclass(frozen=True)
class WorkersExit:
    """How the workers of one start ended."""

    codes: list[int | None]
    results: list[WorkerResult]
    why: str
    """The first failure in words."""

    @property
    def failed(self) -> WorkerResult | None:
        """The first result that reports a failure."""
        return next((result for result in self.results if result.outcome == "failed"), None)

    def all_ended(self, *outcomes: str) -> bool:
        """Whether every worker has reported one of the outcomes."""
        return len(self.results) == len(self.codes) and all(result.outcome in outcomes for result in self.results)


class Attempt:
    """A job, its bucket, its local disk ``folder``, its recorder and its workers.

    ``record`` names the run and the attempt; ``command`` starts a worker. ``node`` is this machine's rank.
    """

    def __init__(
        self,
        job: Job,
        bucket: Bucket,
        folder: Path,
        record: RunRecord,
        command: Sequence[str],
        *,
        node: int = 0,
        budget: Budget | None = None,
    ) -> None:
        self.job = job
        self.config = job.supervisor
        self.bucket = bucket
        self.name = record.name
        self.number = record.attempts
        self.store = RunStore(bucket)
        self.run = self.store.folder(record.name)
        self.checkpoints = self.store.checkpoints(record.name)
        self.trainer_files = TrainerFiles(folder)
        self.trainer_files.checkpoints.mkdir(parents=True, exist_ok=True)
        self.recorder = Recorder(self.store, record, self.trainer_files, job.supervisor, budget=budget, node=node)
        self._command = command
        self._gpus = nvidia_smi.count()
        self._environment: Mapping[str, str] = {}

    @property
    def processes(self) -> int:
        """Workers on this machine."""
        return self.config.processes or self._gpus or 1

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        return "cuda" if self._gpus else "cpu"

    def check_machine(self, stopped: Callable[[], bool]) -> None:
        """Raises what :func:`~bafogpt.agent.machine_check.require_fit` does."""
        report = machine_check.require_fit(
            self.job, self.recorder, self.bucket, self.trainer_files.folder, stopped=stopped
        )
        self._environment, self._gpus = report.environment, report.gpus

    def keep_restored(self, folder: Path | None) -> None:
        """Remove every checkpoint from ``resume/`` but the one in ``folder``."""
        for older in self.trainer_files.resume.glob("*"):
            if older != folder:
                shutil.rmtree(older)

    def start_workers(self, layout: RankLayout, resume_step: int | None) -> Workers:
        order = TrainOrder(
            bucket=self.bucket.url,
            config=self.job.train,
            device=self.device,
            attempt=self.number,
            collective_timeout_s=self.config.collective_timeout_s,
            resume_step=resume_step,
        )
        self.trainer_files.write_order(order)
        log, environment = self.recorder.log, self._environment
        return Workers(self.trainer_files.folder, self.processes, log, self._command, layout, environment)

    def workers_exit(self, workers: Workers, codes: list[int | None]) -> WorkersExit:
        """``codes`` are the exit codes before the rest was killed."""
        results = self.trainer_files.read_results()
        failed = next((result for result in results if result.outcome == "failed"), None)
        return WorkersExit(codes, results, failed.error if failed else workers.describe_exit(codes))
