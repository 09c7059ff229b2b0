"""A run's state: its cluster and job at SkyPilot, combined with its record in the bucket."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from bafogpt.core.errors import BafoError, ConflictError, ExitCode, RunNotFoundError
from bafogpt.core.settings import Settings
from bafogpt.launch.engines.base import EngineRun, EngineState
from bafogpt.launch.engines.registry import LaunchRegistry
from bafogpt.launch.engines.skypilot.client import Client, Cluster, ClusterJob, iso
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
    """SkyPilot's part of a run's state: its cluster, and its job there or at the jobs controller."""

    cluster: Cluster | None = None
    job: ClusterJob | None = None
    managed: bool = False


@dataclass(frozen=True)
class RunStatusReader:
    """Reads the state of runs and changes nothing."""

    settings: Settings
    client: Client
    registry: LaunchRegistry

    def fetch(self, name: str, cluster: Cluster | None = None, *, elsewhere: bool = True) -> ClusterState:
        """SkyPilot's part. ``elsewhere``: also search for a managed job that was launched from another account."""
        if self.registry.managed(name):
            return ClusterState(job=next(iter(self.client.managed_jobs(name)), None), managed=True)
        cluster, job = cluster or self.client.cluster(name), None
        if cluster is not None and cluster.status == "UP":
            try:
                job = next((each for each in self.client.queue(name) if each.name == name), None)
            except BafoError:  # it may have terminated itself since SkyPilot's last refresh: ask the cloud
                cluster = self.client.cluster(name, refresh=True)
        if cluster is None and elsewhere and not self.registry.has(name):
            managed = next(iter(self.client.managed_jobs(name)), None)
            return ClusterState(job=managed, managed=managed is not None)
        return ClusterState(cluster=cluster, job=job)

    def run(self, name: str, found: ClusterState, record: RunRecord | None = None) -> EngineRun:
        """The run's state from both parts; the record of one that is not listed as running is read where it decides."""
        cluster, job = found.cluster, found.job
        if job is None and cluster is not None and cluster.status in ("INIT", "UP"):
            record = record or self.record(name)
        state = _state(found, record)
        if state is None:
            return self.ended(name, record)
        return EngineRun(
            name=name,
            infra=(cluster.infra if cluster else job.infra if job else "") or self.registry.infra(name),
            state=state,
            started=iso(job.submitted if job else cluster.launched if cluster else 0),
            exit_code=_exit_code(state, record),
            location=cluster.location if cluster else None,
            price_per_hour=cluster.price_per_hour if cluster else None,
            autodown_minutes=cluster.autodown_minutes if cluster else None,
            managed=found.managed,
        )

    def ended(self, name: str, record: RunRecord | None) -> EngineRun:
        """A run without a machine: its recorded state; ``gone`` where that is still ``running``."""
        state: EngineState = "gone" if record is None or record.state == "running" else record.state
        infra = record.infra if record else self.registry.infra(name)
        started = record.created if record else ""
        return EngineRun(name=name, infra=infra, state=state, started=started, exit_code=_exit_code(state, record))

    def record(self, name: str) -> RunRecord | None:
        """The run's record; None also when the bucket cannot be reached."""
        with contextlib.suppress(BafoError):
            return RunStore(Bucket.open(self.settings.bucket, self.settings)).find(name)
        return None

    def cluster_of(self, name: str) -> str:
        """The run's current cluster. Raises :class:`RunNotFoundError` and :class:`ConflictError`."""
        found = self.fetch(name)
        if found.cluster is not None:
            if found.cluster.status != "UP":
                raise ConflictError(f"{name} is not up yet ({found.cluster.status})", f"bafogpt cloud status {name}")
            return name
        if found.job is not None and found.job.active and found.job.cluster:
            return found.job.cluster
        if not self.registry.has(name) and self.record(name) is None:
            raise RunNotFoundError(f"no run '{name}' on rented machines", "bafogpt cloud ls")
        raise RunNotFoundError(f"run '{name}' has no machine any more", f"bafogpt cloud logs {name}")


def _state(found: ClusterState, record: RunRecord | None) -> EngineState | None:
    """The state of a run with a job or a cluster that is up or coming up; None for any other.

    To SkyPilot a stopped run and a failed one are both failed jobs; the record has the difference.
    """
    cluster, job = found.cluster, found.job
    recorded = record.state if record is not None and record.state != "running" else None
    if job is not None:
        state = _STATES.get(job.status, "starting" if job.active else "failed")
        return recorded if recorded and state in ("failed", "stopped") else state
    if cluster is None or cluster.status not in ("INIT", "UP"):
        return None
    if record is not None and recorded and record.updated > iso(cluster.launched):
        return recorded  # SkyPilot 0.14.1 lists a cluster as INIT while it terminates
    return "starting"


def _exit_code(state: EngineState, record: RunRecord | None) -> int | None:
    """SkyPilot has no exit codes; the record distinguishes an unfit machine from a failed job."""
    if state == "failed" and record is not None and record.wants_another_machine:
        return int(ExitCode.MACHINE_UNFIT)
    return EXIT_CODES.get(state)
