"""One run under kills: the real supervisor and its trainers as processes, a proxy between them and a real S3 server.

They are killed and started again until the run has ended; then the run is compared with one that was left undisturbed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bafogpt.runs import store as runs

from . import ledger, points
from .bench import Bench
from .plan import DoneKill, Kill, Plan, Reference, RunResult, StartOptions
from .proxy import Decide, Proxy, Request

TIMEOUT_S = 90.0
"""A run that takes longer for one thing hangs; with the real trainer, whose start alone is seconds of CPU, three times
that."""


class RunUnderTest:
    """One run, by the name of its folder in ``bench``. It reaches the bucket by a proxy, the bench reaches it directly.

    ``work`` is its disk, a folder below ``bench.home`` unless another one is given.
    """

    def __init__(
        self,
        name: str,
        bench: Bench,
        plan: Plan,
        *,
        decide: Decide = lambda _: None,
        uplink: float | None = None,
        trace: Path | None = None,
        work: Path | None = None,
    ) -> None:
        self.name = name
        self.plan = plan
        self._home = bench.home / name
        self._home.mkdir(parents=True)
        self.work = work or self._home / "work"
        self.proxy = Proxy(bench.endpoint, decide=decide, watch=self._watch, uplink=uplink)
        self.ledger = self._home / "ledger.jsonl"
        self._book = ledger.Ledger(self.ledger)
        self.store = runs.RunStore(bench.bucket)
        self.armed = points.Armed(self._home / "armed")
        self._environment = {
            **os.environ,
            **bench.environment,
            "AWS_ENDPOINT_URL": self.proxy.url,
            "BAFOGPT_S3_ENDPOINT": self.proxy.url,
            "BAFOGPT_S3_TIMEOUT_S": "20",
            points.FOLDER: str(self.work),
            points.ARMED: str(self.armed.path),
            ledger.VARIABLE: str(self.ledger),
            "FAULTS_FLOATS": str(plan.floats),
        } | ({points.TRACE: str(trace)} if trace else {})
        self._process: subprocess.Popen[bytes] | None = None
        self._output = self._home / "output.txt"
        self._trainer_kills = 0
        self._request: Kill | None = None
        self._left = 0
        self._request_saves: list[int] | None = None
        self._lock = threading.Lock()
        self.result = RunResult()

    def __enter__(self) -> RunUnderTest:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_all()
        self.proxy.close()

    def run(self, kills: Sequence[Kill], reference: Reference | None = None) -> RunResult:
        """The run from its start to its end, and what was wrong with it."""
        options = kills[0].options if kills else StartOptions()
        try:
            for kill in kills:
                if self._trainer_kills >= 2 and kill.victim == "trainer":  # a third restart would wait for seconds
                    self._start(kill.options)
                    self._apply(Kill("supervisor", "moment", options=kill.options))
                self._start(kill.options)
                self._apply(kill)
                options = kill.options
                if self._ended():
                    break
            self._start(options)
            self._wait(self._ended, "its end")
            self._verify(reference)
        except _HangsError as error:
            self.result.problems.append(str(error))
        return self.result

    def _start(self, options: StartOptions) -> None:
        """A supervisor, unless there is one at work or the run has ended."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None and self._process.returncode != -signal.SIGKILL:
            return
        job = self._home / "job.json"
        job.write_text(json.dumps(self.plan.job(options)))
        words = [sys.executable, str(Path(__file__).with_name("victim.py")), str(job), self.name, str(self.work)]
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                words + (["--torch"] if self.plan.torch else []),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._trainer_kills = 0

    def _ended(self) -> bool:
        """Whether the supervisor ended by itself."""
        return self._process is not None and self._process.poll() not in (None, -signal.SIGKILL)

    def _dead(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _apply(self, kill: Kill) -> None:
        """Kill, or find that the run ended before."""
        if kill.how == "moment":
            saves = self._at_a_moment(kill)
        elif kill.how == "file":
            saves = self._at_a_file_operation(kill)
        else:
            saves = self._at_a_request(kill)
        if saves is None:
            self.result.missed.append(kill)
            return
        committed = {int(Path(key).stem.removeprefix("step-")) for key in self.proxy.committed}
        self.result.done_kills.append(DoneKill(kill, bool(set(saves) - committed)))
        if kill.victim == "trainer":
            self._trainer_kills += 1
            return
        self._trainer_kills = 0
        self._wait(self._dead, "the supervisor's death")
        self._wait(lambda: not self._trainers(), "its trainers' death")
        self._check_bucket()
        if kill.victim == "machine":
            shutil.rmtree(self.work, ignore_errors=True)  # it may not have come to making it
            self._book.machine_lost()

    def _at_a_moment(self, kill: Kill) -> list[int] | None:
        """All are stopped, looked at, and then one is killed: it never knows."""
        before = self._metrics_bytes()
        if kill.at_work:
            self._wait(lambda: self._metrics_bytes() != before or self._ended(), "a step")
        deadline = time.monotonic() + kill.delay_s
        while time.monotonic() < deadline and not self._ended():
            time.sleep(0.005)
        assert self._process is not None
        trainers = self._trainers()
        while kill.victim == "trainer" and not trainers and not self._ended():
            time.sleep(0.005)
            trainers = self._trainers()
        if self._ended():
            return None
        stopped = [self._process.pid, *trainers]
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        saves = points.saves_under_way(self.work)
        doomed = trainers[kill.nth % len(trainers)] if kill.victim == "trainer" else self._process.pid
        if doomed not in trainers or doomed in self._trainers():
            os.kill(doomed, signal.SIGKILL)
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return saves

    def _metrics_bytes(self) -> int:
        total = 0
        for path in self.work.glob("metrics-*"):
            with contextlib.suppress(FileNotFoundError):  # a run that has just succeeded takes its folder away
                total += path.stat().st_size
        return total

    def _at_a_file_operation(self, kill: Kill) -> list[int] | None:
        process = "trainer" if kill.victim == "trainer" else "supervisor"
        self.armed.arm(process, kill.label, kill.nth)
        self._wait(lambda: self.armed.hit() is not None or self._ended(), kill.point)
        hit = self.armed.hit()
        self.armed.disarm()
        return None if hit is None else list(hit["saves"])

    def _at_a_request(self, kill: Kill) -> list[int] | None:
        with self._lock:
            self._request, self._left, self._request_saves = kill, kill.nth, None
        self._wait(lambda: self._request_saves is not None or self._ended(), kill.point)
        with self._lock:
            self._request = None
            return self._request_saves

    def _watch(self, request: Request, stage: str) -> bool:
        """Called by the proxy at each stage of each request; True when it killed who asked."""
        with self._lock:
            kill = self._request
            if kill is None or self._process is None or (kill.stage, kill.label) != (stage, request.label):
                return False
            self._left -= 1
            if self._left:
                return False
            pids = self._trainers() if kill.victim == "trainer" else [self._process.pid]
            if not pids:
                return False
            self._request = None
            saves = points.saves_under_way(self.work)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
            self._request_saves = saves
        return True

    def _trainers(self) -> list[int]:
        """Living trainers, whoever is their parent now."""
        return self.armed.living("trainer")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S * (3 if self.plan.torch else 1)
        while not condition():
            if time.monotonic() > deadline:
                raise _HangsError(f"{self.name} hangs, waiting for {what}; {self._output.read_text()[-1500:]}")
            time.sleep(0.005)

    def _check_bucket(self) -> None:
        """Every checkpoint that a manifest names is whole, at any time."""
        store = self.store.checkpoints(self.name)
        for checkpoint in store.complete():
            self.result.problems += store.problems(checkpoint)

    def _verify(self, reference: Reference | None) -> None:
        """The run's end, against the run that was left undisturbed."""
        result = self.result
        assert self._process is not None
        if self._process.returncode != 0:
            end = self._output.read_text(errors="replace")[-1500:]
            result.problems.append(f"{self.name} ended with exit code {self._process.returncode}: {end}")
            return
        self._check_bucket()
        record = self.store.load(self.name)
        if (record.state, record.step) != ("succeeded", self.plan.steps):
            result.problems.append(f"{self.name}: the record says {record.state} at step {record.step}")
        result.problems += runs.sample_gaps(runs.curve(self.store.metrics(self.name)))
        if f"{self.name}: succeeded" not in self.store.logs(self.name):
            result.problems.append(f"{self.name}: the last line of the log is not in the bucket")
        found = self.store.checkpoints(self.name).fetch_newest(self._home / "last")
        if found is None or found[0].step != self.plan.steps:
            result.problems.append(f"{self.name}: the newest checkpoint is {found and found[0].step}")
            return
        result.state = state_of(found[1])
        if not self.plan.torch:
            self._verify_ledger(found[1], reference)
        if reference is not None and result.state != reference.state:
            result.problems.append(f"{self.name}: the final weights are not bit-equal")

    def _verify_ledger(self, last: Path, reference: Reference | None) -> None:
        result = self.result
        history = result.history = ledger.read(self.ledger, reference.history if reference else None)
        result.problems += ledger.compare(history, reference.history if reference else history)
        consumed = functools.reduce(ledger.chained, (each for step in history.steps for each in step), "")
        if json.loads((last / "checkpoint.json").read_text())["consumed"] != consumed:
            result.problems.append(f"{self.name}: the last checkpoint is of other samples than those consumed")
        for steps, lost in history.redone:
            bound = self.plan.every * (self.plan.max_pending + 1 if lost else 1)
            if steps > bound and self.plan.on_backlog == "wait":
                result.problems.append(f"{self.name}: {steps} steps were done again, more than {bound}")

    def _end_all(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class _HangsError(Exception):
    """Nothing happened for too long."""


def state_of(folder: Path) -> bytes:
    """The state in a checkpoint folder, as bytes that do not depend on how many processes saved it."""
    if list(folder.glob("state-*")):
        from .tiny_loop import state_bytes

        return state_bytes(folder)
    from safetensors.numpy import load_file

    tensors = {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
    return b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))


def undisturbed(bench: Bench, plan: Plan, name: str) -> Reference:
    """The run to compare with. Raises AssertionError when not even that one goes well."""
    with RunUnderTest(name, bench, plan) as tested:
        result = tested.run([])
    assert not result.problems, result.problems
    return Reference(result.history, result.state)
