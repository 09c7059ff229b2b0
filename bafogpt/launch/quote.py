"""What a launch costs an hour and in all, as it is asked about before it starts; and whether its budget makes sense.

Only training is counted. A machine is paid for from the moment it starts, so minutes for pulling the image and for
ending it come on top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
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
from bafogpt.launch.throughput import Measured, Throughput


@dataclass(frozen=True, kw_only=True)
class ExchangeRate:
    """What a dollar is in rand, and since when that is said."""

    zar_per_usd: float
    as_of: date | None
    """None where somebody set a rate without a date."""
    default: bool = False
    """Whether it is the round figure that comes with bafogpt."""

    @classmethod
    def of(cls, settings: Settings) -> ExchangeRate:
        """The rate of the settings. A rate that somebody set without its date has none."""
        plain = Settings()
        default = settings.zar_per_usd == plain.zar_per_usd
        try:
            as_of = date.fromisoformat(settings.zar_per_usd_date)
        except ValueError:
            raise ConfigError(
                f"zar_per_usd_date is '{settings.zar_per_usd_date}', not a day", 'zar_per_usd_date = "2026-11-24"'
            ) from None
        undated = not default and settings.zar_per_usd_date == plain.zar_per_usd_date
        return cls(zar_per_usd=settings.zar_per_usd, as_of=None if undated else as_of, default=default)

    @property
    def words(self) -> str:
        """``"R18.00 a dollar, rate of 2026-11-24, a round figure: set zar_per_usd"``."""
        said = f"rate of {self.as_of.isoformat()}" if self.as_of else "rate without a date: set zar_per_usd_date"
        return f"R{self.zar_per_usd:,.2f} a dollar, {said}" + (
            ", a round figure: set zar_per_usd" if self.default else ""
        )

    def to_dict(self) -> dict[str, Any]:
        as_of = self.as_of.isoformat() if self.as_of else None
        return {"zar_per_usd": self.zar_per_usd, "as_of": as_of, "default": self.default}

    def rand(self, usd: float | None) -> float | None:
        return None if usd is None else usd * self.zar_per_usd


@dataclass(frozen=True, kw_only=True)
class Quote:
    """The price of one launch, as it is shown before it is agreed to, and the limits that the job will keep."""

    usd_per_hour: float | None
    """For all machines; None where nobody knows."""
    source: str
    offer: Offer | None = None
    hours: float | None = None
    speed: Throughput | None = None
    max_cost: float | None = None
    """Dollars that the whole run may cost."""
    max_hours: float | None = None

    @property
    def usd(self) -> float | None:
        """The whole job, as far as it is known and as far as the limits let it go."""
        if self.usd_per_hour is None or self.hours is None:
            return self.max_cost
        most = [self.usd_per_hour * min(self.hours, self.max_hours or math.inf), self.max_cost or math.inf]
        return min(most)

    def words(self, rate: ExchangeRate | None = None) -> str:
        """``"4.56 $/h (runpod), some 5.0 h = 22.80 $ (R410.40), projected: MFU 56 %"``: what the launch asks about."""
        if self.usd_per_hour is None:
            return "a price that nobody knows"
        found = f"{self.usd_per_hour:.2f} $/h"
        if self.offer:
            found += f" ({self.offer.cloud}{', spot' if self.offer.spot else ''}; {self.source})"
        if self.hours is not None and self.usd is not None and self.speed is not None:
            rand = f" (R{rate.rand(self.usd):,.2f})" if rate else ""
            found += f", some {self.hours:.1f} h = {self.usd:.2f} ${rand}, {self.speed.words}"
        limits = [f"{self.max_cost:.2f} $" if self.max_cost else "", f"{self.max_hours:g} h" if self.max_hours else ""]
        if any(limits):
            short = self.usd is not None and self.hours is not None and self.usd < self.usd_per_hour * self.hours
            enough = ", which is not enough for the whole job" if short else ""
            found += f", at most {' and '.join(filter(None, limits))}{enough}"
        return found

    def envs(self) -> dict[str, str]:
        """What the job is told: its supervisor counts the money and keeps the limits."""
        values = {
            env.PRICE_PER_HOUR: self.usd_per_hour,
            env.MAX_COST: self.max_cost,
            env.MAX_HOURS: self.max_hours,
        }
        return {name: f"{value:.10g}" for name, value in values.items() if value}

    def resources(self) -> dict[str, Any]:
        """What SkyPilot is told: with a budget in dollars, no machine dearer than the one that the budget counts on."""
        if self.max_cost is None or self.offer is None:
            return {}
        return {"max_hourly_cost": math.ceil(round(self.offer.usd_per_hour * 1e4, 6)) / 1e4}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "usd": self.usd}


def bill(
    job: Job,
    task: Mapping[str, Any],
    infra: str,
    *,
    max_cost: float | None = None,
    max_hours: float | None = None,
    earlier: Iterable[Measured] = (),
) -> Quote:
    """The price of launching ``task`` on ``infra``, by what is known on this machine, and its limits checked.

    Raises :class:`UsageError` for limits that make no sense, :class:`NotFoundError` for a GPU that nobody offers.
    """
    for flag, value in (("--max-cost", max_cost), ("--max-hours", max_hours)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag} {value:g}: must be above 0", f"{flag} 20")
    asked = tasks.accelerators(task)
    if is_own(infra):
        made = Quote(usd_per_hour=self_hosted_price(), source="your own machines")
    elif asked is None:  # a machine without a GPU: no offer of those is read
        made = Quote(usd_per_hour=None, source="no GPU is asked for")
    else:
        made = _rented(job, task, asked, infra, earlier)
    made = replace(made, max_cost=max_cost, max_hours=max_hours)
    _check_budget(made, infra)
    return made


def is_own(infra: str) -> bool:
    """Whether nobody sends a bill by the hour for what runs there: this machine, Slurm, Kubernetes."""
    return infra.partition("/")[0].lower() in catalog.OWN_MACHINES


def self_hosted_price() -> float:
    """Dollars an hour of machines that nobody sends a bill for: what BAFOGPT_PRICE_PER_HOUR says, else 0."""
    text = os.environ.get(env.PRICE_PER_HOUR, "").strip() or "0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{env.PRICE_PER_HOUR} is '{text}'; dollars an hour", f"export {env.PRICE_PER_HOUR}=0.50")
    return value


def _rented(
    job: Job, task: Mapping[str, Any], asked: tuple[str, int], infra: str, earlier: Iterable[Measured]
) -> Quote:
    """The cheapest offer of the kind that the task asks for."""
    gpu, count = asked
    nodes = int(task.get("num_nodes") or 1)
    spot = bool((task.get("resources") or {}).get("use_spot"))
    try:
        found = catalog.cached_offers(gpu, count, infra, spot)
    except NotFoundError:
        if catalog.has_prices(infra):
            raise
        return Quote(usd_per_hour=None, source="not in the prices at hand")  # SkyPilot will fetch its own
    speed = throughput.expected(job, gpu, count * nodes, nodes=nodes, earlier=earlier)
    return Quote(
        usd_per_hour=found.offers[0].usd_per_hour * nodes,
        source=found.words,
        offer=found.offers[0],
        hours=job.train.tokens / speed.tokens_per_s / 3600 if speed else None,
        speed=speed,
    )


def _check_budget(made: Quote, infra: str) -> None:
    """A budget must be countable, and pay for an hour, or for all of ``--max-hours`` where that is less."""
    if made.max_cost is None:
        return
    if not made.usd_per_hour:
        what = "nobody sends a bill for" if made.usd_per_hour == 0 else "nobody knows the price of"
        raise UsageError(f"--max-cost {made.max_cost:g}: {what} an hour on {infra}", "--max-hours 8")
    least = made.usd_per_hour * min(1.0, made.max_hours or 1.0)
    if made.max_cost < least:
        span = "one hour" if (made.max_hours or 1.0) >= 1 else f"--max-hours {made.max_hours:g}"
        raise UsageError(
            f"--max-cost {made.max_cost:g} does not pay for {span} at {made.usd_per_hour:.2f} $/h",
            f"--max-cost {math.ceil(round(least * 100, 6)) / 100:.2f}, or more",
        )
