"""What a run may cost and how long it may take, over all its attempts; and what it has cost so far.

Each attempt keeps an account of its own, ``runs/<run>/usage/0001.json``, which node 0 writes again every
:data:`USAGE_EVERY_S` seconds: a machine that dies without a word has paid up to its last entry. Counted is from the
supervisor's start to its end; what the machine costs before (boot, image) and after (autostop) it cannot see.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from bafogpt.jobs.limits import LimitReached, Limits
from bafogpt.runs import usage
from bafogpt.runs.usage import AttemptUsage

FIRST_RESERVE = 0.05
"""Share of a limit that is kept for saving while no save has been timed yet."""


class Budget:
    """One attempt's view of the whole run's limits. ``clock`` is monotonic, in seconds; ``wall`` since the epoch."""

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
        self._earlier = [span for span in earlier if span.attempt < attempt]
        self._attempt = attempt
        self._price = price_per_hour
        self._clock = clock
        self._reserve_s = self._earlier[-1].reserve_s if self._earlier else None
        self._begun = clock()
        self._started = wall()  # read once: a wall clock that is set meanwhile changes no bill

    @property
    def span(self) -> AttemptUsage:
        """This attempt's account, as of now."""
        now = self._started + self._clock() - self._begun
        return AttemptUsage(
            attempt=self._attempt,
            started=self._started,
            seen=now,
            price_per_hour=self._price,
            reserve_s=self._reserve_s,
        )

    @property
    def hours(self) -> float:
        """Of all attempts together."""
        return usage.total((*self._earlier, self.span)).hours

    @property
    def usd(self) -> float:
        """Dollars, of all attempts together, each at its own price."""
        return usage.total((*self._earlier, self.span)).usd

    def left_s(self) -> float:
        """Seconds until the nearest limit at this machine's price; infinite without one, negative beyond it."""
        left = [math.inf]
        if self.limits.max_hours is not None:
            left.append((self.limits.max_hours - self.hours) * 3600)
        if self.limits.max_cost is not None:
            left.append((self.limits.max_cost - self.usd) / self._price * 3600)
        return min(left)

    def reached(self, reserve_s: float | None) -> LimitReached | None:
        """The limit for which training must end now, or None.

        ``reserve_s`` is how long the last step, the save and its upload will take: they belong to what is limited. None
        where this attempt has timed none: then it is what the attempt before it kept, or a share of the limit. So an
        attempt that follows one that ended at its limit starts no trainer.
        """
        left = self.left_s()
        if math.isinf(left):
            return None
        self._reserve_s = self._reserve_s if reserve_s is None else reserve_s
        kept = min(60.0, FIRST_RESERVE * self._whole_s()) if self._reserve_s is None else self._reserve_s
        if left > kept:
            return None
        limits = self.limits
        if limits.max_cost is not None and (limits.max_cost - self.usd) / self._price * 3600 <= left:
            message = f"the limit of ${limits.max_cost:,.2f} is reached: ${self.usd:,.2f} spent"
            return LimitReached(limit="max_cost", message=message)
        assert limits.max_hours is not None
        message = f"the limit of {limits.max_hours:g} h is reached: {self.hours:.2f} h used"
        return LimitReached(limit="max_hours", message=message)

    def _whole_s(self) -> float:
        """The smaller limit, in seconds of this machine."""
        limits = self.limits
        whole = [math.inf if limits.max_hours is None else limits.max_hours * 3600]
        if limits.max_cost is not None:
            whole.append(limits.max_cost / self._price * 3600)
        return min(whole)
