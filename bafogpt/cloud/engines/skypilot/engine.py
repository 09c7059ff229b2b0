"""The engine: a run is a SkyPilot cluster of its name that ends itself, or a managed job of its name."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bafogpt.cloud import workdir
from bafogpt.cloud.engines import notes
from bafogpt.cloud.engines.base import EngineRun, EngineState, QueuedJob
from bafogpt.cloud.engines.skypilot import lines, reach, tasks, watchman
from bafogpt.cloud.engines.skypilot.client import Client, Cluster, Job, iso
from bafogpt.cloud.engines.skypilot.failures import CapacityError, MachineError
from bafogpt.cloud.engines.skypilot.guard import Guard
from bafogpt.cloud.plan import Plan
from bafogpt.cloud.runs import RunRecord, RunStore
from bafogpt.core.errors import BafoError, ConflictError, JobFailedError, RunNotFoundError
from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket

CANCEL_MARGIN_S = 30.0
"""How much longer than the job's own grace a cancelled run may take, for the last upload's sake."""
POLL_S = 2.0
RENTALS = 2
"""How often a machine is rented if SkyPilot cannot make it ready. The end of the last cluster of its name may have
left its folder on a Slurm node half removed: 0.14.1 ends the removal with the job. The next end removes it."""
_STATES: dict[str, EngineState] = {
    "RUNNING": "running",
    "RECOVERING": "running",
    "CANCELLING": "running",
    "WINDING_DOWN": "running",
    "SUCCEEDED": "succeeded",
    "CANCELLED": "stopped",
}
EXIT_CODES: dict[EngineState, int] = {"succeeded": 0, "failed": 100, "stopped": 103}


@dataclass(frozen=True)
class _Seen:
    """What SkyPilot knows about a run: its cluster, and its job there or with the jobs controller."""

    cluster: Cluster | None = None
    job: Job | None = None
    managed: bool = False


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
        self._notes = notes.Notes(settings)

    def launch(self, plan: Plan, *, resume: bool) -> EngineRun:
        """Rent, send the code, start the job; with an end that was asked for, seen, or made.

        Whatever breaks this off, Ctrl-C included, gives back what was rented; and if this process is killed, its
        watchman does. See :class:`~bafogpt.cloud.engines.base.Engine`.
        """
        tasks.check_reachable(self._settings)
        secrets = tasks.secrets(plan)
        tasks.keep_private()
        self._refuse_taken(plan.name, resume)
        idle = tasks.idle_minutes(plan.task)
        self._notes.write(plan.name, infra=plan.infra, managed=plan.managed)
        task = tasks.rented(plan, workdir.export(plan.root, self._notes.code(plan.name)))
        if plan.managed:
            self._launch_managed(task, secrets, plan.name)
        else:
            with watchman.watching(plan.name, idle, self._notes.log(plan.name)) as release:
                self._launch_cluster(task, secrets, plan, idle, release)
            self._notes.drop_code(plan.name)
        return self._launched(plan)

    def _launched(self, plan: Plan) -> EngineRun:
        """The run that has just been launched. Its cluster's queue is not asked: over ssh that takes seconds."""
        if plan.managed:
            return self.status(plan.name)
        return self._seen_as_run(plan.name, _Seen(cluster=self.client.cluster(plan.name)))

    def _launch_managed(self, task: dict[str, object], secrets: list[tuple[str, str]], name: str) -> None:
        try:
            self.client.wait(self.client.launch_managed(task, secrets, name), name)
        except BafoError:
            if not self.client.managed_jobs(name):
                self._notes.remove(name)
            raise

    def _launch_cluster(
        self,
        task: dict[str, object],
        secrets: list[tuple[str, str]],
        plan: Plan,
        idle: int,
        release: Callable[[], None],
    ) -> None:
        for left in reversed(range(RENTALS)):
            request = None
            try:
                request = self.client.launch(task, secrets, plan.name, idle, plan.retry_until_up)
                self.client.wait(request, plan.name)
                self.guard.secure(plan.name, idle)
                break
            except BaseException as error:
                if request is not None:
                    self._give_back(request, error, plan.name, idle)
                if left and isinstance(error, MachineError):
                    print(f"{error.message}; once more", file=sys.stderr)
                    continue
                release()
                self._notes.remove(plan.name)
                if isinstance(error, CapacityError):
                    raise self._with_offers(error, plan) from error
                raise
        release()

    def _give_back(self, request: str, error: BaseException, name: str, idle: int) -> None:
        """What a launch that broke off has rented."""
        print(f"the launch of {name} broke off; whatever it has rented is given back", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(BafoError):
                self.client.abandon(request)
        self.guard.settle(name, idle)

    def _with_offers(self, error: CapacityError, plan: Plan) -> CapacityError:
        """The error with what is offered under a name like the one that was asked for."""
        from bafogpt.cloud import task as task_files

        asked = task_files.accelerators(plan.task)
        if asked is None or not error.message.startswith("nobody offers"):
            return error
        with contextlib.suppress(BafoError):
            offers = self.client.offers(plan.infra)
            like = [offer for offer in offers if offer.startswith(asked[0][:2])] or offers
            if like:
                nearest = min(like, key=lambda offer: abs(float(offer.partition(":")[2]) - asked[1]))
                shown = ", ".join(like[:8])
                return CapacityError(f"{plan.infra} has no {asked[0]}:{asked[1]}; it has {shown}", f"--gpus {nearest}")
        return error

    def runs(self) -> list[EngineRun]:
        """Our clusters and managed jobs, oldest first."""
        found = [
            self._seen_as_run(each.name, self._look(each.name, each))
            for each in self.client.clusters(refresh=True)
            if each.ours and not each.managed
        ]
        known = {run.name for run in found}
        for name in self._notes.names():
            if name not in known and self._notes.managed(name):
                job = next(iter(self.client.managed_jobs(name)), None)
                if job is not None:
                    found.append(self._seen_as_run(name, _Seen(job=job, managed=True)))
        return sorted(found, key=lambda run: run.started)

    def status(self, name: str) -> EngineRun:
        """How the run is: by its job while there is a machine, by its record in the bucket afterwards."""
        seen = self._look(name)
        record = self.record(name)
        if seen.cluster is None and seen.job is None:
            if record is None and not self._notes.holds(name):
                raise RunNotFoundError(f"no run '{name}' on rented machines", "bafogpt cloud ls")
            return self._ended(name, record)
        return self._seen_as_run(name, seen, record)

    def queue(self, name: str) -> list[QueuedJob]:
        """The run's job and what ``cloud exec`` has added."""
        jobs = self.client.managed_jobs(name) if self._notes.managed(name) else self.client.queue(name)
        return [QueuedJob(id=job.id, name=job.name, state=job.status, submitted=iso(job.submitted)) for job in jobs]

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """From the machine while there is one, from the bucket afterwards; a broken stream is taken up again."""
        shown = 0
        while True:
            seen = self._look(name)
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
            if not follow or not self._seen_as_run(name, self._look(name)).active:
                if not shown:  # SkyPilot takes a machine for up that has ended itself, or its job had no output
                    with contextlib.suppress(BafoError):
                        yield from self._stored_logs(name)
                return
            self._sleep(POLL_S)

    def _stream(self, name: str, seen: _Seen, follow: bool) -> Iterator[str]:
        assert seen.job is not None
        if seen.managed:
            return lines.lines(self.client.tail_managed(name, seen.job.id, follow=follow))
        return lines.lines(self.client.tail(name, seen.job.id, follow=follow))

    def _stored_logs(self, name: str) -> list[str]:
        store = RunStore(Bucket.open(self._settings.bucket, self._settings))
        store.load(name)  # raises for a run that nobody knows
        return store.logs(name).splitlines()

    def execute(self, name: str, command: Sequence[str]) -> Iterator[str]:
        """A second job on the run's cluster, beside the run's own: it asks for no GPU."""
        import shlex

        cluster = self._cluster_of(name)
        job = self.client.execute({"name": f"{name}-exec", "run": shlex.join(command)}, cluster)
        yield from lines.lines(self.client.tail(cluster, job, follow=True))
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
        return reach.shell(cluster, command, node)

    def copy(self, name: str, source: str, target: str, *, upload: bool) -> list[str]:
        """``rsync`` over that."""
        return reach.copy(self._reachable(name), source, target, upload=upload)

    def forward(self, name: str, here: int, there: int) -> list[str]:
        """``ssh -L`` over that."""
        return reach.forward(self._reachable(name), here, there)

    def cancel(self, name: str) -> EngineRun:
        """SIGTERM to the supervisor on every node, its grace to save and drain, then SkyPilot's own cancel.

        SkyPilot alone would leave it seconds: what was not in the bucket by then would be lost.
        """
        seen = self._look(name)
        run = self._seen_as_run(name, seen) if seen.job else self.status(name)
        if not run.active or seen.job is None:
            return run
        if run.state == "running" and self._ask_to_stop(name, seen):
            deadline = self._clock() + self._grace_s(name) + CANCEL_MARGIN_S
            while self._clock() < deadline and self._seen_as_run(name, self._look(name)).active:
                self._sleep(POLL_S)
        seen = self._look(name)
        if seen.job is not None and seen.job.active:
            if seen.managed:
                self.client.cancel_managed(name, seen.job.id)
            else:
                self.client.cancel(name, [seen.job.id])
        ended = self.status(name)
        return ended if ended.state == "succeeded" else replace(ended, state="stopped", exit_code=EXIT_CODES["stopped"])

    def down(self, name: str) -> None:
        """Cancel what runs, then terminate until nothing of it is left."""
        seen = self._look(name)
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
        deadline = self._clock() + self.guard.patience_s
        while any(job.active for job in self.client.managed_jobs(name)):
            if self._clock() > deadline:
                raise BafoError(f"SkyPilot is still ending {name}", f"bafogpt cloud queue {name}; sky jobs queue")
            self._sleep(POLL_S)

    def _refuse_taken(self, name: str, resume: bool) -> None:
        """Raise :class:`ConflictError` when a launch under this name would meet another run."""
        record = self.record(name)
        seen = self._look(name, elsewhere=record is not None)  # a name that is new everywhere is nobody's managed job
        if seen.cluster is not None and not seen.cluster.ours:
            raise ConflictError(f"there is a cluster {name} that is not ours", "--name another")
        if seen.cluster is not None and seen.job is None and self.client.launching(name):
            raise ConflictError(f"run {name} is being launched already", f"bafogpt cloud status {name}")
        if seen.job is not None and seen.job.active:
            raise ConflictError(f"run {name} is at work already", f"bafogpt cloud logs -f {name}")
        if record is not None and not resume:
            raise ConflictError(f"there is a run {name} already ({record.state})", "launch it with --resume")

    def _look(self, name: str, cluster: Cluster | None = None, *, elsewhere: bool = True) -> _Seen:
        """What SkyPilot knows about the run; ``elsewhere``: it may be a managed job that this account did not note."""
        if self._notes.managed(name):
            return _Seen(job=next(iter(self.client.managed_jobs(name)), None), managed=True)
        cluster, job = cluster or self.client.cluster(name), None
        if cluster is not None and cluster.status == "UP":
            try:
                job = next((each for each in self.client.queue(name) if each.name == name), None)
            except BafoError:  # it may have ended itself since SkyPilot looked last: only then are the clouds asked
                cluster = self.client.cluster(name, refresh=True)
        if cluster is None and elsewhere and not self._notes.holds(name):
            managed = next(iter(self.client.managed_jobs(name)), None)
            return _Seen(job=managed, managed=managed is not None)
        return _Seen(cluster=cluster, job=job)

    def _seen_as_run(self, name: str, seen: _Seen, record: RunRecord | None = None) -> EngineRun:
        cluster, job = seen.cluster, seen.job
        if job is not None:
            state = _STATES.get(job.status, "starting" if job.active else "failed")
        elif cluster is not None and cluster.status in ("INIT", "UP"):
            state = "starting"
            record = record or self.record(name)
            if record is not None and record.state != "running" and record.updated > iso(cluster.launched):
                state = record.state  # not a machine that comes up, but one that is on its way out
        else:
            return self._ended(name, record)
        if state in ("failed", "stopped") and record is not None and record.state != "running":
            state = record.state  # a run that was stopped has saved; to SkyPilot it is a job that failed
        return EngineRun(
            name=name,
            infra=(cluster.infra if cluster else job.infra if job else "") or self._notes.infra(name),
            state=state,
            started=iso(job.submitted if job else cluster.launched if cluster else 0),
            exit_code=EXIT_CODES.get(state),
            place=cluster.place if cluster else None,
            price_per_hour=cluster.price_per_hour if cluster else None,
            autodown_minutes=cluster.autodown_minutes if cluster else None,
            managed=seen.managed,
        )

    def _ended(self, name: str, record: RunRecord | None) -> EngineRun:
        """A run without a machine: as its record says; one that says "running" is gone."""
        state: EngineState = "gone" if record is None or record.state == "running" else record.state
        infra = record.infra if record else self._notes.infra(name)
        started = record.created if record else ""
        return EngineRun(name=name, infra=infra, state=state, started=started, exit_code=EXIT_CODES.get(state))

    def record(self, name: str) -> RunRecord | None:
        """The run's record; None too when the bucket cannot be asked, for the machine is then all there is to see."""
        with contextlib.suppress(BafoError):
            return RunStore(Bucket.open(self._settings.bucket, self._settings)).find(name)
        return None

    def _grace_s(self, name: str) -> float:
        record = self.record(name)
        supervisor = (record.job if record else {}).get("supervisor") or {}
        return float(supervisor.get("grace_s", 90.0))

    def _cluster_of(self, name: str) -> str:
        """The cluster on which the run is now. Raises :class:`RunNotFoundError`, :class:`ConflictError`."""
        seen = self._look(name)
        if seen.cluster is not None:
            if seen.cluster.status != "UP":
                raise ConflictError(f"{name} is not up yet ({seen.cluster.status})", f"bafogpt cloud status {name}")
            return name
        if seen.job is not None and seen.job.active and seen.job.cluster:
            return seen.job.cluster
        if not self._notes.holds(name) and self.record(name) is None:
            raise RunNotFoundError(f"no run '{name}' on rented machines", "bafogpt cloud ls")
        raise RunNotFoundError(f"there is no machine of run '{name}' any more", f"bafogpt cloud logs {name}")

    def _reachable(self, name: str) -> str:
        cluster = self._cluster_of(name)
        self.client.write_ssh_config(cluster)
        return cluster

    def _ask_to_stop(self, name: str, seen: _Seen) -> bool:
        """Whether a supervisor of the run was found and told."""
        try:
            cluster = self._reachable(name)
            nodes = seen.cluster.nodes if seen.cluster else 1
        except BafoError:
            return False
        told = False
        for node in range(nodes):
            words = reach.shell(cluster, reach.ask_to_stop(name), node)
            words[1:1] = ["-o", "ConnectTimeout=20", "-o", "BatchMode=yes"]
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
                told = done.returncode == 0 or told
        return told
