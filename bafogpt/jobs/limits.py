"""The limits of a run: what it may cost, and how long it may take."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bafogpt.core.errors import UsageError
from bafogpt.jobs import env


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a run may cost and take, over all its attempts; None is no limit."""

    max_cost: float | None = None
    """Dollars."""
    max_hours: float | None = None

    def with_environment(self, environment: Mapping[str, str] = os.environ) -> Limits:
        """These limits, replaced by those that the launch set in the environment.

        Raises :class:`UsageError` for a variable that is not a number above 0.
        """
        return Limits(
            max_cost=_number(environment, env.MAX_COST) or self.max_cost,
            max_hours=_number(environment, env.MAX_HOURS) or self.max_hours,
        )

    def check_price(self, price_per_hour: float) -> None:
        """Raise :class:`UsageError` for a limit in dollars where the price of an hour is unknown."""
        if self.max_cost is not None and not price_per_hour > 0:
            raise UsageError(
                f"max_cost is ${self.max_cost:,.2f}, but the price of an hour here is unknown",
                f"limit the time instead: --max-hours N; or set the price: export {env.PRICE_PER_HOUR}=DOLLARS",
            )


@dataclass(frozen=True, kw_only=True)
class LimitReached:
    """Which limit ends a run, and by how much."""

    limit: Literal["max_cost", "max_hours"]
    message: str

    @property
    def option(self) -> str:
        """The option of ``cloud launch`` that raises this limit."""
        return f"--{self.limit.replace('_', '-')}"


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
