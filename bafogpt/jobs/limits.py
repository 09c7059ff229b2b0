"""What a run may cost and how long it may take."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from bafogpt.core.errors import UsageError

MAX_COST = "BAFOGPT_MAX_COST"
MAX_HOURS = "BAFOGPT_MAX_HOURS"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a run may cost and take; None is no limit."""

    max_cost: float | None = None
    """Dollars."""
    max_hours: float | None = None

    def overlaid(self, environment: Mapping[str, str] = os.environ) -> Limits:
        """These limits with those that the launch named in the task's variables laid on them.

        Raises :class:`UsageError` for a variable that is not a number above 0.
        """
        return Limits(
            max_cost=_number(environment, MAX_COST) or self.max_cost,
            max_hours=_number(environment, MAX_HOURS) or self.max_hours,
        )

    def check_price(self, price_per_hour: float) -> None:
        """Raise :class:`UsageError` for a limit in dollars where nobody knows what an hour costs."""
        if self.max_cost is not None and not price_per_hour > 0:
            raise UsageError(
                f"max_cost is ${self.max_cost:,.2f}, but what an hour costs here is not known",
                "limit the time instead: --max-hours N; or say the price: export BAFOGPT_PRICE_PER_HOUR=DOLLARS",
            )


def _number(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} is {text!r}; a number above 0", f"export {name}=5")
    return value
