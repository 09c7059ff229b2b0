"""Which request to the pod cloud fails, and how it looks to the client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)


@dataclass(frozen=True)
class Kind:
    """A way to fail."""

    status: int = 200
    body: str | dict[str, Any] | None = None
    """None: the connection is closed without an answer"""

    done_anyway: bool = False
    """the operation takes place all the same; only its answer is lost"""

    slow: bool = False
    """before that, the client is kept waiting longer than its patience"""


def _error(message: str) -> dict[str, Any]:
    return {"errors": [{"message": message}], "data": None}


KINDS = {
    "capacity": Kind(body=_error(NO_CAPACITY)),
    "401": Kind(status=401, body=_error("Unauthorized")),
    "403": Kind(body=_error("Forbidden")),  # the API says this with status 200
    "500": Kind(status=500, body="Internal Server Error"),
    "502": Kind(status=502, body="<html><body><h1>502 Bad Gateway</h1></body></html>"),
    "drop": Kind(),
    "lost": Kind(done_anyway=True),
    "hang": Kind(slow=True),
}


@dataclass
class Fault:
    """``times`` requests fail, after the first ``after`` that fit. As JSON: {"kind": "capacity", "times": 3, …}."""

    kind: str
    op: str = "*"
    """an operation's name, such as podFindAndDeployOnDemand"""

    times: int = 1
    after: int = 0
    match: dict[str, Any] = field(default_factory=dict)
    """what the operation's input must say, such as {"countryCode": "CA"}"""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: one of {', '.join(KINDS)}")

    def hits(self, operation: str, given: dict[str, Any]) -> bool:
        """Whether this request is one of those that fail; counts it."""
        if self.op not in ("*", operation) or any(given.get(key) != value for key, value in self.match.items()):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return self.times >= 0
