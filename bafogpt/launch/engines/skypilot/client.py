"""SkyPilot's SDK as this project uses it: typed records, errors in two lines, nothing on stdout.

The only module that imports ``sky``, and it does so when something is asked (seconds, a hundred packages). A test gives
modules of its own in place of ``sky.client.sdk`` and ``sky.jobs.client.sdk``.
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
"""The label by which a cluster is known as ours, with the run's name."""

_OURS = re.compile(r"bafogpt job run\b")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster in SkyPilot's books."""

    name: str
    status: str
    """``INIT``, ``UP``, ``STOPPED``, ``AUTOSTOPPING`` …"""
    launched: float
    """Seconds since the epoch."""
    autodown_minutes: int | None
    """Idle minutes until it terminates itself; None when nothing would, or when it would only stop."""
    infra: str = ""
    place: str = ""
    nodes: int = 1
    price_per_hour: float | None = None
    ours: bool = False
    managed: bool = False
    """Whether it belongs to SkyPilot's jobs controller."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job in a cluster's queue, or a managed job."""

    id: int
    name: str
    status: str
    submitted: float
    ended: float | None = None
    cluster: str | None = None
    """Where a managed job runs at the moment."""
    infra: str = ""
    reason: str = ""

    @property
    def active(self) -> bool:
        return self.status not in ("SUCCEEDED", "CANCELLED") and not self.status.startswith("FAILED")


@dataclass
class Client:
    """The calls. Each raises :class:`BafoError`; none prints to stdout."""

    sdk: Any = None
    jobs_sdk: Any = None
    make_task: Callable[[dict[str, Any], list[tuple[str, str]]], Any] | None = None
    output: Any = None
    """Where SkyPilot's own account of a launch goes; stderr unless set."""
    _loaded: bool = field(default=False, init=False)

    def launch(
        self, config: dict[str, Any], secrets: list[tuple[str, str]], name: str, idle_minutes: int, retry: bool
    ) -> str:
        """Ask for a cluster that ends itself, and for the task on it. Returns the request's id at once."""
        with self._calling(name):
            task = self._task(config, secrets)
            request = self.sdk.launch(
                task, cluster_name=name, idle_minutes_to_autostop=idle_minutes, down=True, retry_until_up=retry
            )
        return str(request)

    def launch_managed(self, config: dict[str, Any], secrets: list[tuple[str, str]], name: str) -> str:
        """The same as a managed job: SkyPilot's controller rents, recovers and gives back."""
        with self._calling(name):
            return str(self.jobs_sdk.launch(self._task(config, secrets), name=name))

    def wait(self, request: str, name: str) -> Any:
        """A request's result, its progress shown meanwhile."""
        ear = log_filter.LogFilter(self.output or sys.stderr)
        with self._calling(name, ear.refusals):
            return self.sdk.stream_and_get(request, output_stream=ear)

    def abandon(self, request: str) -> None:
        """Take a request back, if it has not been served."""
        with self._calling(""):
            self.sdk.get(self.sdk.api_cancel(request_ids=[request], silent=True))

    def launching(self, name: str) -> bool:
        """Whether a launch of the cluster is waiting or at work in the API server."""
        with self._calling(name):
            requests = self.sdk.api_status()  # of every cluster: 0.14.1 ignores a name in a session's first request
        return any(
            each.cluster_name == name and "launch" in str(each.name) and each.finished_at is None for each in requests
        )

    def clusters(self, names: list[str] | None = None, *, refresh: bool = False) -> list[Cluster]:
        """The clusters there are; ``refresh`` asks the clouds about those that may have ended themselves."""
        with self._calling(""):
            mode = self._refresh_mode("AUTO" if refresh else "NONE")
            try:
                records = self.sdk.get(self.sdk.status(names, refresh=mode))
            except KeyError:  # one pod that has exited breaks SkyPilot 0.14.1's look at all of them
                records = self.sdk.get(self.sdk.status(names, refresh=self._refresh_mode("NONE")))
        return [_cluster(record) for record in records]

    def cluster(self, name: str, *, refresh: bool = False) -> Cluster | None:
        """One cluster, or None."""
        return next((each for each in self.clusters([name], refresh=refresh) if each.name == name), None)

    def autodown(self, name: str, idle_minutes: int) -> None:
        """Have the cluster terminate itself after ``idle_minutes`` without a job."""
        with self._calling(name):
            self.sdk.get(self.sdk.autostop(name, idle_minutes, down=True))

    def queue(self, name: str) -> list[Job]:
        """The jobs of a cluster, newest first."""
        with self._calling(name):
            records = self.sdk.get(self.sdk.queue(name, all_users=True))
        found = [
            Job(
                id=each.job_id,
                name=each.job_name,
                status=each.status.value,
                submitted=each.submitted_at,
                ended=each.end_at,
            )
            for each in records
        ]
        return sorted(found, key=lambda job: -job.id)

    def managed_jobs(self, name: str | None = None) -> list[Job]:
        """Managed jobs, newest first; none where there is no controller."""
        try:
            with self._calling(name or ""):
                answer = self.sdk.get(
                    self.jobs_sdk.queue_v2(refresh=False, all_users=True, name_match=name, fields=None)
                )
        except (ConflictError, RunNotFoundError):  # the controller is not up: there is nothing in its queue
            return []
        records = answer[0] if isinstance(answer, tuple) else answer
        found = [
            Job(
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
        return sorted((job for job in found if name is None or job.name == name), key=lambda job: -job.id)

    def tail(self, name: str, job: int, *, follow: bool) -> Iterator[str]:
        """What a cluster's job has printed, in pieces as they come."""
        return self._pieces(name, lambda: self.sdk.tail_logs(name, job, follow=follow, preload_content=False))

    def tail_managed(self, name: str, job: int, *, follow: bool) -> Iterator[str]:
        """The same of a managed job, over all its recoveries."""
        return self._pieces(name, lambda: self.jobs_sdk.tail_logs(job_id=job, follow=follow, preload_content=False))

    def _pieces(self, name: str, start: Callable[[], Iterator[str | None]]) -> Iterator[str]:
        """A stream of SkyPilot; stdout is the caller's own again between two pieces."""
        with self._calling(name):
            pieces = iter(start())
        while True:
            with self._calling(name):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def execute(self, config: dict[str, Any], name: str) -> int:
        """Queue a task on a cluster that is up. Returns its job's id."""
        with self._calling(name):
            job, _handle = self.sdk.get(self.sdk.exec(self._task(config, []), cluster_name=name))
        return int(job)

    def cancel(self, name: str, jobs: list[int]) -> None:
        """Cancel jobs of a cluster; they get little time to save anything."""
        with self._calling(name):
            self.sdk.get(self.sdk.cancel(name, job_ids=jobs))

    def cancel_managed(self, name: str, job: int) -> None:
        """Cancel a managed job; the controller gives its machines back."""
        with self._calling(name):
            self.sdk.get(self.jobs_sdk.cancel(job_ids=[job]))

    def down(self, name: str) -> None:
        """Terminate a cluster, one try."""
        with self._calling(name):
            self.sdk.get(self.sdk.down(name))

    def write_ssh_config(self, name: str) -> None:
        """Write how to reach the cluster's nodes into the user's ssh configuration, as ``sky status`` does."""
        with self._calling(name):
            from sky.client.cli import command  # the SDK has no call for it; SkyPilot is pinned

            command._get_cluster_records_and_set_ssh_config(clusters=[name])

    def offers(self, infra: str) -> list[str]:
        """GPUs that a cloud offers: ``["A10:2", "L40:4"]``."""
        with self._calling(""):
            found = self.sdk.get(self.sdk.list_accelerator_counts(gpus_only=True, clouds=infra.partition("/")[0]))
        return [f"{kind}:{count:g}" for kind in sorted(found) for count in sorted(found[kind])]

    def _task(self, config: dict[str, Any], secrets: list[tuple[str, str]]) -> Any:
        if self.make_task is not None:
            return self.make_task(config, secrets)
        import sky

        return sky.Task.from_yaml_config(config, secrets_overrides=secrets)

    def _refresh_mode(self, mode: str) -> Any:
        from sky.utils.common import StatusRefreshMode

        return StatusRefreshMode(mode)

    @contextlib.contextmanager
    def _calling(self, name: str, heard: Sequence[str] = ()) -> Iterator[None]:
        """SkyPilot loaded, its chatter on stderr, its errors as ours, with what was ``heard`` of clouds meanwhile."""
        with contextlib.redirect_stdout(sys.stderr):
            self._load()
            try:
                yield
            except (BafoError, KeyError):
                raise
            except Exception as error:
                raise errors.explain(error, name, list(heard)) from error

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
    """Seconds since the epoch as records write times; empty for none."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else ""


def _cluster(record: Mapping[str, Any]) -> Cluster:
    """SkyPilot's status record, as far as it matters here."""
    labels = record.get("labels") or {}
    where = [record.get("cloud"), record.get("region")]
    ends = record["autostop"] is not None and record["autostop"] >= 0 and record["to_down"]
    return Cluster(
        name=record["name"],
        status=record["status"].value,
        launched=float(record["launched_at"] or 0),
        autodown_minutes=int(record["autostop"]) if ends else None,
        infra=str(record.get("cloud") or "").lower(),
        place=" ".join(str(each) for each in where if each),
        nodes=int(record.get("nodes") or 1),
        price_per_hour=_price(record),
        ours=LABEL in labels or bool(_OURS.search(str(record.get("last_creation_yaml") or ""))),
        managed=bool(record.get("is_managed")),
    )


def _price(record: Mapping[str, Any]) -> float | None:
    """Dollars an hour for all nodes, from SkyPilot's own catalog; None where it has no price."""
    try:
        handle = record["handle"]
        resources = handle.launched_resources
        if "," in (resources.zone or ""):  # RunPod: all that were asked for, and none of that name in the catalog
            resources = resources.copy(zone=None)
        dollars = float(resources.get_cost(3600)) * int(handle.launched_nodes)
    except Exception:  # a price is a courtesy: whatever is missing in a handle is no reason to fail
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
