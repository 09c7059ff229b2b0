"""A limit in bytes per second, shared by all the transfers it is given to."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from bafogpt.core.errors import UsageError


class Bandwidth:
    """At most ``bytes_per_s`` on average, from the first byte on; ``None`` is no limit. Thread-safe."""

    def __init__(
        self,
        bytes_per_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_s is not None and bytes_per_s <= 0:
            raise ValueError(f"{bytes_per_s} bytes a second")
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def take(self, n: int) -> None:
        """Wait until ``n`` bytes may pass. Unused bandwidth does not accumulate."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            now = self._clock()
            starts = max(self._free_at, now)
            self._free_at = starts + n / self._bytes_per_s
            ends = self._free_at
        if ends > now:
            self._sleep(ends - now)


def parse(text: str) -> float:
    """``"5M"`` as bytes per second. Raises :class:`UsageError` for anything but a rate."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)(?:B(?:/s)?)?", text.strip())
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()] if match else 0
    if number <= 0:
        raise UsageError(f"--max-bandwidth {text}: not a rate", "--max-bandwidth 5M is 5,000,000 bytes a second")
    return number
