"""What a run has used, in hours and dollars: the one sum that every command and report shows.

Each attempt keeps an account, ``runs/<run>/usage/0001.json``, which node 0 rewrites every :data:`USAGE_EVERY_S`
seconds; the account of a lost machine ends at its last entry. The time counts from the supervisor's start to its end.
Boot, image pull and autostop are not included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from bafogpt.core import schema
from bafogpt.core.errors import NotFoundError
from bafogpt.storage.bucket import Bucket

USAGE_EVERY_S = 30.0
SILENT_S = 600.0
"""A running run whose account is older than this counts as lost: its usage stops at the last entry."""


@dataclass(frozen=True, kw_only=True)
class AttemptUsage:
    """The account of one attempt."""

    attempt: int
    started: float
    """Seconds since the epoch."""
    seen: float
    """Time of its last entry."""
    price_per_hour: float = 0.0
    """Dollars, for all nodes together; 0 where unknown."""
    reserve_s: float | None = None
    """Seconds reserved for the last save, as last timed; the next attempt starts with it."""

    @property
    def hours(self) -> float:
        return max(0.0, self.seen - self.started) / 3600

    @property
    def usd(self) -> float:
        return self.hours * self.price_per_hour


def read_all(run: Bucket) -> list[AttemptUsage]:
    """Every attempt's account, in order; ``run`` is the folder ``runs/<run>``."""
    found = []
    for info in run.list("usage/"):
        try:
            raw = json.loads(run.get(info.path))
        except NotFoundError:
            continue
        found.append(schema.build(AttemptUsage, raw, where=f"{run.url}/{info.path}"))
    return sorted(found, key=lambda account: account.attempt)


def write(run: Bucket, account: AttemptUsage) -> None:
    """Write an attempt's account."""
    run.put(f"usage/{account.attempt:04d}.json", json.dumps(asdict(account)).encode())


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What all attempts of a run have used together."""

    hours: float = 0.0
    usd: float = 0.0
    usd_per_hour: float = 0.0
    """Price of the last attempt, for all its nodes together."""
    seen: float | None = None
    """Time of the last entry, in seconds since the epoch; None without an account."""


def total(accounts: Sequence[AttemptUsage]) -> Usage:
    """The sum of the accounts, each at its own price."""
    if not accounts:
        return Usage()
    return Usage(
        hours=sum(each.hours for each in accounts),
        usd=sum(each.usd for each in accounts),
        usd_per_hour=accounts[-1].price_per_hour,
        seen=accounts[-1].seen,
    )


def of_run(run: Bucket, state: str, now: float) -> Usage:
    """What a run in ``state`` has used by ``now`` (seconds since the epoch); ``run`` is the folder ``runs/<run>``.

    The time since the last entry of a running run counts too, at the price of its last attempt.
    """
    used = total(read_all(run))
    if state != "running" or used.seen is None or not 0 < now - used.seen <= SILENT_S:
        return used
    hours = (now - used.seen) / 3600
    return replace(used, hours=used.hours + hours, usd=used.usd + hours * used.usd_per_hour)
