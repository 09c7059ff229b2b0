"""The limits of a run in dollars and hours, over all its attempts, and what has been used of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

from bafogpt.jobs.limits import LimitReached, Limits
from bafogpt.runs.usage import AttemptUsage, total

FIRST_RESERVE = 0.05
"""Share of a limit that is reserved for saving before the first save was timed."""


class Budget:
    """The run's limits as one attempt sees them. ``clock`` is monotonic, in seconds; ``wall`` since the epoch."""

    def __init__(
        self,
        limits: Limits,
        earlier: Sequence[AttemptUsage],
        *,
        attempt: int,
        price_per_hour: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits
        self._earlier = [account for account in earlier if account.attempt < attempt]
        self._attempt = attempt
        self._price = price_per_hour
        self._clock = clock
        self._reserve_s = self._earlier[-1].reserve_s if self._earlier else None
        self._begun = clock()
        self._started = wall()  # read once: setting the wall clock later changes no bill

    @property
    def usage(self) -> AttemptUsage:
        """This attempt's account, as of now."""
        return AttemptUsage(
            attempt=self._attempt,
            started=self._started,
            seen=self._started + self._clock() - self._begun,
            price_per_hour=self._price,
            reserve_s=self._reserve_s,
        )

    @property
    def hours(self) -> float:
        """Of all attempts together."""
        return total((*self._earlier, self.usage)).hours

    @property
    def usd(self) -> float:
        """Dollars of all attempts together, each at its own price."""
        return total((*self._earlier, self.usage)).usd

    def left_s(self) -> float:
        """Seconds until the nearest limit at this machine's price; infinite without one, negative beyond it."""
        return min(self._seconds(self.hours, self.usd).values(), default=math.inf)

    def reached(self, reserve_s: float | None) -> LimitReached | None:
        """The limit for which training must end now, or None.

        ``reserve_s`` is how long the last step, its save and upload will take, which count too. Where it is None, the
        reserve of the attempt before counts, or a share of the limit; so an attempt that follows one that ended at its
        limit starts no trainer.
        """
        hours, usd = self.hours, self.usd
        left = self._seconds(hours, usd)
        if not left:
            return None
        self._reserve_s = self._reserve_s if reserve_s is None else reserve_s
        whole = min(self._seconds(0, 0).values())
        reserve = min(60.0, FIRST_RESERVE * whole) if self._reserve_s is None else self._reserve_s
        limit = min(left, key=left.__getitem__)
        if left[limit] > reserve:
            return None
        messages = {
            "max_cost": f"the limit of ${self.limits.max_cost or 0:,.2f} is reached: ${usd:,.2f} spent",
            "max_hours": f"the limit of {self.limits.max_hours or 0:g} h is reached: {hours:.2f} h used",
        }
        return LimitReached(limit=limit, message=messages[limit])

    def _seconds(self, hours: float, usd: float) -> dict[Literal["max_cost", "max_hours"], float]:
        """Seconds left of each limit, at this machine's price, after so many hours and dollars."""
        left: dict[Literal["max_cost", "max_hours"], float] = {}
        if self.limits.max_cost is not None:
            left["max_cost"] = (self.limits.max_cost - usd) / self._price * 3600
        if self.limits.max_hours is not None:
            left["max_hours"] = (self.limits.max_hours - hours) * 3600
        return left
