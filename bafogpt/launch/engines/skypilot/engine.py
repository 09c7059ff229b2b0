"""The engine: a run is a SkyPilot cluster of its name that ends itself, or a managed job of its name."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bafogpt.core.errors import BafoError, ConflictError, JobFailedError, RunNotFoundError
from bafogpt.core.settings import Settings
from bafogpt.launch.engines import registry
from bafogpt.launch.engines.base import EngineRun, QueuedJob
from bafogpt.launch.engines.skypilot import log_filter, ssh, task_config
from bafogpt.launch.engines.skypilot.client import Client, iso
from bafogpt.launch.engines.skypilot.launcher import Launcher
from bafogpt.launch.engines.skypilot.status import EXIT_CODES, ClusterState, RunStatusReader
from bafogpt.launch.engines.skypilot.teardown import Guard
from bafogpt.launch.plan import Plan
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket

CANCEL_MARGIN_S = 30.0
"""How much longer than the job's own grace a cancelled run may take, for the last upload's sake."""
POLL_S = 2.0


class SkyPilotEngine:
    """Runs tasks on rented machines. ``client``, ``clock`` and ``sleep`` are a test's to replace."""

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
        self.guard = Guard(client=self.client, clock=clock, sleep=sleep)
        self._notes = registry.LaunchRegistry(settings)
        self.sight = RunStatusReader(settings, self.client, self._notes)
        self._launcher = Launcher(self.client, self.guard, self._notes)

    def launch(self, plan: Plan, *, resume: bool) -> EngineRun:
        """Rent, send the code, start the job; with an end that was asked for, seen, or made.

        Whatever breaks this off, Ctrl-C included, gives back what was rented; and if this process is killed, its
        watchman does. See :class:`~bafogpt.launch.engines.base.Engine`.
        """
        task_config.check_reachable(self._settings)
        secrets = task_config.secrets(plan)
        task_config.keep_private()
        self._refuse_taken(plan.name, resume)
        self._launcher.launch(plan, secrets)
        return self._launched(plan)

    def _launched(self, plan: Plan) -> EngineRun:
        """The run that has just been launched. Its cluster's queue is not asked: over ssh that takes seconds."""
        if plan.managed:
            return self.status(plan.name)
        return self.sight.run(plan.name, ClusterState(cluster=self.client.cluster(plan.name)))

    def runs(self) -> list[EngineRun]:
        """Our clusters and managed jobs, oldest first."""
        found = [
            self.sight.run(each.name, self.sight.look(each.name, each))
            for each in self.client.clusters(refresh=True)
            if each.ours and not each.managed
        ]
        known = {run.name for run in found}
        for name in self._notes.names():
            if name not in known and self._notes.managed(name):
                job = next(iter(self.client.managed_jobs(name)), None)
                if job is not None:
                    found.append(self.sight.run(name, ClusterState(job=job, managed=True)))
        return sorted(found, key=lambda run: run.started)

    def status(self, name: str) -> EngineRun:
        """How the run is: by its job while there is a machine, by its record in the bucket afterwards."""
        seen = self.sight.look(name)
        record = self.sight.record(name)
        if seen.cluster is None and seen.job is None:
            if record is None and not self._notes.holds(name):
                raise RunNotFoundError(f"no run '{name}' on rented machines", "bafogpt cloud ls")
            return self.sight.ended(name, record)
        return self.sight.run(name, seen, record)

    def queue(self, name: str) -> list[QueuedJob]:
        """The run's job and what ``cloud exec`` has added."""
        jobs = self.client.managed_jobs(name) if self._notes.managed(name) else self.client.queue(name)
        return [QueuedJob(id=job.id, name=job.name, state=job.status, submitted=iso(job.submitted)) for job in jobs]

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """From the machine while there is one, from the bucket afterwards; a broken stream is taken up again."""
        shown = 0
        while True:
            seen = self.sight.look(name)
            if seen.job is None:
                if seen.cluster is None:
                    yield from self._stored_logs(name)[shown:]
                    return
            else:
                with contextlib.suppress(BafoError):  # the machine may end while its log is read
                    for number, line in enumerate(self._stream(name, seen, follow)):
                        if number >= shown:
                            shown += 1
                            yield line
            if not follow or not self.sight.run(name, self.sight.look(name)).active:
                if not shown:  # SkyPilot takes a machine for up that has ended itself, or its job had no output
                    with contextlib.suppress(BafoError):
                        yield from self._stored_logs(name)
                return
            self._sleep(POLL_S)

    def _stream(self, name: str, seen: ClusterState, follow: bool) -> Iterator[str]:
        assert seen.job is not None
        if seen.managed:
            return log_filter.lines(self.client.tail_managed(name, seen.job.id, follow=follow))
        return log_filter.lines(self.client.tail(name, seen.job.id, follow=follow))

    def _stored_logs(self, name: str) -> list[str]:
        store = RunStore(Bucket.open(self._settings.bucket, self._settings))
        store.load(name)  # raises for a run that nobody knows
        return store.logs(name).splitlines()

    def execute(self, name: str, command: Sequence[str]) -> Iterator[str]:
        """A second job on the run's cluster, beside the run's own: it asks for no GPU."""
        import shlex

        cluster = self.sight.cluster_of(name)
        job = self.client.execute({"name": f"{name}-exec", "run": shlex.join(command)}, cluster)
        yield from log_filter.lines(self.client.tail(cluster, job, follow=True))
        ended = next((each for each in self.client.queue(cluster) if each.id == job), None)
        if ended is not None and ended.status != "SUCCEEDED":
            raise JobFailedError(f"'{shlex.join(command)}' ended as {ended.status}", f"bafogpt cloud queue {name}")

    def shell(self, name: str, command: Sequence[str] = (), node: int = 0) -> list[str]:
        """``ssh``, with SkyPilot's configuration brought up to date."""
        cluster = self._reachable(name)
        nodes = next((each.nodes for each in self.client.clusters([cluster])), 1)
        if not 0 <= node < nodes:
            raise BafoError(
                f"{name} has {nodes} node(s); there is no node {node}", f"bafogpt cloud ssh {name} --node 0"
            )
        return ssh.shell(cluster, command, node)

    def copy(self, name: str, source: str, target: str, *, upload: bool) -> list[str]:
        """``rsync`` over that."""
        return ssh.copy(self._reachable(name), source, target, upload=upload)

    def forward(self, name: str, here: int, there: int) -> list[str]:
        """``ssh -L`` over that."""
        return ssh.forward(self._reachable(name), here, there)

    def cancel(self, name: str) -> EngineRun:
        """SIGTERM to the supervisor on every node, its grace to save and drain, then SkyPilot's own cancel.

        SkyPilot alone would leave it seconds: what was not in the bucket by then would be lost.
        """
        seen = self.sight.look(name)
        run = self.sight.run(name, seen) if seen.job else self.status(name)
        if not run.active or seen.job is None:
            return run
        if run.state == "running" and self._ask_to_stop(name, seen):
            deadline = self._clock() + self._grace_s(name) + CANCEL_MARGIN_S
            while self._clock() < deadline and self.sight.run(name, self.sight.look(name)).active:
                self._sleep(POLL_S)
        seen = self.sight.look(name)
        if seen.job is not None and seen.job.active:
            if seen.managed:
                self.client.cancel_managed(name, seen.job.id)
            else:
                self.client.cancel(name, [seen.job.id])
        ended = self.status(name)
        return ended if ended.state == "succeeded" else replace(ended, state="stopped", exit_code=EXIT_CODES["stopped"])

    def down(self, name: str) -> None:
        """Cancel what runs, then terminate until nothing of it is left."""
        seen = self.sight.look(name)
        if seen.cluster is None and seen.job is None and not self._notes.holds(name):
            raise RunNotFoundError(f"no run '{name}' on rented machines", "bafogpt cloud ls")
        if seen.job is not None and seen.job.active:
            self.cancel(name)
        if seen.managed:
            self._await_managed_end(name)
        else:
            self.guard.down(name)
        self._notes.remove(name)

    def _await_managed_end(self, name: str) -> None:
        """Until the jobs controller has given back what the run had. Raises :class:`BafoError` when it does not."""
        deadline = self._clock() + self.guard.storage_timeout_s
        while any(job.active for job in self.client.managed_jobs(name)):
            if self._clock() > deadline:
                raise BafoError(f"SkyPilot is still ending {name}", f"bafogpt cloud queue {name}; sky jobs queue")
            self._sleep(POLL_S)

    def _refuse_taken(self, name: str, resume: bool) -> None:
        """Raise :class:`ConflictError` when a launch under this name would meet another run."""
        record = self.sight.record(name)
        # a name that is new everywhere is nobody's managed job
        seen = self.sight.look(name, elsewhere=record is not None)
        if seen.cluster is not None and not seen.cluster.ours:
            raise ConflictError(f"there is a cluster {name} that is not ours", "--name another")
        if seen.cluster is not None and seen.job is None and self.client.launching(name):
            raise ConflictError(f"run {name} is being launched already", f"bafogpt cloud status {name}")
        if seen.job is not None and seen.job.active:
            raise ConflictError(f"run {name} is at work already", f"bafogpt cloud logs -f {name}")
        if record is not None and not resume:
            raise ConflictError(f"there is a run {name} already ({record.state})", "launch it with --resume")

    def _grace_s(self, name: str) -> float:
        record = self.sight.record(name)
        supervisor = (record.job if record else {}).get("supervisor") or {}
        return float(supervisor.get("grace_s", 90.0))

    def _reachable(self, name: str) -> str:
        cluster = self.sight.cluster_of(name)
        self.client.write_ssh_config(cluster)
        return cluster

    def _ask_to_stop(self, name: str, seen: ClusterState) -> bool:
        """Whether a supervisor of the run was found and told."""
        try:
            cluster = self._reachable(name)
            nodes = seen.cluster.nodes if seen.cluster else 1
        except BafoError:
            return False
        told = False
        for node in range(nodes):
            words = ssh.shell(cluster, ssh.ask_to_stop(name), node)
            words[1:1] = ["-o", "ConnectTimeout=20", "-o", "BatchMode=yes"]
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
                told = done.returncode == 0 or told
        return told
