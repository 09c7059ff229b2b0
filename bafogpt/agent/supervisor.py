"""``bafogpt job run``: the command of every task. Keeps one run alive on the machine it is on.

It starts the trainers, restarts them after a crash or a hang from the newest complete checkpoint, carries checkpoints,
logs, metrics and events to the bucket while they work, turns SIGTERM and the limits of money and time into save, drain,
exit, and leaves a final status that can be read after the machine is gone. It never imports torch.

This is node 0, and the whole of it where there is one node; the others run :mod:`bafogpt.agent.multinode.follower`.
"""

from __future__ import annotations

import math
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bafogpt.agent import machine_check
from bafogpt.agent.budget import Budget
from bafogpt.agent.claim import LaunchInfo, claim
from bafogpt.agent.exporters import Exporters
from bafogpt.agent.multinode import follower
from bafogpt.agent.multinode.heartbeat import ALONE, CheckpointParts, Heartbeats, Nodes
from bafogpt.agent.multinode.leader import Leader
from bafogpt.agent.outcome import EXIT_CODES, ExitOutcome, stop_on_signals
from bafogpt.agent.recorder import Recorder
from bafogpt.agent.uploader import Uploader
from bafogpt.agent.watchdog import HangDetector, OutOfMemory, Progress
from bafogpt.agent.workers import WORKER, RankLayout, Workers, describe_exit
from bafogpt.core import nvidia_smi
from bafogpt.core.errors import BafoError, ExitCode, StorageError, UnreachableError
from bafogpt.jobs.job import Job
from bafogpt.jobs.limits import Limits
from bafogpt.reports import report
from bafogpt.runs import usage
from bafogpt.runs.store import RunState, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder, WorkerResult, checkpoint_step

__all__ = ["ExitOutcome", "supervise"]

POLL_S = 0.05
Clock = Callable[[], float]


def supervise(
    job: Job,
    name: str,
    bucket: Bucket,
    folder: Path,
    place: LaunchInfo,
    worker: Sequence[str] = WORKER,
    nodes: Nodes = ALONE,
    clock: Clock = time.monotonic,
) -> ExitOutcome:
    """Run ``job`` as run ``name`` of ``bucket`` until it is done, stopped or beyond help.

    ``folder`` is local disk for this run alone, ``worker`` the command of a trainer process, ``clock`` what limits and
    hangs are measured by (monotonic seconds).
    Raises :class:`BafoError` for what is wrong before the first trainer starts; after that everything ends in an
    :class:`ExitOutcome`.
    """
    config = job.supervisor
    limits = Limits(max_cost=config.max_cost, max_hours=config.max_hours).with_environment()
    if nodes.rank:
        return follower.follow(job, name, bucket, folder, nodes, worker)
    limits.check_price(place.price_per_hour)
    with claim(job, name, bucket, folder, place) as record:
        if record.state == "succeeded":
            print(f"{name} has succeeded already, at step {record.step}")
            return ExitOutcome("succeeded")
        trainer_files = TrainerFiles(folder)
        trainer_files.checkpoints.mkdir(parents=True, exist_ok=True)
        store = RunStore(bucket)
        budget = Budget(
            limits,
            usage.read_all(store.folder(name)),
            attempt=record.attempts,
            price_per_hour=place.price_per_hour,
            clock=clock,
        )
        recorder = Recorder(
            store,
            record,
            trainer_files,
            every_s=config.flush_s,
            system_stats_s=config.system_stats_s,
            budget=budget,
        )
        with stop_on_signals() as stop:
            ending = _Supervisor(job, bucket, trainer_files, recorder, worker, nodes, budget, stop, clock).run()
    if ending.state == "succeeded":
        shutil.rmtree(folder, ignore_errors=True)
    return ending


class _Supervisor:
    """One attempt at a run."""

    def __init__(
        self,
        job: Job,
        bucket: Bucket,
        trainer_files: TrainerFiles,
        recorder: Recorder,
        worker: Sequence[str],
        nodes: Nodes,
        budget: Budget,
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        self._job = job
        self._config = config = job.supervisor
        self._store = RunStore(bucket)
        self._bucket = bucket
        self._trainer_files = trainer_files
        self._recorder = recorder
        self._worker = worker
        self._budget = budget
        self._stop = stop
        self._clock = clock
        self._name = recorder.record.name
        self._gpus = nvidia_smi.count()
        self._environment: Mapping[str, str] = {}
        self._checkpoints = self._store.checkpoints(self._name)
        run = self._store.folder(self._name)
        self._uploader = Uploader(
            trainer_files,
            self._checkpoints,
            job.train.checkpoint,
            recorder.attempt,
            record=self._record_upload,
            flush=recorder.flush,
            parts=CheckpointParts(run),
        )
        self._exporters = Exporters(job, bucket, trainer_files, recorder)
        self._leader: Leader | None = None
        if nodes.count > 1:
            self._leader = Leader(
                Heartbeats(run, recorder.attempt, nodes, processes=self._processes(), heartbeat_s=config.heartbeat_s),
                attempt=recorder.attempt,
                storage_timeout_s=config.storage_timeout_s,
                silent_s=config.heartbeat_timeout_s,
                halted=self._halt,
                say=recorder.log,
            )
        self._nodes = nodes
        self._progress = Progress(trainer_files.metrics(recorder.attempt), job.train.steps, recorder.log)
        self._drilled = recorder.attempt > 1

    def run(self) -> ExitOutcome:
        """Train until it is done, then drain and write down how it ended."""
        say, event = self._recorder.log, self._recorder.event
        self._recorder.start()
        self._uploader.start()
        self._exporters.start()
        if self._leader:
            self._leader.start_heartbeats()
        event("run_started", host=platform.node(), processes=self._processes(), nodes=self._nodes.count)
        each_of = f"on each of {self._nodes.count} nodes, " if self._leader else ""
        what = f"{self._processes()} process(es) {each_of}on {self._device()}"
        say(f"{self._name}: attempt {self._recorder.attempt}, {what}")
        try:
            fit = machine_check.require_fit(
                self._job,
                self._recorder,
                self._bucket,
                self._trainer_files.folder,
                stopped=lambda: self._halt() is not None,
            )
            self._environment, self._gpus = fit.environment, fit.gpus
            ending = self._train()
        except BafoError as error:
            ending = ExitOutcome("failed", error.message, error.hint, error.exit_code)
        ending = machine_check.recorded(self._recorder, self._drain(ending))
        self._exporters.finish(ending.state, self._budget.left_s())
        event("run_ended", state=ending.state, message=ending.message)
        say(f"{self._name}: {ending.state}" + (f": {ending.message}" if ending.message else ""))
        self._recorder.close()
        self._recorder.update(state=ending.state, message=ending.message)
        try:
            self._recorder.flush()
            report.store(self._store, self._name)
        except StorageError as error:
            say(f"the final status could not be written: {error.message}")
        if self._leader:
            self._leader.end(ending)
        return ending

    def _record_upload(self, kind: str, **values: Any) -> None:
        """An event of the uploads; what is committed, others may want to know."""
        self._recorder.event(kind, **values)
        if kind == "checkpoint_committed":
            self._exporters.committed(values["step"])
            if self._leader:
                self._leader.committed(values["step"])

    def _train(self) -> ExitOutcome:
        """Start trainers and start them again, until there is an ending."""
        restarts = furthest = generation = 0
        hung = False
        while True:
            generation += 1
            order = self._order(generation, hung)
            if isinstance(order, ExitOutcome):
                return order
            self._trainer_files.write_order(order)
            self._recorder.event("trainers_started", step=order.resume_step or 0, restart=restarts)
            layout = self._leader.layout(generation) if self._leader else RankLayout()
            self._uploader.rendezvous_id = layout.rendezvous_id
            memory = OutOfMemory()
            if self._leader:
                self._leader.start(generation, layout)
            trainers = Workers(
                self._trainer_files.folder,
                self._processes(),
                self._recorder.log,
                self._worker,
                layout,
                self._environment,
            )
            try:
                halt, cause, hung = self._watch(trainers, generation)
                codes = trainers.exit_codes()
            finally:
                trainers.end()
            self._follow_metrics(quiet=False)
            results = self._trainer_files.read_results()
            if len(results) == len(codes) and all(result.outcome == "finished" for result in results):
                self._recorder.update(step=results[0].step)  # a run that had only to be ended writes no metrics
                return ExitOutcome("succeeded")
            if (halt := halt or self._halt()) is not None:
                return halt
            failed = next((result for result in results if result.outcome == "failed"), None)
            why = cause or (failed.error if failed else describe_exit(codes, out_of_memory=memory.happened()))
            self._recorder.event("trainers_died", exit_codes=codes, why=why)
            self._recorder.log(f"trainers died: {why}")
            if (fatal := self._fatal(failed, why)) is not None:
                return fatal
            done = self._recorder.record.step
            restarts, furthest = (1, done) if done > furthest else (restarts + 1, furthest)
            self._recorder.update(restarts=self._recorder.record.restarts + 1)
            if restarts > self._config.max_restarts:
                message = f"{why}; gave up after {restarts - 1} restarts"
                return ExitOutcome("failed", message, f"bafogpt cloud logs {self._name}", ExitCode.JOB_FAILED)
            self._stop.wait(min(30.0, 2.0 ** (restarts - 1) - 1))

    def _fatal(self, failed: WorkerResult | None, why: str) -> ExitOutcome | None:
        """The end of the run where no restart can help."""
        if failed and not failed.retry:
            return ExitOutcome("failed", why, failed.hint, ExitCode(failed.exit_code))
        return self._leader.fatal() if self._leader else None

    def _order(self, generation: int, hung: bool) -> TrainOrder | ExitOutcome:
        """What the trainers are to do, from the newest complete checkpoint on; or why the run must end instead."""
        self._wait_for_bucket()
        if self._leader and (ending := self._leader.drain(generation, hung=hung)) is not None:
            return ending
        self._uploader.rendezvous_id = ""  # what other nodes saved is in the bucket now, or lost
        if not self._uploader.idle():  # what an earlier process saved but had not sent
            self._recorder.log("sending checkpoints that were left on this disk")
            while not self._uploader.idle() and self._uploader.outage is None and self._halt() is None:
                time.sleep(POLL_S)
        if (halt := self._halt()) is not None:
            return halt
        self._trainer_files.clear_leftovers()  # their room may be needed
        found = self._checkpoints.fetch_newest(self._trainer_files.resume)
        step = None
        if found is not None:
            checkpoint, fetched = found
            step = checkpoint.step
            for older in self._trainer_files.resume.iterdir():
                if older != fetched:
                    shutil.rmtree(older)
            self._recorder.event("checkpoint_restored", step=step, samples=checkpoint.samples)
            self._recorder.log(f"resuming from the checkpoint of step {step}, at sample {checkpoint.samples:,}")
        if self._leader and (ending := self._leader.restore(generation, step)) is not None:
            return ending
        return TrainOrder(
            job=self._job.trainer,
            bucket=self._bucket.url,
            config=self._job.train,
            device=self._device(),
            attempt=self._recorder.attempt,
            collective_timeout_s=self._config.collective_timeout_s,
            resume_step=step,
        )

    def _watch(self, trainers: Workers, generation: int) -> tuple[ExitOutcome | None, str, bool]:
        """Until the trainers are gone: an ending that has nothing to do with them, or why they were ended (and whether
        that was because they hung)."""
        halt: ExitOutcome | None = None
        deadline = math.inf
        pulse = HangDetector(
            self._trainer_files,
            self._recorder.attempt,
            first_s=self._config.first_step_s,
            then_s=self._config.hang_timeout_s,
            max_pending=self._job.train.checkpoint.max_pending,
            clock=self._clock,
        )
        while trainers.running():
            time.sleep(POLL_S)
            self._follow_metrics()
            self._drill(trainers)
            if halt is None and (halt := self._halt()) is not None:
                deadline = time.monotonic() + self._config.grace_s
                self._recorder.event("stop_requested", why=halt.message)
                self._recorder.log("stopping: the trainers save and leave")
                trainers.signal(signal.SIGTERM)
            if time.monotonic() > deadline:
                self._recorder.log(f"trainers did not leave within {self._config.grace_s:g} s: killing them")
                trainers.signal(signal.SIGKILL)
            if halt is None and (cause := pulse.hung()) is not None:
                self._recorder.event("trainers_hung", why=cause)
                self._recorder.log(f"{cause}: the trainers say where they are and are killed")
                trainers.dump()
                return None, f"the trainers hung: {cause}", True
            if halt is None and self._leader and (cause := self._leader.check_peers(generation)) is not None:
                return None, cause, False
        return halt, "", False

    def _halt(self) -> ExitOutcome | None:
        """Why the run must end now, whatever the trainers do: asked to, a limit, or a bucket out of reach for long."""
        asked = [0] if self._stop.is_set() else self._leader.stopping() if self._leader else []
        if asked:
            on = "" if asked == [0] else f" of node {asked[0]}"
            hint = f"bafogpt cloud launch … --name {self._name} --resume"
            return ExitOutcome("stopped", f"stopped on request{on}", hint, ExitCode.JOB_CANCELLED)
        return self._limit() or self._storage_problem()

    def _limit(self) -> ExitOutcome | None:
        """The end of a run that has cost, or taken, what it may; early enough for the last checkpoint to be in it."""
        if math.isinf(self._budget.left_s()):
            return None
        save = self._uploader.reserve_s()
        reached = self._budget.reached(None if save is None else save + self._progress.step_s + POLL_S)
        if reached is None:
            return None
        message = f"{reached.message}, at step {self._recorder.record.step} of {self._job.train.steps}"
        hint = f"bafogpt cloud launch … --name {self._name} --resume {reached.option} MORE"
        return ExitOutcome("stopped", message, hint, ExitCode.LIMIT_REACHED)

    def _follow_metrics(self, quiet: bool = True) -> None:
        """Read what the trainers have written since; show it now and then, or whenever not ``quiet``."""
        step = self._progress.follow(quiet)
        if step is not None:
            self._recorder.update(step=step)

    def _drill(self, trainers: Workers) -> None:
        """Kill the trainers once at the step the job asks for, as a machine that fails would."""
        at = self._config.drill_kill_at_step
        if at is None or self._drilled or self._recorder.record.step < at:
            return
        self._drilled = True
        self._recorder.event("drill_kill", step=self._recorder.record.step)
        self._recorder.log(f"FIRE DRILL: SIGKILL to the trainers at step {self._recorder.record.step}")
        trainers.signal(signal.SIGKILL)

    def _storage_problem(self) -> ExitOutcome | None:
        """An ending when the bucket has been out of reach for longer than the job's patience."""
        failing = [each for each in (self._uploader.outage, self._recorder.outage) if each is not None]
        if not failing or time.monotonic() - min(each.since for each in failing) < self._config.storage_timeout_s:
            return None
        error = failing[0].error
        return ExitOutcome(
            "failed", error.message, f"bafogpt cloud launch … --name {self._name} --resume", error.exit_code
        )

    def _wait_for_bucket(self) -> None:
        """Until the bucket answers. Raises :class:`UnreachableError` after the job's patience."""
        deadline = time.monotonic() + self._config.storage_timeout_s
        while True:
            try:
                self._bucket.check()
                return
            except UnreachableError:
                if time.monotonic() >= deadline or self._stop.wait(1.0) or self._limit():
                    raise

    def _drain(self, ending: ExitOutcome) -> ExitOutcome:
        """Let go only when the last manifest is committed, or the time for it is over; and say which."""
        if self._uploader.idle() and self._uploader.drain(0):
            return ending
        self._recorder.log("sending the last checkpoint")
        patience = self._config.storage_timeout_s if ending.state == "succeeded" else self._config.grace_s
        if self._uploader.drain(0 if self._storage_problem() else patience):
            return ending
        left = [checkpoint_step(folder) for folder in self._trainer_files.pending()]
        message = f"checkpoints of steps {left} are on local disk, not in the bucket"
        if ending.message:
            message = f"{ending.message}; {message}"
        state: RunState = "failed" if ending.state == "succeeded" else ending.state
        code = EXIT_CODES[state] if ending.state == "succeeded" else ending.exit_code
        return ExitOutcome(state, message, f"bafogpt cloud launch … --name {self._name} --resume", code)

    def _processes(self) -> int:
        return self._config.processes or self._gpus or 1

    def _device(self) -> Any:
        return "cuda" if self._gpus else "cpu"
