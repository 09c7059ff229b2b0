"""Which request gets which fault."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter

from bafogpt.storage.errors import READ_ATTEMPTS

from .proxy import Direction, Fault, Kind, Request

KINDS: tuple[Kind, ...] = ("status", "hang-up", "lost-answer", "reset", "stall", "truncate", "flip")
STALL_S = 0.05
_ABOUT_OBJECTS = ("list", "upload", "bucket")


class Script:
    """Faults drawn from a seed: about ``rate`` of the requests meet one.

    A request is known by what it asks for and how often that was asked before, not by when it comes; so the same
    seed gives the same faults however the threads of a client are scheduled. A request that comes again and again
    gets through at the ``patience``-th time, and content is damaged less than :data:`READ_ATTEMPTS` times in a
    row, since damage that persists counts as damage in the bucket. Bits are flipped in objects, not in what the server
    says about them (listings, the names of uploads): only TLS protects those.
    """

    def __init__(self, seed: int, rate: float = 0.15, patience: int = 4) -> None:
        self._seed = seed
        self._rate = rate
        self._patience = patience
        self._asked: Counter[str] = Counter()
        self._hit: Counter[str] = Counter()
        self._damaged: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Fault | None:
        name = re.sub(r"[0-9a-f]{8,}", "*", f"{request.method} {request.path}")
        name += f" {request.query.get('partNumber', '')} {request.range}"
        with self._lock:
            self._asked[name] += 1
            chance = random.Random(f"{self._seed} {name} {self._asked[name]}")
            if chance.random() >= self._rate or self._hit[name] == self._patience:
                self._hit[name] = self._damaged[name] = 0
                return None
            self._hit[name] += 1
            fault = draw(chance, request)
            if fault.kind in ("flip", "truncate"):
                self._damaged[name] += 1
                if self._damaged[name] == READ_ATTEMPTS:
                    self._hit[name] = self._damaged[name] = 0
                    return None
            if fault.kind == "flip" and request.label.split()[1] in _ABOUT_OBJECTS:
                return None
        return fault


def draw(chance: random.Random, request: Request) -> Fault:
    """Any fault that such a request can meet.

    A request is not truncated: no line changes the length that its head announces, and one that breaks off is reset.
    """
    direction: Direction = "up" if request.length and chance.random() < 0.6 else "down"
    kind: Kind = chance.choice(KINDS)
    if kind == "truncate":
        direction = "down"
    return Fault(kind, direction, at=chance.random(), status=chance.choice((500, 503)), seconds=STALL_S)
