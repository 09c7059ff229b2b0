"""The supervisor of nodes 1, 2, …, which follows node 0 (:mod:`bafogpt.agent.multinode.heartbeat`).

It finds the attempt that node 0 is at, starts and ends its trainers with node 0's, sends its part of each checkpoint,
and ends as the run ends. When node 0 falls silent it ends its trainers and waits for node 0 to come back, as a new
attempt, for as long as the job is patient.
"""

from __future__ import annotations

import platform
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bafogpt.agent import machine_check
from bafogpt.agent.claim import run_lock
from bafogpt.agent.multinode import heartbeat
from bafogpt.agent.multinode.heartbeat import CheckpointParts, Heartbeats, Nodes, NodeStatus
from bafogpt.agent.outcome import EXIT_CODES, ExitOutcome, stop_on_signals
from bafogpt.agent.recorder import Recorder
from bafogpt.agent.uploader import PartUploader
from bafogpt.agent.watchdog import OutOfMemory
from bafogpt.agent.workers import RankLayout, Workers, describe_exit
from bafogpt.core import nvidia_smi
from bafogpt.core.errors import BafoError, ExitCode, NotFoundError, StorageError
from bafogpt.jobs.job import Job
from bafogpt.runs.store import RunState, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder

POLL_S = 0.05
RETRY_S = 2.0


def follow(job: Job, name: str, bucket: Bucket, folder: Path, nodes: Nodes, worker: Sequence[str]) -> ExitOutcome:
    """Take part in run ``name`` as node ``nodes.rank`` until it ends. ``folder`` is local disk for this node alone."""
    bucket.check()
    trainer_files = TrainerFiles(folder)
    with run_lock(folder, name), stop_on_signals() as stop:
        trainer_files.checkpoints.mkdir(parents=True, exist_ok=True)
        search = _Search(job, name, bucket, stop)
        while True:
            found = search.attempt()
            if isinstance(found, ExitOutcome):
                ending = found
                break
            service = _Service(job, name, bucket, trainer_files, nodes, worker, found, stop)
            try:
                served = service.run()
            except BafoError as error:
                served = ExitOutcome("failed", error.message, error.hint, error.exit_code)
            finally:
                service.close()
            if served is not None:
                ending = served
                break
    print(f"{name}, node {nodes.rank}: {ending.state}" + (f": {ending.message}" if ending.message else ""), flush=True)
    if ending.state == "succeeded":
        shutil.rmtree(folder, ignore_errors=True)
    return ending


class _Search:
    """Finds the attempt that node 0 is at: one that began after this process, or one whose beat is heard."""

    def __init__(self, job: Job, name: str, bucket: Bucket, stop: threading.Event) -> None:
        self._config = job.supervisor
        self._name = name
        self._store = RunStore(bucket)
        self._stop = stop
        self._known: list[int] | None = None

    def attempt(self) -> int | ExitOutcome:
        """Its number; an ending where the run has succeeded, this node is to stop, or nobody is heard for long."""
        deadline = time.monotonic() + self._config.storage_timeout_s
        beats: dict[int, NodeStatus] = {}
        while time.monotonic() < deadline:
            try:
                record = self._store.find(self._name)
                if record is not None and record.state == "succeeded":
                    return ExitOutcome("succeeded")
                newest = self._newest(beats)
                if newest is not None:
                    return newest
            except StorageError as error:
                print(f"{self._name}: {error.message}", flush=True)
            if self._stop.wait(self._config.heartbeat_s):
                return ExitOutcome("stopped", "stopped on request", self._hint, ExitCode.JOB_CANCELLED)
        message = f"node 0 has not been heard of for {self._config.storage_timeout_s:g} s"
        return ExitOutcome("failed", message, self._hint, ExitCode.JOB_FAILED)

    def _newest(self, beats: dict[int, NodeStatus]) -> int | None:
        run = self._store.folder(self._name)
        attempts = heartbeat.attempts(run)
        known, self._known = self._known, attempts
        if not attempts:
            return None
        newest = attempts[-1]
        if known is not None and newest not in known:
            return newest
        status = heartbeat.read(run.child(f"nodes/{newest:04d}"), 0)
        if status is None or status.phase == "ended":
            return None
        heard = newest in beats and beats[newest] != status
        beats[newest] = status
        return newest if heard else None

    @property
    def _hint(self) -> str:
        return f"bafogpt cloud launch … --name {self._name} --resume"


class _Service:
    """One node at one attempt of node 0's."""

    def __init__(
        self,
        job: Job,
        name: str,
        bucket: Bucket,
        trainer_files: TrainerFiles,
        nodes: Nodes,
        worker: Sequence[str],
        attempt: int,
        stop: threading.Event,
    ) -> None:
        store = RunStore(bucket)
        run = store.folder(name)
        self._job = job
        self._config = job.supervisor
        self._bucket = bucket
        self._trainer_files = trainer_files
        self._nodes = nodes
        self._worker = worker
        self._attempt = attempt
        self._stop = stop
        self._stopped_at: float | None = None
        self._gpus = nvidia_smi.count()
        self._environment: Mapping[str, str] = {}
        self._trainers: Workers | None = None
        self._memory = OutOfMemory()
        self._checkpoints = store.checkpoints(name)
        record = replace(store.load(name), attempts=attempt)
        self._recorder = Recorder(store, record, trainer_files, every_s=self._config.flush_s, node=nodes.rank)
        self._heartbeats = Heartbeats(
            run, attempt, nodes, processes=self._processes(), heartbeat_s=self._config.heartbeat_s
        )
        self._uploader = PartUploader(
            node=nodes.rank,
            committed=lambda: status.committed if (status := self._heartbeats.status_of(0)) else -1,
            trainer_files=trainer_files,
            store=self._checkpoints,
            config=job.train.checkpoint,
            attempt=attempt,
            record=self._recorder.event,
            flush=self._recorder.flush,
            parts=CheckpointParts(run),
        )

    def run(self) -> ExitOutcome | None:
        """Until the run ends, or (None) node 0 has been silent for too long."""
        for each in (self._recorder, self._heartbeats, self._uploader):
            each.start()
        self._recorder.event("node_joined", host=platform.node(), processes=self._processes())
        self._say(f"node {self._nodes.rank}: attempt {self._attempt}")
        fit = self._check_machine()
        while True:
            time.sleep(POLL_S)
            leader = self._heartbeats.status_of(0)
            if leader is not None and leader.phase == "ended":
                return _as_node_0(leader)
            if self._heartbeats.overdue(self._config.heartbeat_timeout_s):
                self._say(
                    f"node 0 has not been heard of for {self._config.heartbeat_timeout_s:g} s: the trainers are ended"
                )
                return None
            if (problem := self._problem()) is not None:
                return problem
            if self._stop.is_set() and self._heed_stop():
                return ExitOutcome("stopped", "stopped on request", "", ExitCode.JOB_CANCELLED)
            self._look_after_trainers()
            self._uploader.tidy()
            if leader is not None and fit and not self._stop.is_set():
                self._follow(leader)

    def _check_machine(self) -> bool:
        """Whether this machine can run the job. Node 0 is told where it cannot, and ends the run."""
        try:
            fit = machine_check.require_fit(
                self._job, self._recorder, self._bucket, self._trainer_files.folder, stopped=self._stop.is_set
            )
        except BafoError as error:
            self._say(f"this machine: {error.message}")
            self._heartbeats.publish(phase="died", why=error.message, hint=error.hint, fatal=int(error.exit_code))
            return False
        self._environment, self._gpus = fit.environment, fit.gpus
        self._heartbeats.publish(processes=self._processes())
        return True

    def close(self) -> None:
        """End the trainers, send the last lines, say goodbye."""
        self._end_trainers()
        self._uploader.drain(0)
        self._recorder.close()
        try:
            self._recorder.flush()
        except StorageError as error:
            self._say(f"the last lines could not be sent: {error.message}")
        self._heartbeats.close(phase="ended")

    def _follow(self, leader: NodeStatus) -> None:
        """Do what node 0 says, unless it is done."""
        mine, at = self._heartbeats.status, leader.generation
        if leader.phase == "draining" and (mine.phase, mine.generation) != ("drained", at):
            self._end_trainers(dump=leader.hung)
            if self._uploader.settled():
                self._heartbeats.publish(phase="drained", generation=at)
        elif leader.phase == "restoring" and (mine.phase, mine.generation) == ("drained", at):
            if self._prepare(leader.resume_step):
                self._heartbeats.publish(phase="ready", generation=at)
        elif leader.phase == "running" and (mine.phase, mine.generation) == ("ready", at):
            self._start(leader)
            self._heartbeats.publish(phase="running", generation=at)

    def _prepare(self, step: int | None) -> bool:
        """Have the checkpoint of ``step`` on this disk, and no other; whether it worked."""
        self._uploader.forget()  # node 0 has committed what it could
        self._trainer_files.clear_leftovers()
        fetched = None
        try:
            if step is not None:
                wanted = next((each for each in self._checkpoints.complete() if each.step == step), None)
                if wanted is None:
                    raise NotFoundError(f"there is no checkpoint of step {step}", "")
                fetched = self._checkpoints.fetch(wanted, self._trainer_files.resume)
        except (StorageError, NotFoundError) as error:
            self._say(f"step {step} could not be fetched: {error.message}")
            self._stop.wait(RETRY_S)
            return False
        except BafoError as error:  # a full disk: no use in trying again
            self._heartbeats.publish(phase="died", why=error.message, hint=error.hint, fatal=int(error.exit_code))
            raise
        for older in self._trainer_files.resume.glob("*"):
            if older != fetched:
                shutil.rmtree(older)
        self._recorder.event("checkpoint_fetched", step=step)
        return True

    def _start(self, leader: NodeStatus) -> None:
        order = TrainOrder(
            job=self._job.trainer,
            bucket=self._bucket.url,
            config=self._job.train,
            device="cuda" if self._gpus else "cpu",
            attempt=self._attempt,
            collective_timeout_s=self._config.collective_timeout_s,
            resume_step=leader.resume_step,
        )
        self._trainer_files.write_order(order)
        layout = RankLayout(
            node=self._nodes.rank,
            nodes=self._nodes.count,
            address=self._nodes.addresses[0],
            own=self._nodes.addresses[self._nodes.rank],
            port=leader.port,
            rendezvous_id=f"{self._attempt:04d}-{leader.generation:04d}",
        )
        self._memory = OutOfMemory()
        self._trainers = Workers(
            self._trainer_files.folder, self._processes(), self._say, self._worker, layout, self._environment
        )

    def _look_after_trainers(self) -> None:
        """Tell node 0 when they have died; those that finished or were stopped are no news, node 0 has its own."""
        if self._trainers is None or self._trainers.running():
            return
        codes, first = self._trainers.exit_codes(), self._trainers.first_rank
        self._end_trainers()
        results = self._trainer_files.read_results()
        if len(results) == len(codes) and all(result.outcome != "failed" for result in results):
            return
        failed = next((result for result in results if result.outcome == "failed"), None)
        why = failed.error if failed else describe_exit(codes, first, out_of_memory=self._memory.happened())
        fatal = failed.exit_code if failed and not failed.retry else 0
        self._recorder.event("node_trainers_died", exit_codes=codes, why=why)
        self._say(f"trainers died: {why}")
        self._heartbeats.publish(phase="died", why=why, hint=failed.hint if failed else "", fatal=fatal)

    def _heed_stop(self) -> bool:
        """Pass the wish on to node 0 and to the trainers; whether there is nobody to wait for any more."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self._say("stopping: the trainers save and leave, on all nodes")
            self._heartbeats.publish(stopping=True)
            if self._trainers:
                self._trainers.signal(signal.SIGTERM)
        return time.monotonic() - self._stopped_at > 2 * self._config.grace_s

    def _problem(self) -> ExitOutcome | None:
        """An ending when the bucket has been out of reach for longer than the job's patience."""
        outage = self._uploader.outage
        error: BafoError | None = (
            self._heartbeats.error if self._heartbeats.last_read_s() > self._config.storage_timeout_s else None
        )
        if outage is not None and time.monotonic() - outage.since > self._config.storage_timeout_s:
            error = outage.error
        return ExitOutcome("failed", error.message, error.hint, error.exit_code) if error else None

    def _end_trainers(self, dump: bool = False) -> None:
        if self._trainers is not None:
            if dump:
                self._trainers.dump()
            self._trainers.end()
            self._trainers = None

    def _say(self, line: str) -> None:
        self._recorder.log(line)

    def _processes(self) -> int:
        return self._config.processes or self._gpus or 1


def _as_node_0(leader: NodeStatus) -> ExitOutcome:
    states: dict[str, RunState] = {state: state for state in EXIT_CODES}
    state = states.get(leader.state, "failed")
    code = ExitCode(leader.exit_code) if state != "succeeded" else ExitCode.OK
    return ExitOutcome(state, leader.message, leader.hint, code)
