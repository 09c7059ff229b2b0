"""Requests to the pod cloud that fail, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)


def _error(message: str) -> dict[str, Any]:
    return {"errors": [{"message": message}], "data": None}


Response = tuple[int, str | dict[str, Any]]
"""HTTP status and body."""
KINDS: dict[str, Response] = {
    "capacity": (200, _error(NO_CAPACITY)),
    "401": (401, _error("Unauthorized")),
    "500": (500, "Internal Server Error"),
}


@dataclass
class Fault:
    """The next ``times`` requests that match fail. As JSON: {"kind": "capacity", "times": 3, …}."""

    kind: str
    op: str = "*"
    """Name of the operation, such as podFindAndDeployOnDemand."""
    times: int = 1
    match: dict[str, Any] = field(default_factory=dict)
    """Values in the operation's input, such as {"countryCode": "CA"}."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: one of {', '.join(KINDS)}")

    def hits(self, operation: str, given: dict[str, Any]) -> bool:
        """Whether this request fails; counts it."""
        if self.op not in ("*", operation) or any(given.get(key) != value for key, value in self.match.items()):
            return False
        self.times -= 1
        return self.times >= 0
