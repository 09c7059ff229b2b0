"""The supervisor of nodes 1, 2, …, which follows node 0 (:mod:`bafogpt.agent.multinode.heartbeat`).

It finds node 0's attempt, starts and ends its trainers with node 0's, uploads its part of each checkpoint, and ends as
the run ends. When node 0 is silent for too long, it ends its trainers and waits for a new attempt of node 0, for
``storage_timeout_s``.
"""

from __future__ import annotations

import platform
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bafogpt.agent.attempt import Attempt
from bafogpt.agent.claim import run_lock
from bafogpt.agent.multinode import heartbeat
from bafogpt.agent.multinode.heartbeat import Heartbeats, Nodes, NodeStatus
from bafogpt.agent.outcome import EXIT_CODES, ExitOutcome, resume_hint, stop_on_signals
from bafogpt.agent.uploader import PartUploader
from bafogpt.agent.workers import RankLayout, Workers
from bafogpt.core.errors import BafoError, ExitCode, NotFoundError, StorageError
from bafogpt.jobs.job import Job, SupervisorConfig
from bafogpt.runs.store import RunState, RunStore
from bafogpt.storage.bucket import Bucket

POLL_S = 0.05
RETRY_S = 2.0


def follow(job: Job, name: str, bucket: Bucket, folder: Path, nodes: Nodes, worker: Sequence[str]) -> ExitOutcome:
    """Take part in run ``name`` as node ``nodes.rank`` until it ends. ``folder`` is local disk for this node only."""
    bucket.check()
    with run_lock(folder, name), stop_on_signals() as stop:
        finder = _AttemptFinder(job.supervisor, name, RunStore(bucket), stop)
        outcome: ExitOutcome | None = None
        while outcome is None:
            found = finder.find()
            if isinstance(found, ExitOutcome):
                outcome = found
                break
            record = replace(RunStore(bucket).load(name), attempts=found)
            attempt = Attempt(job, bucket, folder, record, worker, node=nodes.rank)
            outcome = _Follower(attempt, nodes, stop).run()
    print(f"{name}, node {nodes.rank}: {outcome}", flush=True)
    if outcome.state == "succeeded":
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


class _AttemptFinder:
    """Finds node 0's attempt: one that began after this process, or one whose heartbeat changes."""

    def __init__(self, config: SupervisorConfig, name: str, store: RunStore, stop: threading.Event) -> None:
        self._config = config
        self._name = name
        self._store = store
        self._stop = stop
        self._known: list[int] | None = None

    def find(self) -> int | ExitOutcome:
        """Its number; an outcome where the run has succeeded, this node must stop, or node 0 stays silent."""
        deadline = time.monotonic() + self._config.storage_timeout_s
        statuses: dict[int, NodeStatus] = {}
        while time.monotonic() < deadline:
            try:
                record = self._store.find(self._name)
                if record is not None and record.state == "succeeded":
                    return ExitOutcome("succeeded")
                newest = self._newest(statuses)
                if newest is not None:
                    return newest
            except StorageError as error:
                print(f"{self._name}: {error.message}", flush=True)
            if self._stop.wait(self._config.heartbeat_s):
                hint = resume_hint(self._name)
                return ExitOutcome("stopped", "stopped on request", hint, ExitCode.JOB_CANCELLED)
        message = f"node 0 has sent no heartbeat for {self._config.storage_timeout_s:g} s"
        return ExitOutcome("failed", message, resume_hint(self._name), ExitCode.JOB_FAILED)

    def _newest(self, statuses: dict[int, NodeStatus]) -> int | None:
        """The newest attempt, if node 0 is alive in it; ``statuses`` are those read before."""
        run = self._store.folder(self._name)
        known, self._known = self._known, heartbeat.attempts(run)
        if not self._known:
            return None
        newest = self._known[-1]
        if known is not None and newest not in known:
            return newest
        status = heartbeat.read(run.child(f"nodes/{newest:04d}"), 0)
        if status is None or status.phase == "ended":
            return None
        changed = newest in statuses and statuses[newest] != status
        statuses[newest] = status
        return newest if changed else None


class _Follower:
    """One node in one attempt of node 0's."""

    def __init__(self, attempt: Attempt, nodes: Nodes, stop: threading.Event) -> None:
        self._attempt = attempt
        self._config = attempt.config
        self._recorder = attempt.recorder
        self._nodes = nodes
        self._stop = stop
        self._stopped_at: float | None = None
        self._workers: Workers | None = None
        self._heartbeats = Heartbeats(
            attempt.run, attempt.number, nodes, processes=attempt.processes, heartbeat_s=self._config.heartbeat_s
        )
        self._uploader = PartUploader(attempt, nodes.rank)

    def run(self) -> ExitOutcome | None:
        """Follow until the run ends, or (None) node 0 has been silent for too long."""
        for each in (self._recorder, self._heartbeats, self._uploader):
            each.start()
        self._recorder.event("node_joined", host=platform.node(), processes=self._attempt.processes)
        self._recorder.log(f"node {self._nodes.rank}: attempt {self._attempt.number}")
        try:
            return self._follow()
        except BafoError as error:
            return ExitOutcome.of_error(error)
        finally:
            self._close()

    def _follow(self) -> ExitOutcome | None:
        fit = self._check_machine()
        while True:
            time.sleep(POLL_S)
            leader = self._heartbeats.status_of(0)
            if leader is not None and leader.phase == "ended":
                return _outcome_of(leader)
            if self._heartbeats.silent(self._config.heartbeat_timeout_s):
                timeout = f"{self._config.heartbeat_timeout_s:g} s"
                self._recorder.log(f"node 0 has sent no heartbeat for {timeout}: stopping the trainers")
                return None
            if (outage := self._outage()) is not None:
                return outage
            if self._stop.is_set() and self._request_stop():
                return ExitOutcome("stopped", "stopped on request", "", ExitCode.JOB_CANCELLED)
            self._check_workers()
            if leader is not None:
                self._uploader.drop_committed(leader.committed)
                if fit and not self._stop.is_set():
                    self._obey(leader)

    def _check_machine(self) -> bool:
        """Whether this machine can run the job. Where it cannot, node 0 ends the run."""
        try:
            self._attempt.check_machine(stopped=self._stop.is_set)
        except BafoError as error:
            self._recorder.log(f"this machine: {error.message}")
            self._publish_fatal(error)
            return False
        self._heartbeats.publish(processes=self._attempt.processes)
        return True

    def _publish_fatal(self, error: BafoError) -> None:
        self._heartbeats.publish(phase="died", why=error.message, hint=error.hint, fatal=int(error.exit_code))

    def _close(self) -> None:
        """End the trainers, send the last lines, publish the end."""
        self._end_workers()
        self._uploader.drain(0)
        self._recorder.close()
        try:
            self._recorder.flush()
        except StorageError as error:
            self._recorder.log(f"the last lines could not be sent: {error.message}")
        self._heartbeats.close(phase="ended")

    def _obey(self, leader: NodeStatus) -> None:
        """Follow node 0 into its phase, unless that is done."""
        mine, generation = self._heartbeats.status, leader.generation
        here = (mine.phase, mine.generation)
        if leader.phase == "draining" and here != ("drained", generation):
            self._end_workers(dump=leader.hung)
            if self._uploader.all_sent():
                self._heartbeats.publish(phase="drained", generation=generation)
        elif leader.phase == "restoring" and here == ("drained", generation):
            if self._restore(leader.resume_step):
                self._heartbeats.publish(phase="ready", generation=generation)
        elif leader.phase == "running" and here == ("ready", generation):
            self._workers = self._attempt.start_workers(self._layout(leader), leader.resume_step)
            self._heartbeats.publish(phase="running", generation=generation)

    def _restore(self, step: int | None) -> bool:
        """Have the checkpoint of ``step`` on this disk, and no other; whether it worked."""
        self._uploader.drop_all()
        trainer_files, checkpoints = self._attempt.trainer_files, self._attempt.checkpoints
        trainer_files.clear_leftovers()
        folder = None
        try:
            if step is not None:
                wanted = next((each for each in checkpoints.complete() if each.step == step), None)
                if wanted is None:
                    raise NotFoundError(f"no checkpoint of step {step}", "")
                folder = checkpoints.fetch(wanted, trainer_files.resume)
        except (StorageError, NotFoundError) as error:
            self._recorder.log(f"step {step} could not be fetched: {error.message}")
            self._stop.wait(RETRY_S)
            return False
        except BafoError as error:  # such as a full disk
            self._publish_fatal(error)
            raise
        self._attempt.keep_restored(folder)
        self._recorder.event("checkpoint_fetched", step=step)
        return True

    def _layout(self, leader: NodeStatus) -> RankLayout:
        return RankLayout(
            node=self._nodes.rank,
            nodes=self._nodes.count,
            address=self._nodes.addresses[0],
            own=self._nodes.addresses[self._nodes.rank],
            port=leader.port,
            rendezvous_id=f"{self._attempt.number:04d}-{leader.generation:04d}",
        )

    def _check_workers(self) -> None:
        """Publish when they have died. A finish or a stop needs no report: node 0's trainers end the same way."""
        workers = self._workers
        if workers is None or workers.running():
            return
        codes = workers.exit_codes()
        self._end_workers()
        exited = self._attempt.workers_exit(workers, codes)
        if exited.all_ended("finished", "stopped"):
            return
        failed = exited.failed
        self._recorder.event("node_trainers_died", exit_codes=codes, why=exited.why)
        self._recorder.log(f"trainers died: {exited.why}")
        fatal = failed.exit_code if failed and not failed.retry else 0
        self._heartbeats.publish(phase="died", why=exited.why, hint=failed.hint if failed else "", fatal=fatal)

    def _request_stop(self) -> bool:
        """Ask node 0 and the trainers to stop; whether they have had their time."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self._recorder.log("stopping: the trainers save and exit, on all nodes")
            self._heartbeats.publish(stopping=True)
            if self._workers:
                self._workers.signal(signal.SIGTERM)
        return time.monotonic() - self._stopped_at > 2 * self._config.grace_s

    def _outage(self) -> ExitOutcome | None:
        """The end of a node whose bucket has been out of reach for ``storage_timeout_s``."""
        timeout_s, outage = self._config.storage_timeout_s, self._uploader.outage
        if outage is not None and time.monotonic() - outage.since > timeout_s:
            return ExitOutcome.of_error(outage.error)
        if self._heartbeats.error is not None and self._heartbeats.unread_s() > timeout_s:
            return ExitOutcome.of_error(self._heartbeats.error)
        return None

    def _end_workers(self, dump: bool = False) -> None:
        if self._workers is not None:
            if dump:
                self._workers.dump()
            self._workers.end()
            self._workers = None


def _outcome_of(leader: NodeStatus) -> ExitOutcome:
    """The run's outcome, as node 0 has published it."""
    states: dict[str, RunState] = {state: state for state in EXIT_CODES}
    state = states.get(leader.state, "failed")
    code = ExitCode(leader.exit_code) if state != "succeeded" else ExitCode.OK
    return ExitOutcome(state, leader.message, leader.hint, code)
