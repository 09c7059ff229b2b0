"""``bafogpt job run``: the command of every task. Keeps one run alive on the machine it is on.

It starts the trainers, restarts them after a crash from the newest complete checkpoint, carries checkpoints, logs,
metrics and events to the bucket while they work, turns SIGTERM into save, drain, exit, and leaves a final status that
can be read after the machine is gone. It never imports torch.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bafogpt.cloud import report
from bafogpt.cloud.claim import Place, claim
from bafogpt.cloud.job import Job
from bafogpt.cloud.publishing import DRAIN_S, Publisher
from bafogpt.cloud.recorder import Recorder
from bafogpt.cloud.runs import RunStore, State
from bafogpt.cloud.trainers import WORKER, Trainers, describe_exit, gpu_count
from bafogpt.cloud.uploads import Uploader
from bafogpt.core import settings
from bafogpt.core.errors import BafoError, ExitCode, StorageError, UnreachableError
from bafogpt.storage.bucket import Bucket
from bafogpt.train.handoff import Handoff, Order, checkpoint_step

POLL_S = 0.05
PROGRESS_EVERY_S = 1.0
EXIT_CODES: dict[State, ExitCode] = {
    "succeeded": ExitCode.OK,
    "stopped": ExitCode.JOB_CANCELLED,
    "failed": ExitCode.JOB_FAILED,
}


@dataclass(frozen=True)
class Ending:
    """How a run ended on this machine."""

    state: State
    message: str = ""
    hint: str = ""
    exit_code: ExitCode = ExitCode.OK

    def __post_init__(self) -> None:
        assert (self.state == "succeeded") == (self.exit_code == ExitCode.OK), self


def supervise(
    job: Job, name: str, bucket: Bucket, folder: Path, place: Place, worker: Sequence[str] = WORKER
) -> Ending:
    """Run ``job`` as run ``name`` of ``bucket`` until it is done, stopped or beyond help.

    ``folder`` is local disk for this run alone, ``worker`` the command of a trainer process.
    Raises :class:`BafoError` for what is wrong before the first trainer starts; after that everything ends in an
    :class:`Ending`.
    """
    with claim(job, name, bucket, folder, place) as record:
        if record.state == "succeeded":
            print(f"{name} has succeeded already, at step {record.step}")
            return Ending("succeeded")
        handoff = Handoff(folder)
        handoff.checkpoints.mkdir(parents=True, exist_ok=True)
        recorder = Recorder(RunStore(bucket), record, handoff, every_s=job.supervisor.ship_every_s)
        ending = _Supervisor(job, bucket, handoff, recorder, worker).run()
    if ending.state == "succeeded":
        shutil.rmtree(folder, ignore_errors=True)
    return ending


class _Supervisor:
    """One attempt at a run."""

    def __init__(self, job: Job, bucket: Bucket, handoff: Handoff, recorder: Recorder, worker: Sequence[str]) -> None:
        self._job = job
        self._config = job.supervisor
        self._store = RunStore(bucket)
        self._bucket = bucket
        self._handoff = handoff
        self._recorder = recorder
        self._worker = worker
        self._name = recorder.record.name
        self._gpus = gpu_count()
        self._checkpoints = self._store.checkpoints(self._name)
        self._uploader = Uploader(
            handoff,
            self._checkpoints,
            job.train.checkpoint,
            recorder.attempt,
            record=self._record_upload,
            ship=recorder.ship,
        )
        self._publisher: Publisher | None = None
        if job.supervisor.publish_to:
            folder = bucket.child(f"runs/{self._name}/checkpoints")
            self._publisher = Publisher(folder, job.supervisor.publish_to, settings.load(), recorder.event)
        self._stop = threading.Event()
        self._metrics = _Tail(handoff.metrics(recorder.attempt))
        self._last_progress = 0.0
        self._drilled = recorder.attempt > 1

    def run(self) -> Ending:
        """Train until it is done, then drain and write down how it ended."""
        say, event = self._recorder.say, self._recorder.event
        self._recorder.start()
        self._uploader.start()
        if self._publisher:
            self._publisher.start()
        event("run_started", host=platform.node(), processes=self._processes())
        say(f"{self._name}: attempt {self._recorder.attempt}, {self._processes()} process(es) on {self._device()}")
        with _signals(self._stop):
            try:
                ending = self._train()
            except BafoError as error:
                ending = Ending("failed", error.message, error.hint, error.exit_code)
            ending = self._drain(ending)
            self._finish_publishing(ending)
        event("run_ended", state=ending.state, message=ending.message)
        say(f"{self._name}: {ending.state}" + (f": {ending.message}" if ending.message else ""))
        self._recorder.close()
        self._recorder.update(state=ending.state, message=ending.message)
        try:
            self._recorder.ship()
            report.store(self._store, self._name)
        except StorageError as error:
            say(f"the final status could not be written: {error.message}")
        return ending

    def _record_upload(self, kind: str, **values: Any) -> None:
        """An event of the uploads; what is committed may be published."""
        self._recorder.event(kind, **values)
        if kind == "checkpoint_committed" and self._publisher:
            self._publisher.offer(values["step"])

    def _finish_publishing(self, ending: Ending) -> None:
        """Wait for the last publication: long after success, no longer than the grace period otherwise."""
        if self._publisher:
            self._recorder.say(f"publishing on {self._config.publish_to}")
            if not self._publisher.close(DRAIN_S if ending.state == "succeeded" else self._config.grace_s):
                self._recorder.say("the last publication did not end in time")

    def _train(self) -> Ending:
        """Start trainers and start them again, until there is an ending."""
        restarts = furthest = 0
        while True:
            order = self._order()
            self._handoff.write_order(order)
            self._recorder.event("trainers_started", step=order.resume_step or 0, restart=restarts)
            trainers = Trainers(self._handoff.folder, self._processes(), self._recorder.say, self._worker)
            try:
                problem = self._watch(trainers)
                codes = trainers.exit_codes()
            finally:
                trainers.end()
            self._follow_metrics(quiet=False)
            results = self._handoff.read_results()
            if problem is not None:
                return problem
            if results and len(results) == len(codes) and all(result.outcome == "finished" for result in results):
                self._recorder.update(step=results[0].step)  # a run that had only to be ended writes no metrics
                return Ending("succeeded")
            if self._stop.is_set():
                return Ending(
                    "stopped",
                    "stopped on request",
                    f"bafogpt cloud launch … --name {self._name} --resume",
                    ExitCode.JOB_CANCELLED,
                )
            failed = next((result for result in results if result.outcome == "failed"), None)
            why = failed.error if failed else describe_exit(codes)
            self._recorder.event("trainers_died", exit_codes=codes, why=why)
            self._recorder.say(f"trainers died: {why}")
            if failed and not failed.retry:
                return Ending("failed", why, failed.hint, ExitCode(failed.exit_code))
            done = self._recorder.record.step
            restarts, furthest = (1, done) if done > furthest else (restarts + 1, furthest)
            self._recorder.update(restarts=self._recorder.record.restarts + 1)
            if restarts > self._config.max_restarts:
                message = f"{why}; gave up after {restarts - 1} restarts"
                return Ending("failed", message, f"bafogpt cloud logs {self._name}", ExitCode.JOB_FAILED)
            self._stop.wait(min(30.0, 2.0 ** (restarts - 1) - 1))

    def _order(self) -> Order:
        """What the trainers are to do, from the newest complete checkpoint on if there is one."""
        self._wait_for_bucket()
        if not self._uploader.idle():  # what an earlier process saved but had not sent
            self._recorder.say("sending checkpoints that were left on this disk")
            while not self._uploader.idle() and self._uploader.failing is None:
                time.sleep(POLL_S)
        self._handoff.clear_leftovers()  # their room may be needed
        found = self._checkpoints.fetch_newest(self._handoff.resume)
        step = None
        if found is not None:
            checkpoint, fetched = found
            step = checkpoint.step
            for older in self._handoff.resume.iterdir():
                if older != fetched:
                    shutil.rmtree(older)
            self._recorder.event("checkpoint_restored", step=step, samples=checkpoint.samples)
            self._recorder.say(f"resuming from the checkpoint of step {step}, at sample {checkpoint.samples:,}")
        return Order(
            job=self._job.trainer,
            bucket=self._bucket.url,
            config=self._job.train,
            device=self._device(),
            attempt=self._recorder.attempt,
            price_per_hour=self._recorder.record.price_per_hour,
            resume_step=step,
        )

    def _watch(self, trainers: Trainers) -> Ending | None:
        """Until the trainers are gone. An ending here is one that has nothing to do with them."""
        term_sent: float | None = None
        problem: Ending | None = None
        while trainers.running():
            time.sleep(POLL_S)
            self._follow_metrics()
            self._drill(trainers)
            problem = problem or self._storage_problem()
            if (self._stop.is_set() or problem) and term_sent is None:
                term_sent = time.monotonic()
                self._recorder.event("stop_requested")
                self._recorder.say("stopping: the trainers save and leave")
                trainers.signal(signal.SIGTERM)
            if term_sent is not None and time.monotonic() - term_sent > self._config.grace_s:
                self._recorder.say(f"trainers did not leave within {self._config.grace_s:g} s: killing them")
                trainers.signal(signal.SIGKILL)
        return problem

    def _follow_metrics(self, quiet: bool = True) -> None:
        """Read what the trainers have written since; show it now and then, or whenever not ``quiet``."""
        for line in self._metrics.read():
            if "loss" not in line:
                continue
            self._recorder.update(step=line["step"])
            last = line["step"] == self._job.train.steps
            if not quiet or last or time.monotonic() - self._last_progress >= PROGRESS_EVERY_S:
                self._last_progress = time.monotonic()
                self._recorder.say(_progress(line, self._job.train.steps))

    def _drill(self, trainers: Trainers) -> None:
        """Kill the trainers once at the step the job asks for, as a machine that fails would."""
        at = self._config.drill_kill_at_step
        if at is None or self._drilled or self._recorder.record.step < at:
            return
        self._drilled = True
        self._recorder.event("drill_kill", step=self._recorder.record.step)
        self._recorder.say(f"FIRE DRILL: SIGKILL to the trainers at step {self._recorder.record.step}")
        trainers.signal(signal.SIGKILL)

    def _storage_problem(self) -> Ending | None:
        """An ending when the bucket has been out of reach for longer than the job's patience."""
        failing = [each for each in (self._uploader.failing, self._recorder.failing) if each is not None]
        if not failing or time.monotonic() - min(each.since for each in failing) < self._config.patience_s:
            return None
        error = failing[0].error
        return Ending("failed", error.message, f"bafogpt cloud launch … --name {self._name} --resume", error.exit_code)

    def _wait_for_bucket(self) -> None:
        """Until the bucket answers. Raises :class:`UnreachableError` after the job's patience."""
        deadline = time.monotonic() + self._config.patience_s
        while True:
            try:
                self._bucket.check()
                return
            except UnreachableError:
                if time.monotonic() >= deadline or self._stop.wait(1.0):
                    raise

    def _drain(self, ending: Ending) -> Ending:
        """Let go only when the last manifest is committed, or the time for it is over; and say which."""
        if self._uploader.idle() and self._uploader.drain(0):
            return ending
        self._recorder.say("sending the last checkpoint")
        patience = self._config.patience_s if ending.state == "succeeded" else self._config.grace_s
        if self._uploader.drain(0 if self._storage_problem() else patience):
            return ending
        left = [checkpoint_step(folder) for folder in self._handoff.pending()]
        message = f"checkpoints of steps {left} are on local disk, not in the bucket"
        if ending.message:
            message = f"{ending.message}; {message}"
        state: State = "failed" if ending.state == "succeeded" else ending.state
        code = EXIT_CODES[state] if ending.state == "succeeded" else ending.exit_code
        return Ending(state, message, f"bafogpt cloud launch … --name {self._name} --resume", code)

    def _processes(self) -> int:
        return self._config.processes or self._gpus or 1

    def _device(self) -> Any:
        return "cuda" if self._gpus else "cpu"


class _Tail:
    """Reads the whole JSON lines that were appended to a file since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # the rest comes with a later write
                self._position += len(raw)
                with contextlib.suppress(ValueError):
                    yield json.loads(raw)


def _progress(line: dict[str, Any], steps: int) -> str:
    """One metrics line for people."""
    return (
        f"step {line['step']:>6}/{steps}  loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  "
        f"{line['tokens_per_s']:>9,.0f} tokens/s  MFU {line['mfu']:.1%}  {line['stage']}"
    )


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop instead of ending this process."""
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
