"""SkyPilot's SDK as this project uses it: typed records, our errors, nothing on stdout.

The only module that imports ``sky``, and only inside functions: the import takes seconds. Tests pass their own modules
in place of ``sky.client.sdk`` and ``sky.jobs.client.sdk``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from bafogpt.core.errors import BafoError, ConflictError, RunNotFoundError
from bafogpt.launch.engines.skypilot import errors, log_filter

T = TypeVar("T")

LABEL = "bafogpt-run"
"""Marks a cluster as ours; its value is the run's name."""

_OURS = re.compile(r"bafogpt job run\b")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that SkyPilot lists."""

    name: str
    status: str
    """``INIT``, ``UP``, ``STOPPED``, ``AUTOSTOPPING`` …"""
    launched: float
    """Seconds since the epoch."""
    autodown_minutes: int | None
    """Idle minutes until it terminates itself; None when it never would, or would only stop."""
    infra: str = ""
    location: str = ""
    nodes: int = 1
    price_per_hour: float | None = None
    ours: bool = False
    managed: bool = False
    """Whether it belongs to SkyPilot's jobs controller."""


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """A job in a cluster's queue, or a managed job."""

    id: int
    name: str
    status: str
    submitted: float
    ended: float | None = None
    cluster: str | None = None
    """The current cluster of a managed job."""
    infra: str = ""
    reason: str = ""

    @property
    def active(self) -> bool:
        return self.status not in ("SUCCEEDED", "CANCELLED") and not self.status.startswith("FAILED")


@dataclass
class Client:
    """The calls; each raises :class:`BafoError`."""

    sdk: Any = None
    jobs_sdk: Any = None
    make_task: Callable[[dict[str, Any], list[tuple[str, str]]], Any] | None = None
    output: Any = None
    """Where SkyPilot's output of a launch goes; stderr unless set."""
    _loaded: bool = field(default=False, init=False)

    def launch(
        self, config: dict[str, Any], secrets: list[tuple[str, str]], name: str, idle_minutes: int, retry: bool
    ) -> str:
        """Request a cluster with autodown and the task on it. Returns the request's id at once."""
        with self._calling(name):
            task = self._task(config, secrets)
            request = self.sdk.launch(
                task, cluster_name=name, idle_minutes_to_autostop=idle_minutes, down=True, retry_until_up=retry
            )
        return str(request)

    def launch_managed(self, config: dict[str, Any], secrets: list[tuple[str, str]], name: str) -> str:
        """Request the task as a managed job: SkyPilot's controller rents, recovers and terminates. Returns the id."""
        with self._calling(name):
            return str(self.jobs_sdk.launch(self._task(config, secrets), name=name))

    def wait(self, request: str, name: str) -> Any:
        """Wait for a request's result and show its progress."""
        log = log_filter.LogFilter(self.output or sys.stderr)
        with self._calling(name, log.refusals):
            return self.sdk.stream_and_get(request, output_stream=log)

    def abandon(self, request: str) -> None:
        """Cancel a request that has not been served."""
        self._get("", lambda: self.sdk.api_cancel(request_ids=[request], silent=True))

    def launching(self, name: str) -> bool:
        """Whether the API server has an unfinished launch of the cluster."""
        with self._calling(name):
            requests = self.sdk.api_status()  # of every cluster: 0.14.1 ignores a name in a session's first request
        return any(
            each.cluster_name == name and "launch" in str(each.name) and each.finished_at is None for each in requests
        )

    def clusters(self, names: list[str] | None = None, *, refresh: bool = False) -> list[Cluster]:
        """All clusters; ``refresh`` queries the clouds about those that may have terminated themselves."""
        with self._calling(""):
            mode = self._refresh_mode("AUTO" if refresh else "NONE")
            try:
                records = self.sdk.get(self.sdk.status(names, refresh=mode))
            except KeyError:  # one exited pod breaks the refresh of all clusters (SkyPilot 0.14.1)
                records = self.sdk.get(self.sdk.status(names, refresh=self._refresh_mode("NONE")))
        return [_cluster(record) for record in records]

    def cluster(self, name: str, *, refresh: bool = False) -> Cluster | None:
        """One cluster, or None."""
        return next((each for each in self.clusters([name], refresh=refresh) if each.name == name), None)

    def autodown(self, name: str, idle_minutes: int) -> None:
        """Set the cluster to terminate after ``idle_minutes`` without a job."""
        self._get(name, lambda: self.sdk.autostop(name, idle_minutes, down=True))

    def queue(self, name: str) -> list[ClusterJob]:
        """The jobs of a cluster, newest first."""
        records = self._get(name, lambda: self.sdk.queue(name, all_users=True))
        jobs = [
            ClusterJob(
                id=each.job_id,
                name=each.job_name,
                status=each.status.value,
                submitted=each.submitted_at,
                ended=each.end_at,
            )
            for each in records
        ]
        return sorted(jobs, key=lambda job: -job.id)

    def managed_jobs(self, name: str | None = None) -> list[ClusterJob]:
        """Managed jobs, newest first; none where there is no controller."""
        try:
            answer = self._get(
                name or "",
                lambda: self.jobs_sdk.queue_v2(refresh=False, all_users=True, name_match=name, fields=None),
            )
        except (ConflictError, RunNotFoundError):  # no controller is up
            return []
        records = answer[0] if isinstance(answer, tuple) else answer
        jobs = [
            ClusterJob(
                id=int(each["job_id"]),
                name=str(each["job_name"]),
                status=each["status"].value,
                submitted=float(each["submitted_at"] or 0),
                cluster=each.get("current_cluster_name"),
                infra=str(each.get("cloud") or "").lower(),
                reason=errors.plain(each.get("failure_reason") or ""),
            )
            for each in records
        ]
        return sorted((job for job in jobs if name is None or job.name == name), key=lambda job: -job.id)

    def tail(self, name: str, job: int, *, follow: bool) -> Iterator[str]:
        """The output of a cluster's job, in chunks as they arrive."""
        return self._chunks(name, lambda: self.sdk.tail_logs(name, job, follow=follow, preload_content=False))

    def tail_managed(self, name: str, job: int, *, follow: bool) -> Iterator[str]:
        """The output of a managed job, over all its recoveries."""
        return self._chunks(name, lambda: self.jobs_sdk.tail_logs(job_id=job, follow=follow, preload_content=False))

    def _chunks(self, name: str, start: Callable[[], Iterator[str | None]]) -> Iterator[str]:
        """A stream of SkyPilot's; stdout is redirected only while a chunk is read."""
        with self._calling(name):
            chunks = iter(start())
        while True:
            with self._calling(name):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def execute(self, config: dict[str, Any], name: str) -> int:
        """Queue a task on a running cluster. Returns the job's id."""
        job, _handle = self._get(name, lambda: self.sdk.exec(self._task(config, []), cluster_name=name))
        return int(job)

    def cancel(self, name: str, jobs: list[int]) -> None:
        """Cancel jobs of a cluster; SkyPilot kills them within seconds."""
        self._get(name, lambda: self.sdk.cancel(name, job_ids=jobs))

    def cancel_managed(self, name: str, job: int) -> None:
        """Cancel a managed job; the controller terminates its machines."""
        self._get(name, lambda: self.jobs_sdk.cancel(job_ids=[job]))

    def down(self, name: str) -> None:
        """Terminate a cluster, one attempt."""
        self._get(name, lambda: self.sdk.down(name))

    def write_ssh_config(self, name: str) -> None:
        """Write the ssh configuration of the cluster's nodes, as ``sky status`` does."""
        with self._calling(name):
            from sky.client.cli import command  # the SDK has no call for it; SkyPilot is pinned

            command._get_cluster_records_and_set_ssh_config(clusters=[name])

    def offers(self, infra: str) -> list[str]:
        """GPUs that a cloud offers: ``["A10:2", "L40:4"]``."""
        cloud = infra.partition("/")[0]
        found = self._get("", lambda: self.sdk.list_accelerator_counts(gpus_only=True, clouds=cloud))
        return [f"{kind}:{count:g}" for kind in sorted(found) for count in sorted(found[kind])]

    def _get(self, name: str, send: Callable[[], Any]) -> Any:
        """Send a request about run ``name`` and return its result."""
        with self._calling(name):
            return self.sdk.get(send())

    def _task(self, config: dict[str, Any], secrets: list[tuple[str, str]]) -> Any:
        if self.make_task is not None:
            return self.make_task(config, secrets)
        import sky

        return sky.Task.from_yaml_config(config, secrets_overrides=secrets)

    def _refresh_mode(self, mode: str) -> Any:
        from sky.utils.common import StatusRefreshMode

        return StatusRefreshMode(mode)

    @contextlib.contextmanager
    def _calling(self, name: str, refusals: Sequence[str] = ()) -> Iterator[None]:
        """Load SkyPilot, send its output to stderr, and map its errors with the clouds' ``refusals`` so far."""
        with contextlib.redirect_stdout(sys.stderr):
            self._load()
            try:
                yield
            except (BafoError, KeyError):
                raise
            except Exception as error:
                raise errors.explain(error, name, refusals) from error

    def _load(self) -> None:
        if self._loaded:
            return
        if self.sdk is None:
            from sky.client import sdk

            self.sdk = sdk
        if self.jobs_sdk is None:
            from sky.jobs.client import sdk as jobs_sdk

            self.jobs_sdk = jobs_sdk
        self._loaded = True


def iso(seconds: float) -> str:
    """Seconds since the epoch in the format of run records; empty for 0."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else ""


def _cluster(record: Mapping[str, Any]) -> Cluster:
    """SkyPilot's status record as a :class:`Cluster`."""
    labels = record.get("labels") or {}
    parts = [record.get("cloud"), record.get("region")]
    ends = record["autostop"] is not None and record["autostop"] >= 0 and record["to_down"]
    return Cluster(
        name=record["name"],
        status=record["status"].value,
        launched=float(record["launched_at"] or 0),
        autodown_minutes=int(record["autostop"]) if ends else None,
        infra=str(record.get("cloud") or "").lower(),
        location=" ".join(str(each) for each in parts if each),
        nodes=int(record.get("nodes") or 1),
        price_per_hour=_price(record),
        ours=LABEL in labels or bool(_OURS.search(str(record.get("last_creation_yaml") or ""))),
        managed=bool(record.get("is_managed")),
    )


def _price(record: Mapping[str, Any]) -> float | None:
    """Dollars an hour for all nodes, by SkyPilot's catalog; None for an unknown price."""
    try:
        handle = record["handle"]
        resources = handle.launched_resources
        if "," in (resources.zone or ""):  # RunPod: every requested zone
            resources = resources.copy(zone=None)
        dollars = float(resources.get_cost(3600)) * int(handle.launched_nodes)
    except Exception:  # never fail for a missing price
        return None
    return dollars or None


_WITHOUT_CATALOG = ("kubernetes", "slurm", "ssh", "vsphere")
PROBE_TIMEOUT_S = 25.0
"""Time for one cloud to answer; :mod:`bafogpt.launch.sky_probe` waits longer, so other answers are not lost."""


def refresh_catalog(gpu: str, cloud: str | None = None) -> dict[str, Any]:
    """Have SkyPilot look up a GPU, which refreshes its catalog files; ``{"clouds": {CLOUD: "ok" or an error}}``."""
    from sky.skylet import constants

    from sky import catalog

    def refresh(name: str) -> str:
        try:
            pattern = f"^{re.escape(gpu)}$"
            catalog.list_accelerators(gpus_only=True, name_filter=pattern, clouds=[name], case_sensitive=False)
        except Exception as error:  # offline, unknown cloud, changed format: other clouds may still answer
            return type(error).__name__
        return "ok"

    clouds = [cloud] if cloud else [str(each) for each in constants.ALL_CLOUDS if each not in _WITHOUT_CATALOG]
    return {"clouds": _in_parallel(clouds, refresh, default="no answer in time")}


def check_credentials(cloud: str | None = None) -> dict[str, Any]:
    """Check credentials as ``sky check`` does; ``{"clouds": {CLOUD: {"enabled": …, "reason": …}}}``."""
    from sky.clouds import CloudCapability
    from sky.utils import registry

    def check(name: str) -> dict[str, Any]:
        try:
            works, reason = registry.CLOUD_REGISTRY.from_str(name).check_credentials(CloudCapability.COMPUTE)
        except Exception as error:  # a cloud whose client library is not installed
            return {"enabled": False, "reason": f"{type(error).__name__}: {error}"}
        text = " ".join(map(str, reason.values())) if isinstance(reason, dict) else str(reason or "")
        return {"enabled": bool(works), "reason": errors.strip_ansi(text).strip().partition("\n")[0].strip()}

    names = [cloud] if cloud else sorted(registry.CLOUD_REGISTRY)
    return {"clouds": _in_parallel(names, check, default={"enabled": False, "reason": "no answer in time"})}


def _in_parallel(names: Sequence[str], call: Callable[[str], T], default: T) -> dict[str, T]:
    """``call(name)`` for every name at once; ``default`` for those without an answer in time."""
    pool = concurrent.futures.ThreadPoolExecutor(len(names))
    futures = {name: pool.submit(call, name) for name in names}
    concurrent.futures.wait(futures.values(), timeout=PROBE_TIMEOUT_S)
    return {name: future.result() if future.done() else default for name, future in futures.items()}
