"""The price of a launch before it starts, and whether its limits make sense.

Only training is counted. A machine is paid for from its start, so pulling the image and shutting down cost a few
minutes more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from bafogpt.core.errors import ConfigError, NotFoundError, UsageError
from bafogpt.core.settings import Settings
from bafogpt.jobs import env
from bafogpt.jobs import task as tasks
from bafogpt.jobs.job import Job
from bafogpt.launch import catalog, throughput
from bafogpt.launch.catalog import Offer
from bafogpt.launch.throughput import Throughput


@dataclass(frozen=True, kw_only=True)
class ExchangeRate:
    """Rand for a dollar, and the date of that rate."""

    zar_per_usd: float
    as_of: date | None
    """None for a rate that was set without a date."""
    default: bool = False
    """Whether it is the rounded rate that bafogpt comes with."""

    @classmethod
    def of(cls, settings: Settings) -> ExchangeRate:
        """The rate of the settings. Raises :class:`ConfigError` for a date that is none."""
        defaults = Settings()
        default = settings.zar_per_usd == defaults.zar_per_usd
        try:
            as_of = date.fromisoformat(settings.zar_per_usd_date)
        except ValueError:
            raise ConfigError(
                f"zar_per_usd_date is '{settings.zar_per_usd_date}', not a date", 'zar_per_usd_date = "2026-11-24"'
            ) from None
        undated = not default and settings.zar_per_usd_date == defaults.zar_per_usd_date
        return cls(zar_per_usd=settings.zar_per_usd, as_of=None if undated else as_of, default=default)

    def describe(self) -> str:
        """``"R18.00 a dollar, rate of 2026-11-24, rounded: set zar_per_usd"``."""
        dated = f"rate of {self.as_of.isoformat()}" if self.as_of else "rate without a date: set zar_per_usd_date"
        return f"R{self.zar_per_usd:,.2f} a dollar, {dated}{', rounded: set zar_per_usd' if self.default else ''}"

    def to_dict(self) -> dict[str, Any]:
        as_of = self.as_of.isoformat() if self.as_of else None
        return {"zar_per_usd": self.zar_per_usd, "as_of": as_of, "default": self.default}

    def rand(self, usd: float | None) -> float | None:
        return None if usd is None else usd * self.zar_per_usd


@dataclass(frozen=True, kw_only=True)
class Quote:
    """The price of one launch, shown before it is confirmed, and the limits of the run."""

    usd_per_hour: float | None
    """For all machines; None for an unknown price."""
    source: str
    offer: Offer | None = None
    hours: float | None = None
    speed: Throughput | None = None
    max_cost: float | None = None
    """Dollars that the whole run may cost."""
    max_hours: float | None = None

    @property
    def usd(self) -> float | None:
        """Dollars of the whole job, as far as known and as far as the limits allow."""
        if self.usd_per_hour is None or self.hours is None:
            return self.max_cost
        return min(self.usd_per_hour * min(self.hours, self.max_hours or math.inf), self.max_cost or math.inf)

    def describe(self, rate: ExchangeRate | None = None) -> str:
        """``"4.56 $/h (runpod; …), about 5.0 h = 22.80 $ (R410.40), projected: MFU 56 %, at most 20.00 $"``."""
        if self.usd_per_hour is None:
            return "unknown price"
        text = f"{self.usd_per_hour:.2f} $/h"
        if self.offer:
            text += f" ({self.offer.cloud}{', spot' if self.offer.spot else ''}; {self.source})"
        if self.hours is not None and self.usd is not None and self.speed is not None:
            rand = f" (R{rate.rand(self.usd):,.2f})" if rate else ""
            text += f", about {self.hours:.1f} h = {self.usd:.2f} ${rand}, {self.speed.description}"
        limits = [f"{self.max_cost:.2f} $" if self.max_cost else "", f"{self.max_hours:g} h" if self.max_hours else ""]
        if any(limits):
            text += f", at most {' and '.join(filter(None, limits))}"
            if self.usd is not None and self.hours is not None and self.usd < self.usd_per_hour * self.hours:
                text += ", which is not enough for the whole job"
        return text

    def task_options(self) -> dict[str, Any]:
        """Keys of the task: price and limits for the supervisor, and with ``max_cost`` no more expensive machine."""
        values = {env.PRICE_PER_HOUR: self.usd_per_hour, env.MAX_COST: self.max_cost, env.MAX_HOURS: self.max_hours}
        envs = {"envs": {name: f"{value:.10g}" for name, value in values.items() if value}}
        if self.max_cost is None or self.offer is None:
            return envs
        ceiling = math.ceil(round(self.offer.usd_per_hour * 1e4, 6)) / 1e4
        return {**envs, "resources": {"max_hourly_cost": ceiling}}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "usd": self.usd}


def compute(
    job: Job, task: Mapping[str, Any], infra: str, *, max_cost: float | None = None, max_hours: float | None = None
) -> Quote:
    """The price of launching ``task`` on ``infra``, from the price list on this machine; checks the limits.

    A limit that is None is the job's own.
    Raises :class:`UsageError` for limits that make no sense, :class:`NotFoundError` for a GPU that no cloud offers.
    """
    max_cost = job.supervisor.max_cost if max_cost is None else max_cost
    max_hours = job.supervisor.max_hours if max_hours is None else max_hours
    for flag, value in (("--max-cost", max_cost), ("--max-hours", max_hours)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag} {value:g}: must be above 0", f"{flag} 20")
    gpus = tasks.accelerators(task)
    if is_self_hosted(infra):
        price = Quote(usd_per_hour=self_hosted_price(), source="your own machines")
    elif gpus is None:  # the catalog's machines without a GPU are not read
        price = Quote(usd_per_hour=None, source="the task has no GPU")
    else:
        price = _rented(job, task, gpus, infra)
    price = replace(price, max_cost=max_cost, max_hours=max_hours)
    _check_max_cost(price, infra)
    return price


def is_self_hosted(infra: str) -> bool:
    """Whether ``infra`` is not billed by the hour: this machine, Slurm, Kubernetes."""
    return infra.partition("/")[0].lower() in catalog.SELF_HOSTED


def self_hosted_price() -> float:
    """Dollars an hour of self-hosted machines: BAFOGPT_PRICE_PER_HOUR, else 0. Raises :class:`UsageError`."""
    text = os.environ.get(env.PRICE_PER_HOUR, "").strip() or "0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{env.PRICE_PER_HOUR} is '{text}', not dollars", f"export {env.PRICE_PER_HOUR}=0.50")
    return value


def _rented(job: Job, task: Mapping[str, Any], gpus: tuple[str, int], infra: str) -> Quote:
    """The price of the cheapest offer for the task."""
    gpu, count = gpus
    nodes = int(task.get("num_nodes") or 1)
    spot = bool((task.get("resources") or {}).get("use_spot"))
    try:
        prices = catalog.cached_offers(gpu, count, infra, spot)
    except NotFoundError:
        if catalog.has_prices(infra):
            raise
        return Quote(usd_per_hour=None, source="not in the local price list")  # SkyPilot fetches its own
    speed = throughput.expected(job, gpu, count * nodes, nodes=nodes)
    return Quote(
        usd_per_hour=prices.offers[0].usd_per_hour * nodes,
        source=prices.describe(),
        offer=prices.offers[0],
        hours=job.train.tokens / speed.tokens_per_s / 3600 if speed else None,
        speed=speed,
    )


def _check_max_cost(price: Quote, infra: str) -> None:
    """Raise :class:`UsageError` unless ``--max-cost`` can be counted and pays for an hour, or for ``--max-hours``."""
    if price.max_cost is None:
        return
    if not price.usd_per_hour:
        why = "is not billed by the hour" if price.usd_per_hour == 0 else "has an unknown price"
        raise UsageError(f"--max-cost {price.max_cost:g}: {infra} {why}", "--max-hours 8")
    least = price.usd_per_hour * min(1.0, price.max_hours or 1.0)
    if price.max_cost < least:
        span = "one hour" if (price.max_hours or 1.0) >= 1 else f"--max-hours {price.max_hours:g}"
        raise UsageError(
            f"--max-cost {price.max_cost:g} does not pay for {span} at {price.usd_per_hour:.2f} $/h",
            f"--max-cost {math.ceil(round(least * 100, 6)) / 100:.2f}, or more",
        )
