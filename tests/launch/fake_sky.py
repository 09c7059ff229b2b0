"""An in-memory SkyPilot, with the part of its SDK that :class:`bafogpt.launch.engines.skypilot.client.Client` uses.

A request is served when its result is read. ``faults`` are raised by the next calls of a name, one each;
``lose_autodown`` is how often a requested autodown is lost (skypilot #5946).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from sky import exceptions


class Status(enum.Enum):
    """Values as SkyPilot's enumerations have them."""

    INIT = "INIT"
    UP = "UP"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass
class FakeSky:
    """One account: its clusters, their jobs and faults. Replaces both SDK modules."""

    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, list[SimpleNamespace]] = field(default_factory=dict)
    managed: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[BaseException]] = field(default_factory=dict)
    lose_autodown: int = 0
    offered: dict[str, list[float]] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    secrets: list[tuple[str, str]] = field(default_factory=list)
    requests: list[SimpleNamespace] = field(default_factory=list)
    on_launch: Callable[[], None] = lambda: None
    """Called while a launch is served."""

    def make_task(self, config: dict[str, Any], secrets: list[tuple[str, str]]) -> dict[str, Any]:
        self.tasks.append(config)
        self.secrets = secrets
        return config

    def add(self, name: str, status: Status = Status.UP, autostop: int = 5, launched: float = 0.0, **more: Any) -> None:
        """Add a cluster."""
        self.clusters[name] = {
            "name": name,
            "launched_at": launched,
            "status": status,
            "autostop": autostop,
            "to_down": autostop >= 0,
            "nodes": 1,
            "cloud": "RunPod",
            "region": "CA",
            "labels": {"bafogpt-run": name},
            "is_managed": False,
            "handle": None,
            **more,
        }

    def add_job(self, cluster: str, status: Status, name: str | None = None, ended: float | None = None) -> None:
        """Add a job to a cluster's queue."""
        queue = self.jobs.setdefault(cluster, [])
        job = SimpleNamespace(
            job_id=len(queue) + 1, job_name=name or cluster, status=status, submitted_at=0.0, end_at=ended
        )
        queue.append(job)

    def launch(
        self,
        task: dict[str, Any],
        *,
        cluster_name: str,
        idle_minutes_to_autostop: int,
        down: bool,
        retry_until_up: bool,
    ) -> Any:
        def serve() -> None:
            self.on_launch()
            kept = idle_minutes_to_autostop if down and not self._loses() else -1
            self.add(cluster_name, autostop=kept, labels=task["resources"]["labels"])
            self._fail("provisioned")
            self.add_job(cluster_name, Status.RUNNING)

        self._fail("launch")
        return self._request("launch", serve)

    def autostop(self, name: str, idle_minutes: int, *, down: bool) -> Any:
        def serve() -> None:
            if not self._loses():
                self._known(name).update(autostop=idle_minutes, to_down=down)

        return self._request("autostop", serve)

    def status(self, names: list[str] | None, *, refresh: Any) -> Any:
        def serve() -> list[dict[str, Any]]:
            return [each for name, each in self.clusters.items() if names is None or name in names]

        return self._request("status", serve)

    def queue(self, name: str, *, all_users: bool) -> Any:
        def serve() -> list[SimpleNamespace]:
            if self._known(name)["status"] is not Status.UP:
                raise exceptions.ClusterNotUpError(f"{name} is not up")
            return self.jobs.get(name, [])

        return self._request("queue", serve)

    def cancel(self, name: str, *, job_ids: list[int]) -> Any:
        def serve() -> None:
            for job in self.jobs[name]:
                if job.job_id in job_ids:
                    job.status = Status.CANCELLED

        return self._request("cancel", serve)

    def down(self, name: str) -> Any:
        def serve() -> None:
            self._known(name)
            del self.clusters[name]
            self.jobs.pop(name, None)

        return self._request("down", serve)

    def tail_logs(self, name: str, job: int, *, follow: bool, preload_content: bool) -> Any:
        self._fail("tail_logs")
        return iter([*self.output, None])

    def queue_v2(self, *, refresh: bool, all_users: bool, name_match: str | None, fields: Any) -> Any:
        return self._request("queue_v2", lambda: (self.managed, len(self.managed), {}, 0))

    def list_accelerator_counts(self, *, gpus_only: bool, clouds: str) -> Any:
        return self._request("offers", lambda: self.offered)

    def api_status(self) -> list[Any]:
        return self.requests

    def api_cancel(self, *, request_ids: list[str], silent: bool) -> Any:
        return self._request("api_cancel", lambda: None)

    def get(self, serve: Callable[[], Any]) -> Any:
        return serve()

    def stream_and_get(self, request: str, output_stream: Any) -> Any:
        return self._pending.pop(request)()

    _pending: dict[str, Callable[[], Any]] = field(default_factory=dict)

    def _request(self, name: str, serve: Callable[[], Any]) -> Any:
        self.calls.append(name)

        def served() -> Any:
            self._fail(name) if name != "launch" else None
            return serve()

        if name != "launch":
            return served
        request = f"request-{len(self.calls)}"
        self._pending[request] = served
        return request

    def _fail(self, name: str) -> None:
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    def _loses(self) -> bool:
        self.lose_autodown -= 1
        return self.lose_autodown >= 0

    def _known(self, name: str) -> dict[str, Any]:
        if name not in self.clusters:
            raise exceptions.ClusterDoesNotExist(f"Cluster '{name}' does not exist.")
        return self.clusters[name]
