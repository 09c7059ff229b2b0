"""Kills by the kernel's out-of-memory killer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


class OutOfMemory:
    """Whether the kernel has killed a process of this machine, or container, for memory since this object was made."""

    def __init__(self, own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> None:
        self._counters = list(_counters(own, root))
        self._before = self._kills()

    def happened(self) -> bool:
        return self._kills() > self._before

    def _kills(self) -> int:
        return max((_kills(path) for path in self._counters), default=0)


def _counters(own: Path, root: Path) -> Iterator[Path]:
    """The files that count such kills, of control groups version 2 and version 1.

    In a container the group's own path is often that on the host, and the container's group is at the root.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            folder, name = root, "memory.events"
        elif "memory" in controllers.split(","):
            folder, name = root / "memory", "memory.oom_control"
        else:
            continue
        candidates = (folder / path.lstrip("/") / name, folder / name)
        yield from [candidate for candidate in candidates if candidate.exists()][:1]


def _kills(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
