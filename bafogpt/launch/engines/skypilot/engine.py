"""The SkyPilot engine: a run is a cluster of its name that terminates itself, or a managed job of its name."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bafogpt.core.errors import BafoError, ConflictError, JobFailedError, RunNotFoundError
from bafogpt.core.settings import Settings
from bafogpt.launch.engines.base import CANCEL_MARGIN_S, EngineRun, QueuedJob
from bafogpt.launch.engines.registry import LaunchRegistry
from bafogpt.launch.engines.skypilot import log_filter, ssh, task_config
from bafogpt.launch.engines.skypilot.client import Client, iso
from bafogpt.launch.engines.skypilot.launcher import Launcher
from bafogpt.launch.engines.skypilot.status import EXIT_CODES, ClusterState, RunStatusReader
from bafogpt.launch.engines.skypilot.teardown import Teardown
from bafogpt.launch.plan import Plan
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket

POLL_S = 2.0


class SkyPilotEngine:
    """Runs tasks on rented machines. ``client``, ``clock`` and ``sleep`` are for tests."""

    def __init__(
        self,
        settings: Settings,
        client: Client | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self.client = client or Client()
        self._clock, self._sleep = clock, sleep
        self.teardown = Teardown(client=self.client, clock=clock, sleep=sleep)
        self._registry = LaunchRegistry(settings)
        self.status_reader = RunStatusReader(settings, self.client, self._registry)
        self._launcher = Launcher(self.client, self.teardown, self._registry)

    def launch(self, plan: Plan, *, resume: bool) -> EngineRun:
        """Rent, send the code, start the job, verify the autodown.

        When it fails, by Ctrl-C too, everything rented is returned; when this process is killed, the watchdog does it.
        See :class:`~bafogpt.launch.engines.base.Engine`.
        """
        task_config.check_reachable(self._settings)
        secrets = task_config.secrets(plan)
        task_config.make_private()
        self._check_name_is_free(plan.name, resume)
        self._launcher.launch(plan, secrets)
        if plan.managed:
            return self.status(plan.name)
        # not the cluster's queue: over ssh that takes seconds
        return self.status_reader.run(plan.name, ClusterState(cluster=self.client.cluster(plan.name)))

    def runs(self) -> list[EngineRun]:
        """Our clusters and managed jobs, oldest first."""
        reader = self.status_reader
        found = [
            reader.run(each.name, reader.fetch(each.name, each))
            for each in self.client.clusters(refresh=True)
            if each.ours and not each.managed
        ]
        known = {run.name for run in found}
        for name in self._registry.names():
            if name not in known and self._registry.managed(name):
                job = next(iter(self.client.managed_jobs(name)), None)
                if job is not None:
                    found.append(reader.run(name, ClusterState(job=job, managed=True)))
        return sorted(found, key=lambda run: run.started)

    def status(self, name: str) -> EngineRun:
        """The state of the run's job while it has a machine, that of its record in the bucket afterwards."""
        found = self.status_reader.fetch(name)
        record = self.status_reader.record(name)
        if found.cluster is None and found.job is None:
            if record is None and not self._registry.has(name):
                raise RunNotFoundError(f"no run '{name}' on rented machines", "bafogpt cloud ls")
            return self.status_reader.ended(name, record)
        return self.status_reader.run(name, found, record)

    def queue(self, name: str) -> list[QueuedJob]:
        """The run's job and the commands of ``cloud exec``."""
        jobs = self.client.managed_jobs(name) if self._registry.managed(name) else self.client.queue(name)
        return [QueuedJob(id=job.id, name=job.name, state=job.status, submitted=iso(job.submitted)) for job in jobs]

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The output, from the machine while there is one, then from the bucket; a broken stream is resumed."""
        shown = 0
        while True:
            found = self.status_reader.fetch(name)
            if found.job is None and found.cluster is None:
                yield from self._stored_logs(name)[shown:]
                return
            if found.job is not None:
                with contextlib.suppress(BafoError):  # the machine may terminate while its log is read
                    for number, line in enumerate(self._stream(name, found, follow)):
                        if number >= shown:
                            shown += 1
                            yield line
            if not follow or not self._active(name):
                if not shown:  # SkyPilot may list a machine that has terminated, and a job may print nothing
                    with contextlib.suppress(BafoError):
                        yield from self._stored_logs(name)
                return
            self._sleep(POLL_S)

    def _stream(self, name: str, found: ClusterState, follow: bool) -> Iterator[str]:
        assert found.job is not None
        tail = self.client.tail_managed if found.managed else self.client.tail
        return log_filter.lines(tail(name, found.job.id, follow=follow))

    def _active(self, name: str) -> bool:
        return self.status_reader.run(name, self.status_reader.fetch(name)).active

    def _stored_logs(self, name: str) -> list[str]:
        store = RunStore(Bucket.open(self._settings.bucket, self._settings))
        store.load(name)  # raises RunNotFoundError
        return store.logs(name).splitlines()

    def execute(self, name: str, command: Sequence[str]) -> Iterator[str]:
        """Run a second job on the run's cluster, without a GPU, and yield its output."""
        cluster = self.status_reader.cluster_of(name)
        job = self.client.execute({"name": f"{name}-exec", "run": shlex.join(command)}, cluster)
        yield from log_filter.lines(self.client.tail(cluster, job, follow=True))
        ended = next((each for each in self.client.queue(cluster) if each.id == job), None)
        if ended is not None and ended.status != "SUCCEEDED":
            raise JobFailedError(f"'{shlex.join(command)}' ended as {ended.status}", f"bafogpt cloud queue {name}")

    def shell(self, name: str, command: Sequence[str] = (), node: int = 0) -> list[str]:
        """The ``ssh`` command, after SkyPilot's ssh configuration has been updated."""
        cluster = self._reachable(name)
        nodes = next((each.nodes for each in self.client.clusters([cluster])), 1)
        if not 0 <= node < nodes:
            raise BafoError(f"{name} has no node {node}, only 0 to {nodes - 1}", f"bafogpt cloud ssh {name} --node 0")
        return ssh.shell(cluster, command, node)

    def copy(self, name: str, source: str, target: str, *, upload: bool) -> list[str]:
        """The ``rsync`` command."""
        return ssh.copy(self._reachable(name), source, target, upload=upload)

    def forward(self, name: str, here: int, there: int) -> list[str]:
        """The ``ssh -L`` command."""
        return ssh.forward(self._reachable(name), here, there)

    def cancel(self, name: str) -> EngineRun:
        """SIGTERM to the supervisor on every node, its grace period to save and upload, then SkyPilot's own cancel.

        SkyPilot alone would leave it seconds, and whatever was not in the bucket by then would be lost.
        """
        found = self.status_reader.fetch(name)
        run = self.status_reader.run(name, found) if found.job else self.status(name)
        if not run.active or found.job is None:
            return run
        if run.state == "running" and self._stop_supervisors(name, found):
            deadline = self._clock() + self._grace_s(name) + CANCEL_MARGIN_S
            while self._clock() < deadline and self._active(name):
                self._sleep(POLL_S)
        found = self.status_reader.fetch(name)
        if found.job is not None and found.job.active:
            if found.managed:
                self.client.cancel_managed(name, found.job.id)
            else:
                self.client.cancel(name, [found.job.id])
        ended = self.status(name)
        return ended if ended.state == "succeeded" else replace(ended, state="stopped", exit_code=EXIT_CODES["stopped"])

    def down(self, name: str) -> None:
        """Cancel the run if it is active, then terminate until nothing of it is left."""
        found = self.status_reader.fetch(name)
        if found.cluster is None and found.job is None and not self._registry.has(name):
            raise RunNotFoundError(f"no run '{name}' on rented machines", "bafogpt cloud ls")
        if found.job is not None and found.job.active:
            self.cancel(name)
        if found.managed:
            self._await_managed_end(name)
        else:
            self.teardown.down(name)
        self._registry.remove(name)

    def _await_managed_end(self, name: str) -> None:
        """Wait until the jobs controller has terminated the run's machines. Raises :class:`BafoError` on timeout."""
        deadline = self._clock() + self.teardown.timeout_s
        while any(job.active for job in self.client.managed_jobs(name)):
            if self._clock() > deadline:
                raise BafoError(f"SkyPilot is still ending {name}", f"bafogpt cloud queue {name}; sky jobs queue")
            self._sleep(POLL_S)

    def _check_name_is_free(self, name: str, resume: bool) -> None:
        """Raise :class:`ConflictError` when a launch under this name would meet another run."""
        record = self.status_reader.record(name)
        # a name without a record cannot be a managed job of another account
        found = self.status_reader.fetch(name, elsewhere=record is not None)
        if found.cluster is not None and not found.cluster.ours:
            raise ConflictError(f"the cluster {name} was not created by bafogpt", "--name another")
        if found.cluster is not None and found.job is None and self.client.launching(name):
            raise ConflictError(f"run {name} is being launched already", f"bafogpt cloud status {name}")
        if found.job is not None and found.job.active:
            raise ConflictError(f"run {name} is active already", f"bafogpt cloud logs -f {name}")
        if record is not None and not resume:
            raise ConflictError(f"run {name} exists already ({record.state})", "launch it with --resume")

    def _grace_s(self, name: str) -> float:
        record = self.status_reader.record(name)
        supervisor = (record.job if record else {}).get("supervisor") or {}
        return float(supervisor.get("grace_s", 90.0))

    def _reachable(self, name: str) -> str:
        """The run's cluster, with SkyPilot's ssh configuration for it up to date."""
        cluster = self.status_reader.cluster_of(name)
        self.client.write_ssh_config(cluster)
        return cluster

    def _stop_supervisors(self, name: str, found: ClusterState) -> bool:
        """Send SIGTERM to the run's supervisor on every node; whether one was found."""
        try:
            cluster = self._reachable(name)
        except BafoError:
            return False
        stopped = False
        for node in range(found.cluster.nodes if found.cluster else 1):
            words = ssh.shell(cluster, ssh.stop_command(name), node)
            words[1:1] = ["-o", "ConnectTimeout=20", "-o", "BatchMode=yes"]
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
                stopped = done.returncode == 0 or stopped
        return stopped
