"""How long each attempt of a run has run and what it has cost: ``runs/<run>/meter/0001.json``.

Node 0 rewrites its attempt's file every :data:`METER_EVERY_S` seconds, so a machine that is lost has paid up to its
last entry. The time counts from the supervisor's start to its end; boot, image pull and autostop are not seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from bafogpt.core import schema
from bafogpt.core.errors import NotFoundError
from bafogpt.storage.bucket import Bucket

METER_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Span:
    """The account of one attempt."""

    attempt: int
    started: float
    """Seconds since the epoch."""
    seen: float
    """When it was last known to be at work."""
    price_per_hour: float = 0.0
    """Dollars, for all nodes together; 0 where it is not known."""
    reserve_s: float | None = None
    """What was kept for one more save, as last timed; the next attempt begins with it. None before one was timed."""

    @property
    def hours(self) -> float:
        return max(0.0, self.seen - self.started) / 3600

    @property
    def usd(self) -> float:
        return self.hours * self.price_per_hour


def spans(run: Bucket) -> list[Span]:
    """Every attempt's account, in order; ``run`` is the folder ``runs/<run>``."""
    found = []
    for info in run.list("meter/"):
        try:
            raw = json.loads(run.get(info.path))
        except NotFoundError:
            continue
        found.append(schema.build(Span, raw, where=f"{run.url}/{info.path}"))
    return sorted(found, key=lambda span: span.attempt)


def store(run: Bucket, span: Span) -> None:
    """Write an attempt's account."""
    run.put(f"meter/{span.attempt:04d}.json", json.dumps(asdict(span)).encode())


def total(accounts: Iterable[Span]) -> tuple[float, float]:
    """(hours, dollars) of the accounts together."""
    listed = list(accounts)
    return sum(each.hours for each in listed), sum(each.usd for each in listed)
