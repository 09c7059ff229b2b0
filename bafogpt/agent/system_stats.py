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
        self._at = clock()
        self._network = _network()
        self._cpu_seconds = self._own_cpu_seconds()
        psutil.cpu_percent()  # the mean begins here

    def measure(self) -> dict[str, Any]:
        """One measurement, as in the module's docstring, without ``attempt``, ``node`` and ``step``."""
        now = self._clock()
        passed = max(now - self._at, 1e-3)
        network = _network()
        sent, received = ((new - old) / passed for new, old in zip(network, self._network, strict=True))
        cpus, busy = self._cpu(passed)
        used, total = memory(self._cgroup)
        disk = shutil.disk_usage(self._folder)
        self._at, self._network = now, network
        return {
            "time": round(time.time(), 3),
            "cpus": cpus,
            "cpu": round(min(1.0, busy), 3),
            "memory_used": used,
            "memory_total": total,
            "disk_used": disk.used,
            "disk_total": disk.total,
            "sent_per_s": round(max(0.0, sent)),
            "received_per_s": round(max(0.0, received)),
            "gpus": self._gpus(),
        }

    def _cpu(self, passed: float) -> tuple[float, float]:
        """(CPUs that may be used, share of them that was): the container's own where it has a quota."""
        quota = cpu_quota(self._cgroup)
        before, self._cpu_seconds = self._cpu_seconds, self._own_cpu_seconds()
        whole = psutil.cpu_percent() / 100
        if quota is None or before is None or self._cpu_seconds is None:
            return psutil.cpu_count() or 1, whole
        return quota, (self._cpu_seconds - before) / passed / quota

    def _own_cpu_seconds(self) -> float | None:
        """CPU time of this container."""
        with contextlib.suppress(OSError, ValueError):
            for line in (self._cgroup / "cpu.stat").read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "usage_usec":
                    return int(value) / 1e6
        return None


def memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """(used, total) bytes: the container's where it has a limit, else the machine's. Cache counts as free."""
    machine = psutil.virtual_memory()
    with contextlib.suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())  # the text "max" where there is none
        if limit < machine.total:
            stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            current = int((cgroup / "memory.current").read_text())
            return max(0, current - int(stat.get("inactive_file", 0))), limit
    return machine.total - machine.available, machine.total


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """How many CPUs the container may use, or None where it has no quota."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) / int(period)
    return None


class StatsLogger:
    """Appends a measurement to ``path`` every ``every_s`` seconds, by a thread of its own.

    ``nvidia-smi`` may hang with the GPU that it asks about; then these lines stop, and nothing else does.
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
        """Stop the thread; one that waits for ``nvidia-smi`` is left behind."""
        self._closing.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        measure = self._measure or Probe(self._path.parent).measure
        with self._path.open("a", encoding="utf-8", buffering=1) as file:
            while True:
                with contextlib.suppress(OSError, psutil.Error):  # the next may be measured again
                    found = measure()
                    if self._closing.is_set():
                        return
                    file.write(json.dumps({**found, **self._about, **self._more()}) + "\n")
                if self._closing.wait(self._every_s):
                    return


def _network() -> tuple[int, int]:
    """Bytes (sent, received) since the machine began, over all interfaces but the loopback."""
    counters = psutil.net_io_counters(pernic=True)
    real = [each for name, each in counters.items() if name != "lo"]
    return sum(each.bytes_sent for each in real), sum(each.bytes_recv for each in real)
