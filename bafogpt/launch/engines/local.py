"""The local engine: the same SkyPilot task on this machine, detached, with SkyPilot's environment.

Each run has a folder ``<home>/runs/<name>/``: ``task.yaml`` (without secrets), ``state.json``, ``output.log``,
``runner.log``. A runner process (:mod:`bafogpt.launch.engines.local_runner`), which outlives the terminal, runs the
task."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bafogpt.core import files, nvidia_smi, process, schema
from bafogpt.core.errors import (
    AuthError,
    BafoError,
    ConflictError,
    JobFailedError,
    RunNotFoundError,
    UsageError,
    did_you_mean,
)
from bafogpt.core.settings import Settings
from bafogpt.jobs import env
from bafogpt.jobs import task as tasks
from bafogpt.launch.engines.base import CANCEL_MARGIN_S, EngineRun, QueuedJob
from bafogpt.launch.engines.registry import LaunchRegistry
from bafogpt.launch.plan import LOCAL, Plan
from bafogpt.runs import store

START_TIMEOUT_S = 60.0


class LocalEngine:
    """Runs tasks on this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Path(settings.home) / "runs"

    def launch(self, plan: Plan, *, resume: bool) -> EngineRun:
        """Start the runner and wait until it runs the task. See :class:`~bafogpt.launch.engines.base.Engine`."""
        name, folder = plan.name, self._folder / plan.name
        self._check_name_is_free(name, resume)
        environment = self._environment(plan)
        folder.mkdir(parents=True, exist_ok=True)
        LaunchRegistry(self._settings).remove(name)  # the name is now a run on this machine
        (folder / "state.json").unlink(missing_ok=True)
        files.write_atomic(folder / "task.yaml", tasks.to_yaml(plan.task))
        log = folder / "runner.log"
        with log.open("a") as file:
            runner = subprocess.Popen(
                [sys.executable, "-m", "bafogpt.launch.engines.local_runner", str(folder), str(plan.root)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        if not process.wait_until(lambda: self._read(name) is not None or runner.poll() is not None, START_TIMEOUT_S):
            runner.kill()
            raise BafoError(f"{name} did not start within {START_TIMEOUT_S:g} s", f"cat {log}")
        if self._read(name) is None:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise JobFailedError(f"{name} did not start: {last}", f"cat {log}")
        return self.status(name)

    def runs(self) -> list[EngineRun]:
        """Every run with a folder here, oldest first."""
        names = [path.name for path in self._folder.glob("*/") if self.has(path.name)]
        return sorted((self.status(name) for name in names), key=lambda run: run.started)

    def status(self, name: str) -> EngineRun:
        """The run's state; ``gone`` when its runner has died without writing one."""
        run = self._read(name)
        if run is None:
            if not self.has(name):
                known = [path.name for path in self._folder.glob("*/")]
                raise RunNotFoundError(
                    f"no run '{name}' on this machine{did_you_mean(name, known)}", "bafogpt cloud ls"
                )
            return EngineRun(name=name, infra=LOCAL, state="gone", started="")
        return run

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The run's output; with ``follow`` until it ends."""
        self.status(name)
        path = self._folder / name / "output.log"
        position, rest = 0, b""
        while True:
            ended = not self.status(name).active
            if path.exists():
                with path.open("rb") as file:
                    file.seek(position)
                    data = file.read()
                position += len(data)
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode("utf-8", errors="replace") for line in lines)
            if ended or not follow:
                if rest:
                    yield rest.decode("utf-8", errors="replace")
                return
            time.sleep(0.1)

    def has(self, name: str) -> bool:
        """Whether the run has a folder here."""
        return (self._folder / name / "task.yaml").exists()

    def queue(self, name: str) -> list[QueuedJob]:
        """The run itself: this machine has no queue."""
        run = self.status(name)
        return [QueuedJob(id=1, name=name, state=run.state, submitted=run.started)]

    def execute(self, name: str, command: Sequence[str]) -> Iterator[str]:
        """Run the command here and yield its output, both streams as one."""
        self.status(name)
        with subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as child:
            assert child.stdout is not None
            yield from (line.rstrip("\n") for line in child.stdout)
        if child.returncode:
            raise JobFailedError(
                f"'{shlex.join(command)}' ended with exit code {child.returncode}", f"bafogpt cloud status {name}"
            )

    def shell(self, name: str, command: Sequence[str] = (), node: int = 0) -> list[str]:
        """A shell on this machine, or the command itself."""
        self.status(name)
        if node:
            raise UsageError(f"{name} has one node, this machine", f"bafogpt cloud ssh {name}")
        return list(command) or [os.environ.get("SHELL", "/bin/bash"), "-i"]

    def copy(self, name: str, source: str, target: str, *, upload: bool) -> list[str]:
        """``cp``: both sides are this machine."""
        self.status(name)
        return ["cp", "-a", "--", source, target]

    def forward(self, name: str, here: int, there: int) -> list[str]:
        """Raises :class:`UsageError`: the run's ports are this machine's."""
        self.status(name)
        raise UsageError(f"{name} runs here: its port {there} is this machine's", f"curl 127.0.0.1:{there}")

    def cancel(self, name: str) -> EngineRun:
        """Send SIGTERM to the runner, which forwards it, and wait for the end."""
        run = self.status(name)
        if not run.active:
            return run
        assert run.pid is not None
        os.kill(run.pid, signal.SIGTERM)
        timeout_s = float(json.loads((self._folder / name / "state.json").read_text())["grace_s"]) + CANCEL_MARGIN_S
        if not process.wait_until(lambda: not self.status(name).active, timeout_s):
            raise BafoError(f"{name} is still ending after {timeout_s:g} s", f"bafogpt cloud logs -f {name}")
        return self.status(name)

    def down(self, name: str) -> None:
        """Cancel the run, end what is left of its session, and remove its folders here."""
        run = self.cancel(name)
        if run.pid is not None:
            process.end(process.in_session(run.pid), grace_s=5)
        shutil.rmtree(self._folder / name)
        shutil.rmtree(work_folder(self._settings, name), ignore_errors=True)

    def _check_name_is_free(self, name: str, resume: bool) -> None:
        """Raise :class:`ConflictError` when a launch under this name would meet another run."""
        try:
            run = self.status(name)
        except RunNotFoundError:
            return
        if run.active:
            raise ConflictError(f"run {name} is {run.state} already", f"bafogpt cloud logs -f {name}")
        if not resume:
            hint = f"launch it with --resume, or bafogpt cloud down {name}"
            raise ConflictError(f"run {name} exists already ({run.state})", hint)

    def _environment(self, plan: Plan) -> dict[str, str]:
        """This environment with the variables that SkyPilot would set; secrets stay in memory."""
        for secret in plan.required_secrets:
            if not os.environ.get(secret):
                raise AuthError(f"--env {secret}: it is not set here", f"export {secret}=…")
        gpus = tasks.accelerators(plan.task)
        gpu_count = min(nvidia_smi.count(), gpus[1] if gpus else 0)
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **{key: str(value) for key, value in (plan.task.get("envs") or {}).items()},
            env.HOME: self._settings.home,
            env.S3_ENDPOINT: self._settings.s3_endpoint,
            "SKYPILOT_TASK_ID": f"bafogpt-{plan.name}",
            "SKYPILOT_CLUSTER_INFO": json.dumps({"cluster_name": plan.name, "cloud": "local"}),
            "SKYPILOT_NODE_RANK": "0",
            "SKYPILOT_NUM_NODES": "1",
            "SKYPILOT_NODE_IPS": "127.0.0.1",
            "SKYPILOT_NUM_GPUS_PER_NODE": str(gpu_count),
            env.GRACE_S: str(plan.job.supervisor.grace_s),
        }

    def _read(self, name: str) -> EngineRun | None:
        """The run's state file, ``gone`` where its runner is dead; None before the runner has written it."""
        path = self._folder / name / "state.json"
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        runner_started = values.pop("runner_started")
        values.pop("grace_s")
        run = schema.build(EngineRun, values, where=str(path))
        if run.active and not process.is_alive(run.pid or 0, runner_started):
            return replace(run, state="gone")
        return run


def work_folder(settings: Settings, name: str) -> Path:
    """The local disk of a run's supervisor and trainers."""
    return Path(settings.home) / "work" / store.check_name(name)


def write_state(folder: Path, run: EngineRun, runner_started: float, grace_s: float) -> None:
    """Write the run's ``state.json``; called by the runner."""
    values = {**asdict(run), "runner_started": runner_started, "grace_s": grace_s}
    files.write_atomic(folder / "state.json", json.dumps(values))
