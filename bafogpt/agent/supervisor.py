"""``bafogpt job run``: the command of every task. Keeps one run alive on its machine.

It starts the trainers, restarts them from the newest complete checkpoint after a crash or a hang, uploads checkpoints,
logs, metrics and events meanwhile, turns SIGTERM and the limits of money and time into save, upload, exit, and leaves a
final status that can be read after the machine is gone. It never imports torch.

This is node 0; the other nodes of a run execute :mod:`bafogpt.agent.multinode.follower`.
"""

from __future__ import annotations

import itertools
import math
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bafogpt.agent import machine_check
from bafogpt.agent.attempt import Attempt, WorkersExit
from bafogpt.agent.budget import Budget
from bafogpt.agent.claim import LaunchInfo, claim
from bafogpt.agent.exporters import Exporters
from bafogpt.agent.multinode import follower
from bafogpt.agent.multinode.heartbeat import SINGLE_NODE, Nodes
from bafogpt.agent.multinode.leader import Leader
from bafogpt.agent.outcome import EXIT_CODES, ExitOutcome, RunEndedError, resume_hint, stop_on_signals
from bafogpt.agent.progress import Progress
from bafogpt.agent.uploader import Uploader
from bafogpt.agent.watchdog import HangDetector
from bafogpt.agent.workers import WORKER, RankLayout, Workers
from bafogpt.core.errors import BafoError, ExitCode, StorageError, UnreachableError
from bafogpt.jobs.job import Job
from bafogpt.jobs.limits import Limits
from bafogpt.reports import html
from bafogpt.runs import usage
from bafogpt.runs.store import RunState, RunStore
from bafogpt.storage.bucket import Bucket
from bafogpt.train.trainer_io import checkpoint_step

POLL_S = 0.05
Clock = Callable[[], float]


def supervise(
    job: Job,
    name: str,
    bucket: Bucket,
    folder: Path,
    launch: LaunchInfo,
    worker: Sequence[str] = WORKER,
    nodes: Nodes = SINGLE_NODE,
    clock: Clock = time.monotonic,
) -> ExitOutcome:
    """Run ``job`` as run ``name`` of ``bucket`` until it has succeeded, stopped or failed.

    ``folder`` is local disk for this run only, ``worker`` the command of a trainer process, ``clock`` the monotonic
    clock (seconds) of limits and hangs. Raises :class:`BafoError` until the attempt has begun; later failures are in
    the outcome.
    """
    limits = Limits(max_cost=job.supervisor.max_cost, max_hours=job.supervisor.max_hours).with_environment()
    if nodes.rank:
        return follower.follow(job, name, bucket, folder, nodes, worker)
    limits.check_price(launch.price_per_hour)
    with claim(job, name, bucket, folder, launch) as record, stop_on_signals() as stop:
        if record.state == "succeeded":
            print(f"{name} has succeeded already, at step {record.step}")
            return ExitOutcome("succeeded")
        earlier = usage.read_all(RunStore(bucket).folder(name))
        budget = Budget(limits, earlier, attempt=record.attempts, price_per_hour=launch.price_per_hour, clock=clock)
        attempt = Attempt(job, bucket, folder, record, worker, budget=budget)
        outcome = _Supervisor(attempt, budget, nodes, stop, clock).run()
    if outcome.state == "succeeded":
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


@dataclass(frozen=True)
class _Watched:
    """Why the supervisor stopped watching the trainers; all empty where they ended by themselves."""

    halt: ExitOutcome | None = None
    """The run must end."""
    cause: str = ""
    """The trainers must be started again."""
    hung: bool = False


class _Supervisor:
    """One attempt at a run, on node 0."""

    def __init__(self, attempt: Attempt, budget: Budget, nodes: Nodes, stop: threading.Event, clock: Clock) -> None:
        self._attempt = attempt
        self._config = attempt.config
        self._recorder = attempt.recorder
        self._trainer_files = attempt.trainer_files
        self._budget = budget
        self._nodes = nodes
        self._stop = stop
        self._clock = clock
        self._exporters = Exporters(attempt)
        self._leader = Leader(attempt, nodes, self._halt) if nodes.count > 1 else None
        self._uploader = Uploader(attempt, self._checkpoint_committed)
        metrics = attempt.trainer_files.metrics(attempt.number)
        self._progress = Progress(metrics, attempt.job.train.steps, attempt.recorder.log)
        self._drilled = attempt.number > 1

    def run(self) -> ExitOutcome:
        """Train to the end, upload what is left, and record how it ended."""
        for each in (self._recorder, self._uploader, self._exporters, self._leader):
            if each:
                each.start()
        self._announce()
        try:
            self._attempt.check_machine(stopped=lambda: self._halt() is not None)
            outcome = self._train()
        except RunEndedError as ended:
            outcome = ended.outcome
        except BafoError as error:
            outcome = ExitOutcome.of_error(error)
        outcome = machine_check.record_unfit(self._recorder, self._drain(outcome))
        self._exporters.finish(outcome.state, self._budget.left_s())
        self._record_end(outcome)
        if self._leader:
            self._leader.end(outcome)
        return outcome

    def _announce(self) -> None:
        processes, nodes = self._attempt.processes, self._nodes.count
        self._recorder.event("run_started", host=platform.node(), processes=processes, nodes=nodes)
        where = f"on each of {nodes} nodes, " if self._leader else ""
        what = f"{processes} process(es) {where}on {self._attempt.device}"
        self._recorder.log(f"{self._attempt.name}: attempt {self._attempt.number}, {what}")

    def _record_end(self, outcome: ExitOutcome) -> None:
        end = {"state": outcome.state, "message": outcome.message}
        self._recorder.event("run_ended", **end)
        self._recorder.log(f"{self._attempt.name}: {outcome}")
        self._recorder.close()
        self._recorder.update(**end)
        try:
            self._recorder.flush()
            html.store(self._attempt.store, self._attempt.name)
        except StorageError as error:
            self._recorder.log(f"the final status could not be written: {error.message}")

    def _checkpoint_committed(self, step: int) -> None:
        self._exporters.committed(step)
        if self._leader:
            self._leader.committed(step)

    def _train(self) -> ExitOutcome:
        """Start the trainers, again and again, until the run has succeeded or must end."""
        restarts = furthest = 0
        hung = False
        for generation in itertools.count(1):
            step = self._prepare(generation, hung)
            self._recorder.event("trainers_started", step=step or 0, restart=restarts)
            with self._start(generation, step) as workers:
                watched = self._watch(workers, generation)
                codes = workers.exit_codes()
            self._follow_metrics(quiet=False)
            exited = self._attempt.workers_exit(workers, codes)
            if exited.all_ended("finished"):
                self._recorder.update(step=exited.results[0].step)  # a resumed run may have no step left to do
                break
            if (halt := watched.halt or self._halt()) is not None:
                return halt
            self._record_death(exited, watched.cause or exited.why)
            done, hung = self._recorder.record.step, watched.hung
            restarts, furthest = (1, done) if done > furthest else (restarts + 1, furthest)
            self._recorder.update(restarts=self._recorder.record.restarts + 1)
            if restarts > self._config.max_restarts:
                message = f"{watched.cause or exited.why}; gave up after {restarts - 1} restarts"
                return ExitOutcome("failed", message, f"bafogpt cloud logs {self._attempt.name}", ExitCode.JOB_FAILED)
            self._stop.wait(min(30.0, 2.0 ** (restarts - 1) - 1))
        return ExitOutcome("succeeded")

    def _record_death(self, exited: WorkersExit, why: str) -> None:
        """Raises :class:`RunEndedError` where no restart can help."""
        self._recorder.event("trainers_died", exit_codes=exited.codes, why=why)
        self._recorder.log(f"trainers died: {why}")
        failed = exited.failed
        if failed and not failed.retry:
            raise RunEndedError(ExitOutcome("failed", why, failed.hint, ExitCode(failed.exit_code)))
        if self._leader:
            self._leader.check_fatal()

    def _prepare(self, generation: int, hung: bool) -> int | None:
        """Put the newest checkpoint on this disk, and on that of every node; returns its step.

        Raises :class:`RunEndedError`.
        """
        self._wait_for_bucket()
        if self._leader:
            self._leader.drain(generation, hung=hung)
        self._uploader.rendezvous_id = ""  # what other nodes saved is in the bucket now, or lost
        self._upload_leftovers()
        self._trainer_files.clear_leftovers()  # their room may be needed
        found = self._attempt.checkpoints.fetch_newest(self._trainer_files.resume)
        step = None
        if found is not None:
            checkpoint, folder = found
            step = checkpoint.step
            self._attempt.keep_restored(folder)
            self._recorder.event("checkpoint_restored", step=step, samples=checkpoint.samples)
            self._recorder.log(f"resuming from the checkpoint of step {step}, at sample {checkpoint.samples:,}")
        if self._leader:
            self._leader.restore(generation, step)
        return step

    def _upload_leftovers(self) -> None:
        """Wait for the upload of checkpoints that were saved earlier. Raises :class:`RunEndedError`."""
        if not self._uploader.idle():
            self._recorder.log("sending checkpoints that were left on this disk")
        while not self._uploader.idle() and self._uploader.outage is None and self._halt() is None:
            time.sleep(POLL_S)
        if (halt := self._halt()) is not None:
            raise RunEndedError(halt)

    def _start(self, generation: int, step: int | None) -> Workers:
        layout = self._leader.layout(generation) if self._leader else RankLayout()
        self._uploader.rendezvous_id = layout.rendezvous_id
        if self._leader:
            self._leader.start_generation(generation, layout)
        return self._attempt.start_workers(layout, step)

    def _watch(self, workers: Workers, generation: int) -> _Watched:
        """Wait until the trainers are gone, or must be ended."""
        halt: ExitOutcome | None = None
        deadline = math.inf
        hangs = HangDetector(
            self._trainer_files,
            self._attempt.number,
            first_s=self._config.first_step_s,
            then_s=self._config.hang_timeout_s,
            max_pending=self._attempt.job.train.checkpoint.max_pending,
            clock=self._clock,
        )
        while workers.running():
            time.sleep(POLL_S)
            self._follow_metrics()
            self._drill(workers)
            if halt is None and (halt := self._halt()) is not None:
                deadline = time.monotonic() + self._config.grace_s
                self._recorder.event("stop_requested", why=halt.message)
                self._recorder.log("stopping: the trainers save and exit")
                workers.signal(signal.SIGTERM)
            if time.monotonic() > deadline:
                self._recorder.log(f"trainers did not exit within {self._config.grace_s:g} s: killing them")
                workers.signal(signal.SIGKILL)
            if halt is None and (cause := hangs.hung()) is not None:
                self._recorder.event("trainers_hung", why=cause)
                self._recorder.log(f"{cause}: the trainers print their stacks and are killed")
                workers.dump()
                return _Watched(cause=f"the trainers hung: {cause}", hung=True)
            if halt is None and self._leader and (cause := self._leader.check_peers(generation)) is not None:
                return _Watched(cause=cause)
        return _Watched(halt)

    def _halt(self) -> ExitOutcome | None:
        """Why the run must end now, whatever the trainers do: a request, a limit, or a long outage of the bucket."""
        asked = [0] if self._stop.is_set() else self._leader.stopping() if self._leader else []
        if asked:
            on = f" of node {asked[0]}" if asked[0] else ""
            return ExitOutcome("stopped", f"stopped on request{on}", self._hint(), ExitCode.JOB_CANCELLED)
        return self._limit() or self._outage()

    def _limit(self) -> ExitOutcome | None:
        """The end of a run at its limit of money or time, early enough for the last checkpoint."""
        save_s = self._uploader.reserve_s()
        reached = self._budget.reached(None if save_s is None else save_s + self._progress.step_s + POLL_S)
        if reached is None:
            return None
        message = f"{reached.message}, at step {self._recorder.record.step} of {self._attempt.job.train.steps}"
        return ExitOutcome("stopped", message, f"{self._hint()} {reached.option} MORE", ExitCode.LIMIT_REACHED)

    def _outage(self) -> ExitOutcome | None:
        """The end of a run whose bucket has been out of reach for ``storage_timeout_s``."""
        outages = [each for each in (self._uploader.outage, self._recorder.outage) if each is not None]
        if not outages or time.monotonic() - min(each.since for each in outages) < self._config.storage_timeout_s:
            return None
        error = outages[0].error
        return ExitOutcome("failed", error.message, self._hint(), error.exit_code)

    def _follow_metrics(self, quiet: bool = True) -> None:
        """Read new metrics and print them: every line, or one a second where ``quiet``."""
        step = self._progress.follow(quiet)
        if step is not None:
            self._recorder.update(step=step)

    def _drill(self, workers: Workers) -> None:
        """Kill the trainers once, at the step of ``drill_kill_at_step``."""
        at, step = self._config.drill_kill_at_step, self._recorder.record.step
        if at is None or self._drilled or step < at:
            return
        self._drilled = True
        self._recorder.event("drill_kill", step=step)
        self._recorder.log(f"FIRE DRILL: SIGKILL to the trainers at step {step}")
        workers.signal(signal.SIGKILL)

    def _wait_for_bucket(self) -> None:
        """Raises :class:`UnreachableError` where the bucket does not answer within ``storage_timeout_s``."""
        deadline = time.monotonic() + self._config.storage_timeout_s
        while True:
            try:
                self._attempt.bucket.check()
                return
            except UnreachableError:
                if time.monotonic() >= deadline or self._stop.wait(1.0) or self._limit():
                    raise

    def _drain(self, outcome: ExitOutcome) -> ExitOutcome:
        """Wait until every manifest is committed or the time for it is over; the outcome with what is missing."""
        if not self._uploader.idle():
            self._recorder.log("sending the last checkpoint")
        succeeded = outcome.state == "succeeded"
        timeout_s = self._config.storage_timeout_s if succeeded else self._config.grace_s
        if self._uploader.drain(0 if self._outage() else timeout_s):
            return outcome
        left = [checkpoint_step(folder) for folder in self._trainer_files.pending()]
        message = f"checkpoints of steps {left} are on local disk, not in the bucket"
        state: RunState = "failed" if succeeded else outcome.state
        code = EXIT_CODES[state] if succeeded else outcome.exit_code
        return ExitOutcome(state, "; ".join(filter(None, (outcome.message, message))), self._hint(), code)

    def _hint(self) -> str:
        return resume_hint(self._attempt.name)
