"""The machine of a run: GPUs, CPU, memory, disk, network, one JSON line every few seconds.

The supervisor writes the lines, the recorder uploads them to ``system_stats/`` of the run: ``bafogpt cloud top`` needs
neither the machine nor its engine for them. Fields: ``time`` (s since the epoch), ``attempt``, ``node``, ``step``,
``usd`` (spent by the run so far; node 0 only), ``cpus``, ``cpu`` (0 to 1, of all of them), ``memory_used`` and
``memory_total`` (bytes; the container's, where it has a limit), ``disk_used`` and ``disk_total`` (of the run's folder),
``sent_per_s`` and ``received_per_s`` (bytes), ``gpus`` (see :func:`bafogpt.core.nvidia_smi.gpus`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bafogpt.core import nvidia_smi

CGROUP = Path("/sys/fs/cgroup")
"""The control group that a container sees as its own (version 2 of the kernel's interface)."""


class Probe:
    """Measures the machine; CPU and network are means over the time since the last measurement."""

    def __init__(
        self,
        folder: Path,
        *,
        cgroup: Path = CGROUP,
        clock: Callable[[], float] = time.monotonic,
        gpus: Callable[[], list[dict[str, Any]]] = nvidia_smi.gpus,
    ) -> None:
        self._folder = folder
        self._cgroup = cgroup
        self._clock = clock
        self._gpus = gpus
        self._last = (clock(), *_network(), _cpu_seconds(cgroup))
        psutil.cpu_percent()  # the mean begins here

    def measure(self) -> dict[str, Any]:
        """One measurement: the fields of the module's docstring that are of the machine."""
        then, sent, received, cpu_seconds = self._last
        now, sent_now, received_now, cpu_seconds_now = self._last = (
            self._clock(),
            *_network(),
            _cpu_seconds(self._cgroup),
        )
        passed = max(now - then, 1e-3)
        cpus, busy = cpu_quota(self._cgroup), psutil.cpu_percent() / 100
        if cpus is not None and cpu_seconds is not None and cpu_seconds_now is not None:
            busy = (cpu_seconds_now - cpu_seconds) / passed / cpus
        else:
            cpus = psutil.cpu_count() or 1
        used, total = memory(self._cgroup)
        disk = shutil.disk_usage(self._folder)
        return {
            "time": round(time.time(), 3),
            "cpus": cpus,
            "cpu": round(min(1.0, busy), 3),
            "memory_used": used,
            "memory_total": total,
            "disk_used": disk.used,
            "disk_total": disk.total,
            "sent_per_s": round(max(0.0, (sent_now - sent) / passed)),
            "received_per_s": round(max(0.0, (received_now - received) / passed)),
            "gpus": self._gpus(),
        }


def memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """(used, total) bytes: the container's where it has a limit, else the machine's. Cache counts as free."""
    machine = psutil.virtual_memory()
    with contextlib.suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())  # the text "max" where there is none
        if limit < machine.total:
            cache = _stat(cgroup / "memory.stat").get("inactive_file", 0)
            return max(0, int((cgroup / "memory.current").read_text()) - cache), limit
    return machine.total - machine.available, machine.total


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """How many CPUs the container may use, or None where it has no quota."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) / int(period)
    return None


def _cpu_seconds(cgroup: Path) -> float | None:
    """CPU time of this container."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _stat(cgroup / "cpu.stat")["usage_usec"] / 1e6
    return None


def _stat(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {name: int(value) for name, value in pairs}


def _network() -> tuple[int, int]:
    """Bytes (sent, received) since the machine began, over all interfaces but the loopback."""
    counters = psutil.net_io_counters(pernic=True)
    real = [each for name, each in counters.items() if name != "lo"]
    return sum(each.bytes_sent for each in real), sum(each.bytes_recv for each in real)


class StatsLogger:
    """A thread that appends a measurement to ``path`` every ``every_s`` seconds, with the fields of ``more()``.

    Where ``nvidia-smi`` hangs, these lines stop, and nothing else does.
    """

    def __init__(
        self,
        path: Path,
        *,
        attempt: int,
        more: Callable[[], dict[str, Any]],
        every_s: float,
        measure: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._path = path
        self._about = {"attempt": attempt, "node": int(os.environ.get("SKYPILOT_NODE_RANK") or 0)}
        self._more = more
        self._every_s = every_s
        self._measure = measure
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system_stats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; one that waits for ``nvidia-smi`` is abandoned."""
        self._closing.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        measure = self._measure or Probe(self._path.parent).measure
        with self._path.open("a", encoding="utf-8", buffering=1) as file:
            while True:
                with contextlib.suppress(OSError, psutil.Error):  # the next one may succeed
                    found = measure()
                    if self._closing.is_set():
                        return
                    file.write(json.dumps({**found, **self._about, **self._more()}) + "\n")
                if self._closing.wait(self._every_s):
                    return
