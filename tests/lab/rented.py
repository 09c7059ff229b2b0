"""Runs in a lab, by the commands that a user types; and how the cloud and the bucket see them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket
from tests.lab import pods
from tests.lab.config import ROOT, VENV, outer_environment
from tests.lab.conftest import RunningLab

MODEL = "{n_layer: 2, n_embd: 64, n_head: 2, n_query_groups: 1, head_size: 32, intermediate_size: 128}"
BATCH = 256
TINY: dict[str, Any] = {
    "train.tokens": 12 * BATCH,
    "train.precision": "32-true",
    "train.activation_checkpointing": "none",
    "train.data.path": "data/starter",
    "train.data.sequence_length": 32,
    "train.model.overrides": MODEL,
    "train.batch.tokens": BATCH,
    "train.batch.micro_batch_size": 2,
    "train.checkpoint.every": 6,
    "train.validation.every": 6,
    "train.validation.samples": 8,
    "train.schedule.warmup_steps": 2,
    "supervisor.flush_s": 1,
    "supervisor.processes": 1,
    "supervisor.max_restarts": 0,
    "supervisor.require_gpus": "false",  # the labs have none
}
"""``jobs/pretrain.yaml`` cut down to 12 steps of a model of 0.1 M parameters."""

LONG = {
    "train.tokens": 1_000_000 * BATCH,
    "train.checkpoint.every": 200,
    "train.validation.every": 100_000,
    "train.guard.spike_ratio": "null",  # the loss jumps when the same few pages repeat
}
"""Longer than any test."""

GONE_S = 180.0
"""How long a pod may exist after its job's end."""
LAUNCH_S = 900.0


@dataclass(frozen=True)
class LabClient:
    """``bafogpt`` with a lab's SkyPilot, the test's bucket and a BAFOGPT_HOME of its own."""

    lab: RunningLab
    bucket: Bucket
    environment: dict[str, str]
    folder: Path
    names: list[str] = field(default_factory=list)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(
        self, *words: str, code: int | None = 0, cwd: Path = ROOT, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """``bafogpt WORDS`` to its end, without a terminal; ``code`` is the expected exit code (None: any)."""
        out, err = self.folder / "out", self.folder / "err"
        with out.open("w") as stdout, err.open("w") as stderr:  # files, because daemons keep pipes open
            returned = subprocess.run(
                [str(VENV / "bin/bafogpt"), *words],
                cwd=cwd,
                env=self.environment | more,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                timeout=LAUNCH_S,
                check=False,
            ).returncode
        done = subprocess.CompletedProcess(words, returned, out.read_text(), err.read_text())
        assert code is None or returned == code, (
            f"{words}: {returned}\n{done.stdout}\n{done.stderr}\n{self.lab.provisioning()}"
        )
        return done

    def launch_words(self, name: str, where: list[str], *more: str, job: str = "pretrain", **over: Any) -> list[str]:
        """The launch of the tiny job on ``where``, with keys of ``over`` changed (``train__seed=2``)."""
        self.names.append(name)
        changed = {key.replace("__", "."): value for key, value in over.items()}
        sets = [word for key, value in {**TINY, **changed}.items() for word in ("--set", f"{key}={value}")]
        return ["cloud", "launch", job, *where, *sets, "--name", name, *more]

    def status(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.command("cloud", "status", name, "--json").stdout))

    @property
    def store(self) -> RunStore:
        return RunStore(self.bucket)

    def record(self, name: str) -> RunRecord:
        return self.store.load(name)

    def saved(self, name: str) -> list[int]:
        """Steps of the complete checkpoints in the bucket."""
        return [checkpoint.step for checkpoint in self.store.checkpoints(name).complete()]

    def until(self, condition: Callable[[], Any], timeout_s: float = 300.0) -> Any:
        """The value of ``condition`` as soon as it is true."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, condition
            time.sleep(0.5)
        return found

    def until_step(self, name: str, step: int, timeout_s: float = 300.0) -> None:
        """Wait until the record in the bucket has reached a step."""
        self.until(lambda: (record := self.store.find(name)) is not None and record.step >= step, timeout_s)

    def clean_up(self) -> None:
        """End what the test has left."""
        for client in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(client.pid, signal.SIGKILL)
            client.wait()
        for name in dict.fromkeys(self.names):
            self.lab.sky("down", "-y", name, check=False)


@dataclass(frozen=True)
class Rented(LabClient):
    """A client of the pod cloud."""

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """``bafogpt WORDS`` in the background; its output goes to ``folder/started``."""
        with (self.folder / "started").open("ab") as output:
            client = subprocess.Popen(
                [str(VENV / "bin/bafogpt"), *words],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started.append(client)
        return client

    def on_terminal(
        self,
        words: list[str],
        question: str,
        answer: str,
        timeout_s: float,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> tuple[int, str]:
        """Exit code and screen of ``bafogpt WORDS`` on a terminal; ``meanwhile`` runs each second."""
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(ROOT)
            os.execve(VENV / "bin/bafogpt", ["bafogpt", *words], self.environment)  # noqa: S606 - as the shell of a person does
        screen, answered, deadline = b"", False, time.monotonic() + timeout_s
        with contextlib.suppress(OSError):  # the terminal is gone when its last program is
            while time.monotonic() < deadline:
                meanwhile()
                if select.select([terminal], [], [], 1)[0]:
                    screen += os.read(terminal, 65536)
                if not answered and question.encode() in screen:
                    answered = True
                    os.write(terminal, answer.encode() + b"\n")
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(terminal)
        return code, screen.decode(errors="replace")

    def words(self, name: str, *more: str, **over: Any) -> list[str]:
        where = ["--infra", "runpod", "--gpus", "L40:4", "--image", pods.image()]
        return self.launch_words(name, where, *more, **over)

    def launch(self, name: str, *more: str, code: int | None = 0, **over: Any) -> subprocess.CompletedProcess[str]:
        """Launch the tiny job and watch it to its end; ``-d`` in ``more`` returns once it runs."""
        return self.command(*self.words(name, "--yes", *more, **over), code=code)

    def inside(self, name: str, script: str) -> str:
        """The output of a shell in the run's pod, without SkyPilot."""
        (pod,) = self.pods(name)
        done = subprocess.run(
            ["podman", "exec", f"bafogpt-lab-{pod['id']}", "sh", "-c", script],
            env=outer_environment() | dict(self.lab.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def signal(self, name: str, number: int, sign: str) -> None:
        """A signal to the processes of the run's pod with ``sign`` in their command line; there must be one."""
        script = f"for p in $(pgrep -f '{sign}'); do [ $p = $$ ] || echo $p; done"
        found = [pid for pid in self.inside(name, script).split() if self._is(name, pid, sign)]
        assert found, self.inside(name, "ps ax")
        self.inside(name, f"kill -{number} {' '.join(found)}")

    def _is(self, name: str, pid: str, sign: str) -> bool:
        """Whether the process is a Python that runs ``sign``, not a shell with it in its words."""
        words = self.inside(name, f"tr '\\0' '\\n' </proc/{pid}/cmdline").split("\n")
        return "python" in words[0].rpartition("/")[2]

    def pods(self, name: str) -> list[dict[str, Any]]:
        """The run's pods, by the cloud itself."""
        return [pod for pod in pods.control()["pods"] if pod["name"].startswith(f"{name}-")]

    def until_gone(self, name: str, timeout_s: float = GONE_S) -> float:
        """Seconds until the run has no pod at the cloud."""
        began = time.monotonic()
        self.until(lambda: not self.pods(name), timeout_s)
        return time.monotonic() - began

    def told(self, name: str) -> tuple[str, int]:
        """Last line of the log and number of training lines, from the bucket alone."""
        logs = self.command("runs", "logs", name).stdout.splitlines()
        json.loads(self.command("runs", "show", name, "--json").stdout)
        return logs[-1], sum("loss" in line for line in self.store.metrics(name))

    def clean_up(self) -> None:
        """End what the test has left; managed jobs' pods too."""
        names = [name for name in self.names if self.pods(name)]
        self.names[:] = names
        super().clean_up()
        for pod in (pod for name in names for pod in self.pods(name)):
            pods.control({"preempt": pod["id"]})


def lab_environment(lab: RunningLab, s3: Any, folder: Path) -> dict[str, str]:
    """The environment of ``bafogpt`` in a lab, with the session's S3 server."""
    return outer_environment() | dict(lab.environment) | s3.environment | {"BAFOGPT_HOME": str(folder / "home")}


def rented(lab: RunningLab, s3: Any, bucket: Bucket, folder: Path) -> Iterator[Rented]:
    """A client whose pods reach the session's SeaweedFS; its ``bucket`` has the starter corpus."""
    pods.control({"reach": int(s3.environment["BAFOGPT_S3_ENDPOINT"].rpartition(":")[2])})
    client = Rented(lab, bucket, lab_environment(lab, s3, folder), folder)
    try:
        yield client
    finally:
        client.clean_up()
