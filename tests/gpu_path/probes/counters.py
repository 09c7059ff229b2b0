"""What the null GPU counts."""

from __future__ import annotations

import ctypes

NAMES = ("launches", "products", "waits", "event_waits", "to_device", "to_host", "sent", "fetched", "used", "peak")


def read() -> dict[str, int]:
    """The counters since the last :func:`reset`: calls, and bytes in the last four."""
    numbers = (ctypes.c_long * len(NAMES))()
    ctypes.CDLL("libcuda.so.1").nullgpu_stats(numbers)
    return dict(zip(NAMES, numbers, strict=True))


def reset() -> None:
    """Begin to count anew."""
    ctypes.CDLL("libcuda.so.1").nullgpu_reset()
