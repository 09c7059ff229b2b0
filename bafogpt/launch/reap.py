"""``bafogpt cloud reap``: ends clusters of ours that nothing else would end, or that have nothing left to do.

The last safety net of a rented machine. The first is its autodown, set by the launch; the second is the launch's check
of it; the third is the watchdog of a launch whose client was killed. This one finds what a laptop that was switched off
during a launch, or a plain ``sky launch``, has left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bafogpt.core.errors import BafoError
from bafogpt.launch.engines.skypilot.client import Client, Cluster
from bafogpt.launch.engines.skypilot.task_config import IDLE_MINUTES
from bafogpt.launch.engines.skypilot.teardown import Teardown
from bafogpt.runs.store import RunRecord

MARGIN_S = 15 * 60.0
"""Time beyond a cluster's autodown, its run's end or its limit before it counts as an orphan."""

SUCCESSES = ("ended", "autodown restored")
"""Outcomes after which nothing is left to do."""


@dataclass(frozen=True, kw_only=True)
class OrphanCluster:
    """A cluster that should not be up."""

    name: str
    reason: str
    hours: float
    """Since its launch."""
    location: str
    price_per_hour: float | None
    keep: bool = False
    """Whether a run is active there, so that only its autodown is restored."""
    outcome: str = "up"
    """``up``, ``ended``, ``autodown restored``, or why it could not be ended."""


def find(
    client: Client,
    record_of: Callable[[str], RunRecord | None],
    *,
    older_than_hours: float | None = None,
    now: Callable[[], float] = time.time,
) -> list[OrphanCluster]:
    """Clusters of ours with a reason to end them, the oldest first; managed jobs belong to their controller.

    ``record_of`` returns a run's record in the bucket, or None.
    """
    found = []
    for cluster in client.clusters(refresh=True):
        if not cluster.ours or cluster.managed:
            continue
        for reason, keep in _reasons(client, cluster, record_of(cluster.name), older_than_hours, now()):
            orphan = OrphanCluster(
                name=cluster.name,
                reason=reason,
                hours=(now() - cluster.launched) / 3600,
                location=cluster.location,
                price_per_hour=cluster.price_per_hour,
                keep=keep,
            )
            found.append(orphan)
            break
    return sorted(found, key=lambda each: -each.hours)


def end(teardown: Teardown, down: Callable[[str], None], orphan: OrphanCluster) -> OrphanCluster:
    """Restore the autodown of an active run that lost it; end any other cluster.

    ``down`` is the engine's, which lets a run save first. An error becomes the outcome.
    """
    try:
        if orphan.keep:
            teardown.ensure_autodown(orphan.name, IDLE_MINUTES)
        else:
            down(orphan.name)
    except BafoError as error:
        return replace(orphan, outcome=error.message)
    return replace(orphan, outcome="autodown restored" if orphan.keep else "ended")


def _reasons(
    client: Client, cluster: Cluster, record: RunRecord | None, older_than_hours: float | None, now: float
) -> Iterator[tuple[str, bool]]:
    """(reason to end the cluster, whether its run may stay), the most serious first.

    None for one that is being launched or is about to terminate itself.
    """
    hours = (now - cluster.launched) / 3600
    limit = ((record.job if record else {}).get("supervisor") or {}).get("max_hours")
    if older_than_hours is not None and hours > older_than_hours:
        yield f"older than {older_than_hours:g} h", False
    if limit and hours > float(limit) + MARGIN_S / 3600:
        yield f"past its limit of {float(limit):g} h", False
    if cluster.status == "STOPPED":
        yield "stopped, and its disk is billed", False
    if cluster.status == "INIT" and hours * 3600 > MARGIN_S and not client.launching(cluster.name):
        yield "its launch failed", False
    if cluster.status != "UP":
        return
    idle_s = _idle_s(client, cluster, now)
    if cluster.autodown_minutes is None:
        yield "no autodown", idle_s is None
    elif idle_s is not None and idle_s > cluster.autodown_minutes * 60 + MARGIN_S:
        state = record.state if record and record.state != "running" else "dead"
        yield f"its run is {state}, and its autodown is overdue", False


def _idle_s(client: Client, cluster: Cluster, now: float) -> float | None:
    """Seconds since the last job ended; None while one is active, or when the queue cannot be read."""
    try:
        jobs = client.queue(cluster.name)
    except BafoError:
        return None
    if any(job.active for job in jobs):
        return None
    return now - max((job.ended or job.submitted for job in jobs), default=cluster.launched)
