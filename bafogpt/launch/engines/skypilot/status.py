"""What there is to see of a run: its cluster and its job at SkyPilot, its record in the bucket, and both as one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from bafogpt.core.errors import BafoError, ConflictError, ExitCode, RunNotFoundError
from bafogpt.core.settings import Settings
from bafogpt.launch.engines.base import EngineRun, EngineState
from bafogpt.launch.engines.registry import LaunchRegistry
from bafogpt.launch.engines.skypilot.client import Client, Cluster, Job, iso
from bafogpt.runs.store import RunRecord, RunStore
from bafogpt.storage.bucket import Bucket

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
class ClusterState:
    """What SkyPilot knows about a run: its cluster, and its job there or with the jobs controller."""

    cluster: Cluster | None = None
    job: Job | None = None
    managed: bool = False


@dataclass(frozen=True)
class RunStatusReader:
    """Looks at runs, and changes nothing."""

    settings: Settings
    client: Client
    notes: LaunchRegistry

    def look(self, name: str, cluster: Cluster | None = None, *, elsewhere: bool = True) -> ClusterState:
        """What SkyPilot knows about the run; ``elsewhere``: it may be a managed job that this account did not note."""
        if self.notes.managed(name):
            return ClusterState(job=next(iter(self.client.managed_jobs(name)), None), managed=True)
        cluster, job = cluster or self.client.cluster(name), None
        if cluster is not None and cluster.status == "UP":
            try:
                job = next((each for each in self.client.queue(name) if each.name == name), None)
            except BafoError:  # it may have ended itself since SkyPilot looked last: only then are the clouds asked
                cluster = self.client.cluster(name, refresh=True)
        if cluster is None and elsewhere and not self.notes.holds(name):
            managed = next(iter(self.client.managed_jobs(name)), None)
            return ClusterState(job=managed, managed=managed is not None)
        return ClusterState(cluster=cluster, job=job)

    def run(self, name: str, seen: ClusterState, record: RunRecord | None = None) -> EngineRun:
        """What was seen, as a run. ``record`` tells one that was stopped, and has saved, from one that failed."""
        cluster, job = seen.cluster, seen.job
        if job is not None:
            state = _STATES.get(job.status, "starting" if job.active else "failed")
        elif cluster is not None and cluster.status in ("INIT", "UP"):
            state = "starting"
            record = record or self.record(name)
            if record is not None and record.state != "running" and record.updated > iso(cluster.launched):
                state = record.state  # not a machine that comes up, but one that is on its way out
        else:
            return self.ended(name, record)
        if state in ("failed", "stopped") and record is not None and record.state != "running":
            state = record.state  # to SkyPilot both are jobs that failed
        return EngineRun(
            name=name,
            infra=(cluster.infra if cluster else job.infra if job else "") or self.notes.infra(name),
            state=state,
            started=iso(job.submitted if job else cluster.launched if cluster else 0),
            exit_code=_exit_code(state, record),
            place=cluster.place if cluster else None,
            price_per_hour=cluster.price_per_hour if cluster else None,
            autodown_minutes=cluster.autodown_minutes if cluster else None,
            managed=seen.managed,
        )

    def ended(self, name: str, record: RunRecord | None) -> EngineRun:
        """A run without a machine: as its record says; one that says "running" is gone."""
        state: EngineState = "gone" if record is None or record.state == "running" else record.state
        infra = record.infra if record else self.notes.infra(name)
        started = record.created if record else ""
        return EngineRun(name=name, infra=infra, state=state, started=started, exit_code=_exit_code(state, record))

    def record(self, name: str) -> RunRecord | None:
        """The run's record; None too when the bucket cannot be asked, for the machine is then all there is to see."""
        with contextlib.suppress(BafoError):
            return RunStore(Bucket.open(self.settings.bucket, self.settings)).find(name)
        return None

    def cluster_of(self, name: str) -> str:
        """The cluster on which the run is now. Raises :class:`RunNotFoundError`, :class:`ConflictError`."""
        seen = self.look(name)
        if seen.cluster is not None:
            if seen.cluster.status != "UP":
                raise ConflictError(f"{name} is not up yet ({seen.cluster.status})", f"bafogpt cloud status {name}")
            return name
        if seen.job is not None and seen.job.active and seen.job.cluster:
            return seen.job.cluster
        if not self.notes.holds(name) and self.record(name) is None:
            raise RunNotFoundError(f"no run '{name}' on rented machines", "bafogpt cloud ls")
        raise RunNotFoundError(f"there is no machine of run '{name}' any more", f"bafogpt cloud logs {name}")


def _exit_code(state: EngineState, record: RunRecord | None) -> int | None:
    """SkyPilot gives no exit code; the record tells an unfit machine from a job that failed."""
    if state == "failed" and record is not None and record.wants_another_machine:
        return int(ExitCode.MACHINE_UNFIT)
    return EXIT_CODES.get(state)
