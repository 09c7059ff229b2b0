"""Reaping: clusters of ours that nothing would end, or that have nothing left to do, are ended.

The last of the nets below a rented machine. The first is its own autodown, asked for with the launch; the second looks
at that after the launch; the third is the watchman of a launch whose client was killed. This one finds what a laptop
that was switched off in the middle of a launch, or a person with ``sky launch``, has left.
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
"""What a cluster is given beyond its autodown, a run's end or its limit, before it counts as forgotten."""

GOOD = ("ended", "has an autodown again")
"""Outcomes after which nothing is left to do."""


@dataclass(frozen=True, kw_only=True)
class OrphanCluster:
    """A cluster that should not be there."""

    name: str
    reason: str
    hours: float
    """Since it was launched."""
    location: str
    price_per_hour: float | None
    outcome: str = "up"
    """``up``, ``ended``, ``has an autodown again``, or why it could not be ended."""
    keep: bool = False
    """Whether a run is at work there, so that it only gets its autodown back."""


def find(
    client: Client,
    record_of: Callable[[str], RunRecord | None],
    *,
    older_than_hours: float | None = None,
    now: Callable[[], float] = time.time,
) -> list[OrphanCluster]:
    """Clusters of ours with a reason to end them, the longest-lived first.

    ``record_of`` gives a run's record in the bucket, or None. Managed jobs are their controller's to end.
    """
    found = []
    for cluster in client.clusters(refresh=True):
        if not cluster.ours or cluster.managed:
            continue
        why = next(_reasons(client, cluster, record_of(cluster.name), older_than_hours, now()), None)
        if why is not None:
            found.append(
                OrphanCluster(
                    name=cluster.name,
                    reason=why[0],
                    keep=why[1],
                    hours=(now() - cluster.launched) / 3600,
                    location=cluster.location,
                    price_per_hour=cluster.price_per_hour,
                )
            )
    return sorted(found, key=lambda each: -each.hours)


def end(teardown: Teardown, down: Callable[[str], None], forgotten: OrphanCluster) -> OrphanCluster:
    """See to one: a run at work that only lost its autodown gets it back, anything else goes down.

    ``down`` is the engine's, which lets a run save first. What cannot be ended says why, and holds up no other.
    """
    try:
        if forgotten.keep:
            teardown.ensure_autodown(forgotten.name, IDLE_MINUTES)
            return replace(forgotten, outcome="has an autodown again")
        down(forgotten.name)
    except BafoError as error:
        return replace(forgotten, outcome=error.message)
    return replace(forgotten, outcome="ended")


def _reasons(
    client: Client, cluster: Cluster, record: RunRecord | None, older_than_hours: float | None, now: float
) -> Iterator[tuple[str, bool]]:
    """Why the cluster should not be there as it is, the gravest first, and whether its run may stay.

    There is no reason against one that is being launched or is about to end itself.
    """
    hours, limit = (now - cluster.launched) / 3600, _limit_hours(record)
    if older_than_hours is not None and hours > older_than_hours:
        yield f"older than {older_than_hours:g} h", False
    if limit is not None and hours > limit + MARGIN_S / 3600:
        yield f"past its limit of {limit:g} h", False
    if cluster.status == "STOPPED":
        yield "stopped, with a disk that is paid for", False
    if cluster.status == "INIT" and hours * 3600 > MARGIN_S and not client.launching(cluster.name):
        yield "its launch broke off", False
    if cluster.status != "UP":
        return
    idle_s = _idle_s(client, cluster, now)
    if cluster.autodown_minutes is None:
        yield "nothing would end it: it has no autodown", idle_s is None
    elif idle_s is not None and idle_s > cluster.autodown_minutes * 60 + MARGIN_S:
        state = record.state if record and record.state != "running" else "dead"
        yield f"its run is {state}, and its autodown is overdue", False


def _limit_hours(record: RunRecord | None) -> float | None:
    """``max_hours`` of the run's job, where it has one."""
    said = ((record.job if record else {}).get("supervisor") or {}).get("max_hours")
    return float(said) if said else None


def _idle_s(client: Client, cluster: Cluster, now: float) -> float | None:
    """Seconds since the last job there ended; None while one is at work, or when the cluster cannot be asked."""
    try:
        jobs = client.queue(cluster.name)
    except BafoError:
        return None
    if any(job.active for job in jobs):
        return None
    return now - max((job.ended or job.submitted for job in jobs), default=cluster.launched)
